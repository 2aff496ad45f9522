"""Findings of a study: table, best point and its equals, importances, costs; and a forecast."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.common.errors import ArtifactError
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.results.measured_costs import checkpoint_bytes, image_costs, seconds_per_step
from pipelines.results.measurements import fid_jackknife_of, read_holdout, work_seconds
from pipelines.store.file_names import METRICS_FILE
from pipelines.store.keys import Ref
from pipelines.study.trials import by_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.study import Study
    from ig_core.config import Guidance
    from ig_core.metrics.jackknife import Jackknife
    from pipelines.results.measurements import Holdout
    from pipelines.store.base import Store
    from pipelines.study.trials import Trial


CONFIRMED = "confirmed.parquet"


@dataclass(frozen=True)
class Findings:
    """Findings of a study."""

    study: Study
    trials: tuple[Trial, ...]
    table: pd.DataFrame
    """A row for each trial: number, point, state, FID, interval, seconds, artifact."""
    best: Trial | None
    equals: tuple[Trial, ...]
    """Points whose FID does not differ from the best one's (paired 95 % interval holds 0)."""
    importances: dict[str, float]
    holdout: Holdout | None
    """Best point on holdout noise; None if not measured yet."""
    spent_seconds: float
    """Worker-seconds of all trainings and points, each counted once."""
    naive_seconds: float
    """Worker-seconds if each point had a training of its own."""


def findings(
    study: Study, trials: Sequence[Trial], importances: dict[str, float], store: Store
) -> Findings:
    """Compute the findings of a study from its trials.

    Raises:
        ValueError: If trials were not measured by the same protocol.
    """
    complete = [t for t in trials if t.state == "COMPLETE" and t.fid is not None]
    fingerprints = {t.facts["fingerprint"] for t in complete if "fingerprint" in t.facts}
    if len(fingerprints) > 1:
        raise ValueError(
            f"trials of study {study.name!r} were not measured in the same way and must not be "
            f"compared: their fingerprints are {', '.join(sorted(fingerprints))}"
        )
    best = min(complete, key=lambda t: (t.fid, t.number), default=None)
    equals: list[Trial] = []
    if best is not None:
        reference = _jackknife(best, store)
        equals = [
            t for t in complete if t is not best and _includes_zero(_jackknife(t, store), reference)
        ]
    costs = _costs(study, trials, store)
    table = pd.DataFrame([_row(t, costs) for t in trials])
    training_costs = {t.point.training: costs[t.number][0] for t in trials}
    point_seconds = sum(costs[t.number][1] for t in complete)
    holdout = None if best is None else read_holdout(store, *holdout_of(study, best))
    return Findings(
        study,
        tuple(trials),
        table,
        best,
        tuple(sorted(equals, key=lambda t: t.fid or 0)),
        importances,
        holdout,
        spent_seconds=sum(training_costs.values()) + point_seconds,
        naive_seconds=sum(costs[t.number][0] for t in complete) + point_seconds,
    )


def holdout_of(study: Study, best: Trial) -> tuple[Graph, Guidance]:
    """Return the graph of the best point's training, and the guidance for `Graph.holdout`."""
    return Graph(study.training_of([best.point])), study.guidance_at(best.point)


def _row(trial: Trial, costs: dict[int, tuple[float, float]]) -> dict[str, object]:
    train, own = costs.get(trial.number, (float("nan"), float("nan")))
    return {
        "trial": trial.number,
        "aux_layer": trial.point.aux_layer,
        "aux_weight": trial.point.aux_weight,
        "ig_scale": trial.point.ig_scale,
        "state": trial.state,
        "fid": trial.fid,
        "fid_low": trial.facts.get("fid_low"),
        "fid_high": trial.facts.get("fid_high"),
        "train_seconds": train,
        "point_seconds": own,
        "evaluate": trial.facts.get("evaluate"),
    }


def _costs(study: Study, trials: Sequence[Trial], store: Store) -> dict[int, tuple[float, float]]:
    """Return trial -> seconds of its training with the FID curve, and of its own samples."""
    costs = {}
    for members in by_training(trials).values():
        graph = Graph(study.training_of(t.point for t in members))
        curve = [p.evaluate for p in graph.curve_of(study.experiment.guidance).values()]
        shared = {n for n in closure(curve) if n.stage != "data"}
        train = work_seconds(store, {*shared, *graph.checkpoints})
        for trial in members:
            own = graph.final[study.guidance_at(trial.point)]
            nodes = {n for n in closure([own.evaluate]) if n.stage in ("sample", "evaluate")}
            costs[trial.number] = (train, work_seconds(store, nodes - shared))
    return costs


def _jackknife(trial: Trial, store: Store) -> Jackknife | None:
    try:
        evaluation = store.open(Ref.parse(str(trial.facts["evaluate"])))
        return fid_jackknife_of(
            json.loads((evaluation.path / METRICS_FILE).read_text(encoding="utf-8"))
        )
    except (ArtifactError, ValueError, KeyError, TypeError):
        # Deleted or damaged, or written by another program: it is not compared.
        return None


def _includes_zero(one: Jackknife | None, other: Jackknife | None) -> bool:
    if one is None or other is None:
        return False
    low, high = one.improvement_over(other).interval()
    return low <= 0 <= high


@dataclass(frozen=True)
class Forecast:
    """Estimated rest of a study; None where nothing comparable is measured yet."""

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
        """Return the worker-hours in all."""
        if self.train_hours is None or self.sample_hours is None:
            return None
        return self.train_hours + self.sample_hours


def forecast(
    study: Study, store: Store, trials: Sequence[Trial], wanted: int, confirm_seeds: int = 0
) -> Forecast:
    """Estimate the rest of a study, up to `wanted` complete trials in all.

    It is an upper bound: no training is assumed to be pruned, or to be in the store already.
    Confirmation trains a model for each layer, and one without auxiliary head, from each seed.
    """
    left = max(wanted - sum(trial.state == "COMPLETE" for trial in trials), 0)
    each = study.scales_per_training if study.mode == "nested" else 1
    trainings = math.ceil(left / each)
    experiment = study.experiment
    steps, evaluation = experiment.train.checkpoint_steps, experiment.evaluation
    images = left * evaluation.num_samples + trainings * len(steps) * evaluation.curve_samples
    if left:
        images += 2 * evaluation.num_samples  # the best point and scale 1, on holdout noise
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
