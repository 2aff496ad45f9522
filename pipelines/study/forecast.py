"""What a study is going to cost, from what comparable work has cost before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.measured_costs import checkpoint_bytes, image_costs, seconds_per_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.study import Study
    from pipelines.artifacts import Store
    from pipelines.study.trials import Trial


@dataclass(frozen=True)
class Forecast:
    """Work that is left; None: nothing comparable was measured yet."""

    trials: int
    trainings: int
    images: int
    train_hours: float | None
    """Worker-hours of training."""
    sample_hours: float | None
    """Task-hours of sampling and evaluation."""
    gigabytes: float | None

    @property
    def hours(self) -> float | None:
        """Worker-hours in all."""
        if self.train_hours is None or self.sample_hours is None:
            return None
        return self.train_hours + self.sample_hours


def forecast(
    study: Study, store: Store, trials: Sequence[Trial], wanted: int, confirm_seeds: int = 0
) -> Forecast:
    """What is left of a study, for `wanted` completed trials in all.

    Trainings are counted as if none were given up; those that are in the store already, from a
    study that was interrupted or from other runs, are counted too. Confirmation trains one model
    for each layer and one without auxiliary head, from each of its seeds.
    """
    left = max(wanted - sum(trial.state == "COMPLETE" for trial in trials), 0)
    each = study.scales_per_training if study.mode == "nested" else 1
    trainings = math.ceil(left / each)
    experiment = study.experiment
    steps, evaluation = experiment.train.checkpoint_steps, experiment.evaluation
    images = left * evaluation.num_samples + trainings * len(steps) * evaluation.curve_samples
    if left:
        images += 2 * evaluation.num_samples  # the best point and scale 1, on other noise
    confirmations = confirm_seeds * (2 + study.layers[1] - study.layers[0])
    trainings, images = trainings + confirmations, images + confirmations * evaluation.num_samples
    per_step = seconds_per_step(store, experiment)
    each_image, each_checkpoint = (
        image_costs(store, experiment),
        checkpoint_bytes(store, experiment),
    )
    workers = experiment.resources.num_workers
    total = None
    if each_checkpoint is not None and each_image.bytes is not None:
        total = (trainings * len(steps) * each_checkpoint + images * each_image.bytes) / 2**30
    return Forecast(
        trials=left,
        trainings=trainings,
        images=images,
        train_hours=_hours(per_step, trainings * experiment.train.steps * workers),
        sample_hours=_hours(each_image.seconds, images),
        gigabytes=total,
    )


def _hours(seconds_each: float | None, count: int) -> float | None:
    return None if seconds_each is None else seconds_each * count / 3600
