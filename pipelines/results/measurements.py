"""What an experiment has shown so far, read from the store."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from pipelines.graph.fingerprint import fingerprint, require_one_protocol
from pipelines.graph.node import closure
from pipelines.store.base import CorruptArtifactError
from pipelines.store.file_names import METRICS_FILE, PREVIEW_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from experiments import Experiment
    from ig_core.config import TrainConfig
    from ig_core.metrics.jackknife import Jackknife
    from pipelines.graph.fingerprint import Fingerprint
    from pipelines.graph.graph import Graph, Point
    from pipelines.graph.node import Node
    from pipelines.store.base import Artifact, Store


@dataclass(frozen=True)
class Measurement:
    """An evaluated point."""

    point: Point
    artifact: Artifact
    metrics: dict[str, Any]

    @property
    def scale(self) -> float:
        """Internal guidance scale."""
        return self.point.guidance.ig_scale

    @property
    def fid(self) -> float:
        """Frechet distance to the reference."""
        return float(self.metrics["fid"])

    @property
    def fingerprint(self) -> Fingerprint:
        """How it was measured."""
        return fingerprint(self.point.evaluate)


class Reported(NamedTuple):
    """What was chosen, measured on a bank of noise that had no part in the choice."""

    measurement: Measurement
    gain: tuple[float, float, float] | None
    """Relative fall of FID against scale 1 there, with its paired 95 % interval; None: it is 1."""


@dataclass(frozen=True)
class Results:
    """All measurements of an experiment that are published."""

    graph: Graph
    store: Store
    curve: tuple[Measurement, ...]
    """By checkpoint: the unguided and the guided point."""
    final: tuple[Measurement, ...]
    """The last checkpoint by guidance scale, ascending."""
    report: tuple[Measurement, ...] = ()
    """Unguided and at the scale with the lowest FID in `final`, on a bank of noise that had no part
    in the choice; ascending. Of an experiment with one scale it is not asked for."""

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.graph.experiment

    @property
    def complete(self) -> bool:
        """Everything was measured."""
        chosen = self.chosen_scale
        return (
            chosen is not None
            and len(self.curve) == len(self.graph.curve)
            and len(self.report) >= len(self.graph.chosen_anew(chosen))
        )

    @property
    def targets(self) -> tuple[Node, ...]:
        """What the experiment makes, the report among it once that is known."""
        chosen = self.chosen_scale
        report = () if chosen is None else self.graph.chosen_anew(chosen)
        return (*self.graph.targets, *(point.evaluate for point in report))

    @property
    def chosen_scale(self) -> float | None:
        """Scale with the lowest FID in `final`, once all of that is there."""
        if len(self.final) < len(self.graph.final):
            return None
        return min(self.final, key=lambda m: m.fid).scale

    def headline(self, scale: float | None = None) -> Measurement | None:
        """The last checkpoint under a guidance scale (None: the experiment's own)."""
        scale = self.experiment.guidance.ig_scale if scale is None else scale
        return next((m for m in self.final if m.scale == scale), None)

    def history(self) -> pd.DataFrame | None:
        """Losses by step of the newest checkpoint, if one was trained here."""
        if self.experiment.train.imported:
            return None
        from ig_core.checkpoints.own import load_history
        from ig_core.training.state import HISTORY_COLUMNS

        for node in reversed(self.graph.checkpoints):
            if self.store.find(node.ref):
                values = load_history(self.store.open(node.ref).path)
                frame = pd.DataFrame(values.numpy(), columns=list(HISTORY_COLUMNS))
                return frame.set_index(pd.RangeIndex(1, len(frame) + 1, name="step"))
        return None

    def improvements(self) -> list[tuple[float, float, float] | None]:
        """Relative fall of FID against scale 1 with its paired 95 % interval, for `final`."""
        base = next((m for m in self.final if m.scale == 1.0), None)
        return [None if base is None or m is base else _improvement(m, base) for m in self.final]

    def reported(self) -> Reported | None:
        """The chosen scale on the other bank."""
        return _reported_among(self.report, self.chosen_scale)

    def best(self) -> tuple[Measurement, list[float]] | None:
        """Scale with the lowest FID, and the scales that its interval cannot tell from it.

        The choice is made on the very samples that are reported.
        """
        if not self.final:
            return None
        best = min(self.final, key=lambda m: m.fid)
        equal = [m.scale for m in self.final if m is not best and _overlaps(best, m)]
        return best, equal

    def costs(self) -> pd.DataFrame:
        """Artifacts, seconds of work and bytes of each stage, whenever they were made."""
        return stage_costs(self.store, closure(self.targets))

    def table(self) -> pd.DataFrame:
        """All measurements as one tidy table."""
        rows = []
        parts = (("curve", self.curve), ("final", self.final), ("report", self.report))
        for part, measurements in parts:
            for m in measurements:
                values = {k: v for k, v in m.metrics.items() if not isinstance(v, list | dict)}
                rows.append(
                    {
                        "part": part,
                        "step": m.point.step,
                        "ig_scale": m.scale,
                        "fingerprint": m.fingerprint.id,
                        **values,
                    }
                )
        return pd.DataFrame(rows)


def published(store: Store, nodes: Iterable[Node]) -> dict[Node, Artifact]:
    """Find the artifacts of nodes, each once; without those whose manifest cannot be read."""
    found = {}
    for node in dict.fromkeys(nodes):
        with suppress(CorruptArtifactError):  # it is built again where it is needed
            artifact = store.find(node.ref)
            if artifact is not None:
                found[node] = artifact
    return found


def work_seconds(store: Store, nodes: Iterable[Node]) -> float:
    """What the published ones among these cost to make."""
    return sum(artifact.seconds for artifact in published(store, nodes).values())


def stage_costs(store: Store, nodes: Iterable[Node]) -> pd.DataFrame:
    """Artifacts, seconds of work and bytes by stage of the published ones among these."""
    rows = [
        (node.stage, artifact.seconds, artifact.size)
        for node, artifact in published(store, nodes).items()
    ]
    frame = pd.DataFrame(rows, columns=["stage", "seconds", "bytes"])
    grouped = frame.groupby("stage", sort=False)
    table = grouped.agg(
        artifacts=("seconds", "size"), seconds=("seconds", "sum"), bytes=("bytes", "sum")
    )
    order = [s for s in ("data", "train", "sample", "evaluate") if s in table.index]
    return table.loc[order]


def collect(store: Store, graph: Graph, *, pass_over_damaged: bool = False) -> Results:
    """Read the published measurements of an experiment.

    Args:
        store: Where they are.
        graph: The experiment.
        pass_over_damaged: Take what is damaged as not there, for those who only look.

    Raises:
        CorruptArtifactError: a measurement is damaged, and is not to be passed over.
    """

    def read(points: Iterable[Point]) -> tuple[Measurement, ...]:
        return _read(store, points, pass_over_damaged=pass_over_damaged)

    found = Results(graph, store, read(graph.curve), read(graph.final))
    chosen = found.chosen_scale
    return found if chosen is None else replace(found, report=read(graph.report(chosen)))


def read_reported(store: Store, graph: Graph, scale: float) -> Reported | None:
    """Read a scale on the bank of noise for reports; None: it is not measured, or damaged."""
    return _reported_among(_read(store, graph.report(scale), pass_over_damaged=True), scale)


def _read(
    store: Store, points: Iterable[Point], *, pass_over_damaged: bool
) -> tuple[Measurement, ...]:
    found = []
    for point in points:
        try:
            if store.find(point.evaluate.ref):
                artifact = store.open(point.evaluate.ref)
                metrics = json.loads((artifact.path / METRICS_FILE).read_text(encoding="utf-8"))
                found.append(Measurement(point, artifact, metrics))
        except CorruptArtifactError:
            if not pass_over_damaged:
                raise
    return tuple(found)


def _reported_among(report: Iterable[Measurement], scale: float | None) -> Reported | None:
    by_scale = {m.scale: m for m in report}
    if scale not in by_scale or 1.0 not in by_scale:
        return None
    chosen, base = by_scale[scale], by_scale[1.0]
    return Reported(chosen, None if chosen is base else _improvement(chosen, base))


def preview(results: Results, measurement: Measurement) -> Path | None:
    """Contact sheet of a measurement's samples."""
    node = measurement.point.evaluate.inputs["sample"]
    if not results.store.find(node.ref):
        return None
    return results.store.open(node.ref).path / PREVIEW_FILE


def fid_jackknife_of(metrics: dict[str, Any]) -> Jackknife:
    """The FID of an evaluation with what it is without each of its groups."""
    import torch

    from ig_core.metrics.jackknife import Jackknife

    noise = metrics.get("fid_noise_by_group")
    return Jackknife(
        float(metrics["fid"]),
        torch.tensor(metrics["fid_without_group"], dtype=torch.float64),
        None if noise is None else torch.tensor(noise, dtype=torch.float64),
        metrics.get("fid_noise_share", 0.0),
        metrics.get("fid_slope", 0.0),
    )


def _improvement(measurement: Measurement, base: Measurement) -> tuple[float, float, float]:
    require_one_protocol((f"scale {m.scale:g}", m.fingerprint) for m in (base, measurement))
    gain = fid_jackknife_of(measurement.metrics).improvement_over(fid_jackknife_of(base.metrics))
    return (gain.value, *gain.interval())


def _overlaps(best: Measurement, other: Measurement) -> bool:
    """Whether the paired interval of the difference contains 0."""
    _, low, high = _improvement(best, other)
    return low <= 0 <= high


def checkpoint_name(train: TrainConfig) -> str:
    """The checkpoint that is judged, for people."""
    if train.from_checkpoint is None:
        return f"step {train.steps:,}"
    return f"{PurePath(train.from_checkpoint).name} ({str(train.checkpoint_sha256)[:8]})"
