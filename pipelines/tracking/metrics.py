"""What a run shows in a tracking server: parameters to compare and metrics by step.

    fid                   the run's or trial's own number: the last checkpoint, at its own scale
    fid_curve             FID over training, at the scale of the curve; the step is the training's
    fid_by_ig_scale_x100  FID of the last checkpoint at each scale; the step is `scale_step` of it
    fid_report            FID of the chosen scale on noise that had no part in the choice

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
"""Points of a loss curve; each is the mean over the steps since the one before."""
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
"""Of an evaluation, shown under the same names."""
COMPARED = (*STUDIED, "cfg_scale", "model")
"""Parameters of a study's trials; the others are the same for all of them and stay out of plots."""


@dataclass(frozen=True)
class Value:
    """One metric value."""

    key: str
    step: int
    value: float
    timestamp_ms: int


def comparable_parameters(results: Results, guidance: Guidance | None = None) -> dict[str, object]:
    """What a person compares; the same keys on every run.

    Args:
        results: What was measured.
        guidance: Guidance that the run stands for, if not the experiment's own.
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


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:g} .. {interval[1]:g}"


def comparison_name(graph: Graph) -> str:
    """Name what runs must share to be compared in one view: reference and protocol.

    Runs of one protocol of `experiments.protocols` share its name, with the first digits of a
    reference that was named by a file; others share a key of what they were measured with.
    """
    evaluation, reference = graph.experiment.evaluation, graph.reference
    name = protocol_name(evaluation)
    if name != CUSTOM:
        digest = evaluation.reference_sha256 or evaluation.reference_content
        return name if digest is None else f"{name} {digest[:8]}"
    key = content_key([protocol_settings(evaluation), reference.key])
    return f"{graph.experiment.data.source} {key[:8]}"


def commit_tags(results: Results) -> dict[str, str]:
    """Tags of the code that made what a run shows; none where no commit was recorded."""
    made = [m.artifact for m in results.measurements]
    made += [
        artifact
        for node in results.graph.checkpoints
        if (artifact := results.store.find(node.ref)) is not None
    ]
    made.sort(key=lambda artifact: float(artifact.manifest["created"]))
    commits = [commit for artifact in made if (commit := artifact.manifest.get("commit"))]
    if not commits:
        return {}
    newest, dirty = split_commit(commits[-1])
    tags = {
        "mlflow.source.git.commit": newest,
        "igdit.git.commit": newest,
        "igdit.git.dirty": "yes" if dirty else "no",
    }
    others = [f"{commit} ({count})" for commit, count in Counter(commits).items()]
    return tags | ({"igdit.git.commits": ", ".join(others)} if len(others) > 1 else {})


def in_order(values: Iterable[Value]) -> list[Value]:
    """Values to be logged: each once, and the one that runs are compared by first.

    MLflow's own comparison of runs that were chosen by hand begins with the metric that came first.
    """
    return sorted(set(values), key=lambda v: (v.key != "fid", v.key, v.step))


def metric_values(results: Results, guidance: Guidance | None = None) -> Iterable[Value]:
    """All metrics of a run: the FID curve, FID by guidance scale, headline numbers, losses.

    Args:
        results: What was measured.
        guidance: Guidance of the headline numbers, if not the experiment's own.
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
            if key in headline.metrics:  # a reference of moments alone gives fewer
                yield Value(key, step, float(headline.metrics[key]), stamp)
    holdout = results.chosen_holdout()
    if holdout is not None:
        yield from holdout_values(holdout)
    yield from _losses(results)


def scale_step(scale: float) -> int:
    """Return the step of FID at a scale: a function of it alone, since no logged step is changed.

    It is 100 times the scale where that is a whole number. Scales between two of those would share
    a step; theirs is 1e10 times the scale. The chart takes its axis from SCALE_AXIS, not from it.
    """
    hundredths = round(100 * scale)
    return hundredths if abs(100 * scale - hundredths) < 1e-6 else round(1e10 * scale)


def holdout_values(holdout: Holdout) -> Iterable[Value]:
    """The metrics of what was chosen, on noise that had no part in the choice."""
    m = holdout.measurement
    step, stamp = m.point.step, timestamp_ms(m)
    for name in ("fid", "fid_low", "fid_high"):
        yield Value(name.replace("fid", "fid_report"), step, float(m.metrics[name]), stamp)
    yield Value("ig_scale_report", step, m.guidance.ig_scale, stamp)


def _losses(results: Results) -> Iterable[Value]:
    """Throughput, and loss curves thinned to LOSS_POINTS, stamped by the checkpoint they led to."""
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


def timestamp_ms(measurement: Measurement) -> int:
    """When a measurement was published."""
    return _created_ms(measurement.artifact)


def started_ms(results: Results) -> int | None:
    """When the command was started that made the results; None: it is not known.

    Of results from before commands were recorded, and of those of a study, the beginning of the
    training whose checkpoints are there.
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
    """When the command ended that made the results, or their last number was published."""
    ended = command_times(results.store, results.graph.run_key).ended_ms
    measured = (*results.curve.values(), *results.final.values())
    return ended_ms(measured) if ended is None else ended


def ended_ms(measurements: Iterable[Measurement]) -> int | None:
    """When the last of some measurements was published; None: there is none."""
    return max(map(timestamp_ms, measurements), default=None)


def _created_ms(artifact: Artifact) -> int:
    return round(1000 * float(artifact.manifest["created"]))
