"""Handwritten digits: the whole pipeline on real data, in minutes on a laptop."""

from __future__ import annotations

from dataclasses import replace

from experiments.schema import EvaluationConfig, Experiment, Resources
from experiments.study import LayerRange, Range, SearchSpace, Study
from ig_core.config import (
    Guidance,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    TrainConfig,
)


def digits() -> Experiment:
    """A tiny SiT with Internal Guidance on scikit-learn's digits.

    Learning rate and scale of the embeddings were chosen by hand on training seeds 1 to 3 and on
    other sampling noise than that of the experiment (training seed 0, evaluation seed 0).
    Expected at step 600: FID about 12 unguided and 8 at scale 1.8.
    """
    return Experiment(
        name="digits",
        model=ModelConfig(
            depth=4,
            width=64,
            num_heads=4,
            patch_size=2,
            input_size=8,
            in_channels=1,
            num_classes=10,
            aux_layer=1,
            time_scale=100.0,
            embedding_std=0.1,
        ),
        loss=LossConfig(aux_weight=0.5),
        optim=OptimConfig(lr=3e-3, warmup_steps=50, ema_decay=0.99),
        train=TrainConfig(steps=600, batch_size=128, checkpoint_every=75),
        guidance=Guidance(ig_scale=1.8),
        ig_scales=(1.0, 1.4, 1.8, 2.2, 2.6, 3.2),
        sampler=SamplerConfig(method="heun", num_steps=8),
        evaluation=EvaluationConfig(),
        # One and two workers then add the same two gradients: on CPUs of one kind the same weights,
        # bit for bit.
        resources=Resources(micro_batch=64),
    )


def digits_study() -> Study:
    """A study of layers 1 to 3, weights 0.1 to 1, scales 1 to 3: 8 trainings at 5 scales."""
    base = digits()
    return Study(
        name="digits",
        experiment=replace(
            base,
            train=replace(base.train, checkpoint_every=200),
            evaluation=replace(base.evaluation, num_samples=2000, shard_size=1000),
            # One process for each training, as many trainings at once as there are cores.
            resources=replace(base.resources, num_workers=1, sample_tasks=1),
        ),
        space=SearchSpace(
            aux_layer=LayerRange(low=1, high=3),
            aux_weight=Range(low=0.1, high=1.0, step=0.1),
            ig_scale=Range(low=1.0, high=3.0, step=0.1),
        ),
        default_trials=40,
    )
