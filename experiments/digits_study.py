"""The digits study: where the auxiliary head belongs, its weight, and how much to guide."""

from __future__ import annotations

from dataclasses import replace

from experiments.digits import digits
from experiments.study import LayerRange, Range, SearchSpace, Study


def digits_study() -> Study:
    """Layer 1 to 3, weight 0.1 to 1, scale 1 to 3: eight trainings at five scales each."""
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
