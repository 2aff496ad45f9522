"""Parameters, tags and metrics of a run in MLflow.

    fid                   FID of the last checkpoint at the own scale of the run or trial
    fid_curve             FID over training, at the scale of the curve; the step is the training's
    fid_by_ig_scale_x100  FID of the last checkpoint at each scale; the step is `scale_step` of it
    fid_report            FID of the chosen scale on holdout noise, which was not used to choose it

The step of every other metric is the training's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.protocols import CUSTOM, protocol_name, protocol_settings
from pipelines.common.revision import split_commit
from pipelines.graph.fingerprint import fingerprint
from pipelines.results.measurements import checkpoint_name
from pipelines.store.keys import content_key
from pipelines.store.register import command_times
from pipelines.tracking.views import SCALE_AXIS, STUDIED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ig_core.config import Guidance
    from pipelines.graph.graph import Graph
    from pipelines.results.measurements import Holdout, Measurement, Results
    from pipelines.store.base import Artifact


LOSS_POINTS = 200
"""Points of a loss curve; each is the mean over the steps since the previous one."""
HEADLINE_METRICS = (
    "fid",
    "fid_low",
    "fid_high",
    "fid_infinity",
    "fid_infinity_low",
    "fid_infinity_high",
    "balanced_fid",
    "sfid",
    "kid",
    "precision",
    "recall",
    "inception_score",
)
"""Metrics of an evaluation that are logged under the same names."""
COMPARED = (*STUDIED, "cfg_scale", "model")
"""Parameters of a study's trials; all others are equal, and would crowd MLflow's plots."""


@dataclass(frozen=True)
class Value:
    """One metric value."""

    key: str
    step: int
    value: float
    timestamp_ms: int


def metric_values(results: Results, guidance: Guidance | None = None) -> Iterable[Value]:
    """Yield all metrics of a run: FID curve, FID by guidance scale, headline metrics, losses.

    Args:
        results: Results of the experiment.
        guidance: Guidance of the headline metrics; None: the experiment's own.
    """
    own = results.curve_of(results.experiment.guidance)
    for (step, _), m in results.curve.items():
        key = "fid_curve" if m is own.get(step) else "fid_curve_unguided"
        yield Value(key, step, m.fid, timestamp_ms(m))
    by_step: dict[int, Measurement] = {}
    for m in results.final.values():
        by_step.setdefault(scale_step(m.guidance.ig_scale), m)
    for step, m in by_step.items():
        yield Value("fid_by_ig_scale_x100", step, m.fid, timestamp_ms(m))
        yield Value(SCALE_AXIS, step, m.guidance.ig_scale, timestamp_ms(m))
    headline = results.headline(guidance)
    if headline is not None:
        step, stamp = headline.point.step, timestamp_ms(headline)
        for key in HEADLINE_METRICS:
            if key in headline.metrics:  # fewer if the reference has moments only
                yield Value(key, step, float(headline.metrics[key]), stamp)
    holdout = results.chosen_holdout()
    if holdout is not None:
        yield from holdout_values(holdout)
    yield from _losses(results)


def holdout_values(holdout: Holdout) -> Iterable[Value]:
    """Yield the metrics of the chosen guidance on holdout noise."""
    m = holdout.measurement
    step, stamp = m.point.step, timestamp_ms(m)
    for name in ("fid", "fid_low", "fid_high"):
        yield Value(name.replace("fid", "fid_report"), step, float(m.metrics[name]), stamp)
    yield Value("ig_scale_report", step, m.guidance.ig_scale, stamp)


def scale_step(scale: float) -> int:
    """Return the step at which the FID of a scale is logged.

    It depends on the scale alone, since a logged step cannot be changed: 100 times the scale if
    that is a whole number, else 1e10 times the scale, as two scales must not share a step. Charts
    take their axis from the metric SCALE_AXIS.
    """
    hundredths = round(100 * scale)
    return hundredths if abs(100 * scale - hundredths) < 1e-6 else round(1e10 * scale)


def comparable_parameters(results: Results, guidance: Guidance | None = None) -> dict[str, object]:
    """Return the parameters of a run; every run has the same keys.

    Args:
        results: Results of the experiment.
        guidance: Guidance of the run; None: the experiment's own.
    """
    e, protocol = results.experiment, fingerprint(results.graph.headline.evaluate)
    own = e.guidance if guidance is None else guidance
    return {
        "experiment": e.name,
        "aux_layer": e.model.aux_layer,
        "aux_weight": e.loss.aux_weight,
        "ig_scale": own.ig_scale,
        "ig_interval": _interval(own.ig_interval),
        "cfg_scale": own.cfg_scale,
        "cfg_interval": _interval(own.cfg_interval),
        "model": f"{e.model.backbone} {e.model.depth}x{e.model.width}/{e.model.patch_size}",
        "codec": e.data.codec,
        "target_guidance": e.loss.target_guidance,
        "optimizer": e.optim.optimizer,
        "precision": e.optim.precision,
        "lr": e.optim.lr,
        "ema_decay": e.optim.ema_decay,
        "batch_size": e.train.batch_size,
        "steps": e.train.last_step,
        "seed": e.train.seed,
        "checkpoint": checkpoint_name(e.train) if e.train.imported else "trained here",
        "sampler": f"{e.sampler.method}-{e.sampler.num_steps}",
        "num_samples": e.evaluation.num_samples,
        "protocol": f"{protocol_name(e.evaluation)} {protocol.id}",
    }


def comparison_name(graph: Graph) -> str:
    """Name the MLflow experiment of a run: runs with the same protocol and reference share it.

    Runs with a protocol of `experiments.protocols` share its name, with the first digits of the
    reference's hash if it is a file; other runs share a key of their protocol and reference.
    """
    evaluation, reference = graph.experiment.evaluation, graph.reference
    name = protocol_name(evaluation)
    if name != CUSTOM:
        digest = evaluation.reference_sha256 or evaluation.reference_content
        return name if digest is None else f"{name} {digest[:8]}"
    key = content_key([protocol_settings(evaluation), reference.key])
    return f"{graph.experiment.data.source} {key[:8]}"


def commit_tags(results: Results) -> dict[str, str]:
    """Return the tags of the commits that built a run's artifacts; empty if none is recorded."""
    artifacts = [m.artifact for m in results.measurements]
    artifacts += [
        artifact
        for node in results.graph.checkpoints
        if (artifact := results.store.find(node.ref)) is not None
    ]
    artifacts.sort(key=lambda artifact: float(artifact.manifest["created"]))
    commits = [commit for artifact in artifacts if (commit := artifact.manifest.get("commit"))]
    if not commits:
        return {}
    newest, dirty = split_commit(commits[-1])
    tags = {
        "mlflow.source.git.commit": newest,
        "igdit.git.commit": newest,
        "igdit.git.dirty": "yes" if dirty else "no",
    }
    counts = [f"{commit} ({count})" for commit, count in Counter(commits).items()]
    return tags | ({"igdit.git.commits": ", ".join(counts)} if len(counts) > 1 else {})


