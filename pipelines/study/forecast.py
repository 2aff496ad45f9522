"""What a study is going to cost, from what comparable work has cost before."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments import Experiment
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
    per_image, image_bytes = _cost_per_image(store, experiment)
    checkpoint_bytes = _median([a.size for a in comparable_checkpoints(store, experiment)])
    workers = experiment.resources.num_workers
    total = None
    if checkpoint_bytes is not None and image_bytes is not None:
        total = (trainings * len(steps) * checkpoint_bytes + images * image_bytes) / 2**30
    return Forecast(
        trials=left,
        trainings=trainings,
        images=images,
        train_hours=_hours(per_step, trainings * experiment.train.steps * workers),
        sample_hours=_hours(per_image, images),
        gigabytes=total,
    )


def _hours(seconds_each: float | None, count: int) -> float | None:
    return None if seconds_each is None else seconds_each * count / 3600


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def comparable_checkpoints(store: Store, experiment: Experiment) -> list[Any]:
    """Checkpoints of trainings of the same size; those that were trained elsewhere tell nothing."""
    model, batch = experiment.model, experiment.train.batch_size
    same = ("depth", "width", "patch_size", "input_size", "mlp_ratio")
    return [
        artifact for artifact in store.list("checkpoint")
        if artifact.manifest["config"].get("train", {}).get("batch_size") == batch
        and all(artifact.manifest["config"]["model"].get(name) == getattr(model, name)
                for name in same)
    ]  # fmt: skip


def seconds_per_step(store: Store, experiment: Experiment) -> float | None:
    """Wall seconds of a step, by whatever workers took it."""
    rates = []
    for artifact in comparable_checkpoints(store, experiment):
        steps = int(artifact.key.rpartition("-")[2]) - artifact.manifest["work_from_step"]
        if steps > 0:
            rates.append(artifact.seconds / steps)
    return _median(rates)


def _cost_per_image(store: Store, experiment: Experiment) -> tuple[float | None, float | None]:
    """Seconds of sampling and judging one image, and its bytes."""
    counts: dict[str, int] = {}
    seconds, sizes, judging = [], [], []
    for artifact in store.list("images"):
        config = artifact.manifest["config"]
        count = config["stop"] - config["start"]
        counts[f"images/{artifact.key}"] = count
        if config["sampler"].get("num_steps") == experiment.sampler.num_steps:
            seconds.append(artifact.seconds / count)
            sizes.append(artifact.size / count)
    for artifact in store.list("features"):
        count = counts.get(artifact.manifest["inputs"].get("images", ""), 0)
        if count:
            judging.append(artifact.seconds / count)
            sizes.append(artifact.size / count)
    sampling = _median(seconds)
    if sampling is None or not sizes:
        return None, None
    return sampling + (_median(judging) or 0.0), 2 * sum(sizes) / len(sizes)
