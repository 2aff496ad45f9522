"""What a run shows in a tracking server: parameters to compare and metrics by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from experiments.protocols import protocol_name
from pipelines.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ig_core.config import TrainConfig
    from pipelines.artifacts import Artifact
    from pipelines.results import Measurement, Reported, Results

LOSS_POINTS = 200
"""Points of a loss curve; each is the mean over the steps since the one before."""
HEADLINE_METRICS = (
    "fid_low", "fid_high", "fid_infinity", "fid_infinity_low", "fid_infinity_high", "balanced_fid",
    "sfid", "kid", "precision", "recall", "inception_score",
)  # fmt: skip
"""Of an evaluation, shown under the same names; `fid` is `fid_final` there."""
STUDIED = ("aux_layer", "aux_weight", "ig_scale")
"""Parameters that a study varies."""
COMPARED = (*STUDIED, "cfg_scale", "model")
"""Parameters of a study's trials; the others are the same for all of them and stay out of plots."""


@dataclass(frozen=True)
class Value:
    """One metric value."""

    key: str
    step: int
    value: float
    timestamp_ms: int


def comparable_parameters(results: Results, scale: float | None = None) -> dict[str, object]:
    """What a person compares; the same keys on every run.

    Args:
        results: What was measured.
        scale: Guidance scale that the run stands for, if not the experiment's own.
    """
    e, mark = results.experiment, fingerprint(results.graph.final[0].evaluate)
    return {
        "aux_layer": e.model.aux_layer,
        "aux_weight": e.loss.aux_weight,
        "ig_scale": e.guidance.ig_scale if scale is None else scale,
        "cfg_scale": e.guidance.cfg_scale,
        "model": f"{e.model.backbone} {e.model.depth}x{e.model.width}/{e.model.patch_size}",
        "lr": e.optim.lr,
        "ema_decay": e.optim.ema_decay,
        "batch_size": e.train.batch_size,
        "steps": e.train.last_step,
        "seed": e.train.seed,
        "checkpoint": checkpoint_name(e.train) if e.train.imported else "trained here",
        "sampler": f"{e.sampler.method}-{e.sampler.num_steps}",
        "num_samples": e.evaluation.num_samples,
        "protocol": f"{protocol_name(e.evaluation)} {mark.id}",
    }


def checkpoint_name(train: TrainConfig) -> str:
    """The checkpoint that is judged, for people."""
    if train.from_checkpoint is None:
        return f"step {train.steps:,}"
    return f"{PurePath(train.from_checkpoint).name} ({str(train.checkpoint_sha256)[:8]})"


def in_order(values: Iterable[Value]) -> list[Value]:
    """Values to be logged: each once, and the one that runs are compared by first.

    MLflow's comparison begins with the metric that came first.
    """
    return sorted(set(values), key=lambda v: (v.key != "fid_final", v.key, v.step))


def metric_values(results: Results, headline_scale: float | None = None) -> Iterable[Value]:
    """All metrics of a run: the FID curve, FID by guidance scale, headline numbers, losses.

    Args:
        results: What was measured.
        headline_scale: Guidance scale of the headline numbers, if not the experiment's own.
    """
    scale = results.experiment.guidance.ig_scale
    for m in results.curve:
        key = "fid" if m.scale == scale else "fid_unguided"
        yield Value(key, m.point.step, m.fid, timestamp_ms(m))
    for m in results.final:
        yield Value("fid_by_ig_scale", round(100 * m.scale), m.fid, timestamp_ms(m))
    headline = results.headline(headline_scale)
    if headline is not None:
        step, stamp = headline.point.step, timestamp_ms(headline)
        names = {"fid_final": "fid", **{name: name for name in HEADLINE_METRICS}}
        for key, source in names.items():
            if source in headline.metrics:  # a reference of moments alone gives fewer
                yield Value(key, step, float(headline.metrics[source]), stamp)
    reported = results.reported()
    if reported is not None:
        yield from reported_values(reported)
    yield from _losses(results)


def reported_values(reported: Reported) -> Iterable[Value]:
    """What was chosen, on noise that had no part in the choice; the step is scale x 100."""
    m = reported.measurement
    for name in ("fid", "fid_low", "fid_high"):
        key = name.replace("fid", "fid_report")
        yield Value(key, round(100 * m.scale), float(m.metrics[name]), timestamp_ms(m))


def _losses(results: Results) -> Iterable[Value]:
    """Throughput, and loss curves thinned to LOSS_POINTS, stamped by the checkpoint they led to."""
    history = results.history()
    if history is None:
        return
    stamps: dict[int, int] = {}
    for node in results.graph.checkpoints:
        artifact = results.store.find(node.kind, node.key)
        if artifact is not None:
            step = int(node.key.rpartition("-")[2])
            stamps[step] = _created_ms(artifact)
            rate = (step - artifact.manifest["work_from_step"]) / max(artifact.seconds, 1e-3)
            yield Value("train_steps_per_second", step, rate, stamps[step])
    every = max(1, results.experiment.train.steps // LOSS_POINTS)
    means = history.groupby((history.index - 1) // every).mean()
    for block, row in means.iterrows():
        last = (int(str(block)) + 1) * every
        if last <= len(history):
            stamp = next(stamps[step] for step in sorted(stamps) if step >= last)
            for column in ("total", "final", "aux"):
                yield Value(f"loss_{column}", last, float(row[column]), stamp)


def timestamp_ms(measurement: Measurement) -> int:
    """When a measurement was published."""
    return _created_ms(measurement.artifact)


def started_ms(results: Results) -> int | None:
    """When the training began whose checkpoints are there; None: there is none."""
    for node in results.graph.checkpoints:
        artifact = results.store.find(node.kind, node.key)
        if artifact is not None:
            return _created_ms(artifact) - round(1000 * artifact.seconds)
    return None


def ended_ms(measurements: Iterable[Measurement]) -> int | None:
    """When the last of some measurements was published; None: there is none."""
    return max(map(timestamp_ms, measurements), default=None)


def _created_ms(artifact: Artifact) -> int:
    return round(1000 * float(artifact.manifest["created"]))