def in_order(values: Iterable[Value]) -> list[Value]:
    """Return each value once, FID first.

    MLflow compares runs that a user selects by the metric that was logged first.
    """
    return sorted(set(values), key=lambda v: (v.key != "fid", v.key, v.step))


def timestamp_ms(measurement: Measurement) -> int:
    """Return when a measurement was published, in milliseconds since the epoch."""
    return _created_ms(measurement.artifact)


def started_ms(results: Results) -> int | None:
    """Return when the command of the results was started, in milliseconds since the epoch.

    If no command is recorded, as for trials of a study, it is the start of the training; None if
    there is no checkpoint either.
    """
    started = command_times(results.store, results.graph.run_key).started_ms
    if started is not None:
        return started
    for node in results.graph.checkpoints:
        artifact = results.store.find(node.ref)
        if artifact is not None:
            return _created_ms(artifact) - round(1000 * artifact.seconds)
    return None


def run_ended_ms(results: Results) -> int | None:
    """Return when the command of the results ended, or their last number was published."""
    ended = command_times(results.store, results.graph.run_key).ended_ms
    measured = (*results.curve.values(), *results.final.values())
    return ended_ms(measured) if ended is None else ended


def ended_ms(measurements: Iterable[Measurement]) -> int | None:
    """Return when the last of some measurements was published; None if there is none."""
    return max(map(timestamp_ms, measurements), default=None)


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g} .. {interval[1]:g}"


def _losses(results: Results) -> Iterable[Value]:
    """Yield throughput and losses, averaged to LOSS_POINTS, with the next checkpoint's time."""
    history = results.history()
    if history is None:
        return
    stamps: dict[int, int] = {}
    for node in results.graph.checkpoints:
        artifact = results.store.find(node.ref)
        if artifact is not None:
            step = node.step
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


def _created_ms(artifact: Artifact) -> int:
    return round(1000 * float(artifact.manifest["created"]))
