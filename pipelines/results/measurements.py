"""Measurements of an experiment, read from the store."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pandas as pd

from pipelines.graph.fingerprint import fingerprint, require_one_protocol
from pipelines.graph.node import closure
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.file_names import METRICS_FILE, PREVIEW_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from experiments import Experiment
    from ig_core.config import Guidance, TrainConfig
    from ig_core.metrics.jackknife import Jackknife
    from pipelines.graph.fingerprint import Fingerprint
    from pipelines.graph.graph import Graph, Point
    from pipelines.graph.node import Node
    from pipelines.store.base import Artifact, Store


Key = TypeVar("Key")


@dataclass(frozen=True)
class Measurement:
    """Point with its metrics."""

    point: Point
    artifact: Artifact
    metrics: dict[str, Any]

    @property
    def guidance(self) -> Guidance:
        """Guidance of the samples, canonical."""
        return self.point.guidance

    @property
    def fid(self) -> float:
        """Frechet distance to the reference."""
        return float(self.metrics["fid"])

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the evaluation."""
        return fingerprint(self.point.evaluate)


Gain = tuple[float, float, float]
"""Relative fall of FID against the baseline, with the ends of its paired 95 % interval."""


class Holdout(NamedTuple):
    """Measurement of the chosen guidance on noise that had no part in the choice."""

    measurement: Measurement
    gain: Gain | None
    """Gain over the baseline on the same noise; None if the baseline itself was chosen."""


@dataclass(frozen=True)
class Results:
    """All measurements of an experiment that are published."""

    graph: Graph
    store: Store
    curve: Mapping[tuple[int, Guidance], Measurement]
    """Measurements of `Graph.curve`, by step and guidance."""
    final: Mapping[Guidance, Measurement]
    """Measurements of `Graph.final`, the last checkpoint, by guidance."""
    holdout: Mapping[Guidance, Measurement] = field(default_factory=dict)
    """The baseline and the guidance with the lowest FID in `final`, on noise that had no part in
    the choice. Not needed for an experiment with one guidance."""

    @property
    def experiment(self) -> Experiment:
        """Experiment of the graph."""
        return self.graph.experiment

    @property
    def complete(self) -> bool:
        """True if everything was measured."""
        chosen = self.chosen
        return (
            chosen is not None
            and len(self.curve) == len(self.graph.curve)
            and len(self.holdout) >= len(self.graph.chosen_holdout(chosen))
        )

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """All measurements: the curve, the last checkpoint, the holdout."""
        return (*self.curve.values(), *self.final.values(), *self.holdout.values())

    @property
    def targets(self) -> tuple[Node, ...]:
        """Nodes that the experiment builds, with those of the holdout once the choice is known."""
        chosen = self.chosen
        holdout = {} if chosen is None else self.graph.chosen_holdout(chosen)
        return (*self.graph.targets, *(point.evaluate for point in holdout.values()))

    @property
    def chosen(self) -> Guidance | None:
        """Guidance with the lowest FID in `final`; None until all of `final` is measured."""
        if len(self.final) < len(self.graph.final):
            return None
        return min(self.final.values(), key=lambda m: m.fid).guidance

    @property
    def baseline(self) -> Measurement | None:
        """The last checkpoint under the guidance that others are compared with."""
        return self.final.get(self.experiment.baseline)

    def headline(self, guidance: Guidance | None = None) -> Measurement | None:
        """Return the last checkpoint under a guidance, or under the experiment's own."""
        own = self.experiment.guidance if guidance is None else guidance
        return self.final.get(own.canonical())

    def curve_of(self, guidance: Guidance) -> dict[int, Measurement]:
        """Return the curve under a guidance, by step."""
        wanted = guidance.canonical()
        return {step: m for (step, each), m in self.curve.items() if each == wanted}

    def curves(self) -> dict[Guidance, dict[int, Measurement]]:
        """Return the curve under each guidance of which something is measured, by step."""
        guidances = dict.fromkeys(guidance for _, guidance in self.graph.curve)
        found = {guidance: self.curve_of(guidance) for guidance in guidances}
        return {guidance: curve for guidance, curve in found.items() if curve}

    def history(self) -> pd.DataFrame | None:
        """Return the losses by step of the newest checkpoint; None if none was trained here."""
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

    def improvements(self) -> dict[Guidance, Gain | None]:
        """Return the gain of each guidance in `final`; None for the baseline, or without one."""
        base = self.baseline
        return {
            guidance: None if base is None or m is base else _improvement(m, base)
            for guidance, m in self.final.items()
        }

    def chosen_holdout(self) -> Holdout | None:
        """Return the chosen guidance on holdout noise; None if it is not measured."""
        return None if self.chosen is None else _holdout_of(self.graph, self.holdout, self.chosen)

    def best(self) -> tuple[Measurement, list[Measurement]] | None:
        """Return the lowest FID in `final`, and those that its interval cannot tell from it.

        The choice is made on the very samples that are reported.
        """
        if not self.final:
            return None
        best = min(self.final.values(), key=lambda m: m.fid)
        return best, [m for m in self.final.values() if m is not best and _overlaps(best, m)]

    def costs(self) -> pd.DataFrame:
        """Return artifacts, seconds of work and bytes of each stage."""
        return stage_costs(self.store, closure(self.targets))

    def table(self) -> pd.DataFrame:
        """Return all measurements as one tidy table."""
        rows = []
        parts = {
            "curve": self.curve.values(),
            "final": self.final.values(),
            "holdout": self.holdout.values(),
        }
        for part, measurements in parts.items():
            for m in measurements:
                values = {k: v for k, v in m.metrics.items() if not isinstance(v, list | dict)}
                rows.append(
                    {
                        "part": part,
                        "step": m.point.step,
                        "ig_scale": m.guidance.ig_scale,
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
    """Return the seconds that the published artifacts of these nodes took to build."""
    return sum(artifact.seconds for artifact in published(store, nodes).values())


def stage_costs(store: Store, nodes: Iterable[Node]) -> pd.DataFrame:
    """Return artifacts, seconds of work and bytes by stage of the published ones of these nodes."""
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
        store: Store of the results.
        graph: Graph of the experiment.
        pass_over_damaged: Treat damaged measurements as missing, for commands that only look.

    Raises:
        CorruptArtifactError: If a measurement is damaged, and is not to be passed over.
    """

    def read(points: Mapping[Key, Point]) -> dict[Key, Measurement]:
        return _read(store, points, pass_over_damaged=pass_over_damaged)

    found = Results(graph, store, read(graph.curve), read(graph.final))
    chosen = found.chosen
    return found if chosen is None else replace(found, holdout=read(graph.holdout(chosen)))


def read_holdout(store: Store, graph: Graph, chosen: Guidance) -> Holdout | None:
    """Read a chosen guidance on holdout noise; None if it is not measured, or damaged."""
    measured = _read(store, graph.holdout(chosen), pass_over_damaged=True)
    return _holdout_of(graph, measured, chosen)


def _holdout_of(
    graph: Graph, measured: Mapping[Guidance, Measurement], chosen: Guidance
) -> Holdout | None:
    found, base = measured.get(chosen), measured.get(graph.experiment.baseline)
    if found is None or base is None:
        return None
    return Holdout(found, None if found is base else _improvement(found, base))


def _read(
    store: Store, points: Mapping[Key, Point], *, pass_over_damaged: bool
) -> dict[Key, Measurement]:
    found = {}
    for key, point in points.items():
        try:
            if store.find(point.evaluate.ref):
                artifact = store.open(point.evaluate.ref)
                metrics = json.loads((artifact.path / METRICS_FILE).read_text(encoding="utf-8"))
                found[key] = Measurement(point, artifact, metrics)
        except CorruptArtifactError:
            if not pass_over_damaged:
                raise
    return found


def preview(results: Results, measurement: Measurement) -> Path | None:
    """Return the path of the contact sheet of a measurement's samples; None if there is none."""
    node = measurement.point.evaluate.inputs["sample"]
    if not results.store.find(node.ref):
        return None
    return results.store.open(node.ref).path / PREVIEW_FILE


def fid_jackknife_of(metrics: dict[str, Any]) -> Jackknife:
    """Return the FID of an evaluation with its values without each of its groups."""
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


def _improvement(measurement: Measurement, base: Measurement) -> Gain:
    require_one_protocol(
        (f"scale {m.guidance.ig_scale:g}", m.fingerprint) for m in (base, measurement)
    )
    gain = fid_jackknife_of(measurement.metrics).improvement_over(fid_jackknife_of(base.metrics))
    return (gain.value, *gain.interval())


def _overlaps(best: Measurement, other: Measurement) -> bool:
    """Return True if the paired interval of the difference contains 0."""
    _, low, high = _improvement(best, other)
    return low <= 0 <= high


def checkpoint_name(train: TrainConfig) -> str:
    """Return the name of the evaluated checkpoint, for people."""
    if train.from_checkpoint is None:
        return f"step {train.steps:,}"
    return f"{PurePath(train.from_checkpoint).name} ({str(train.checkpoint_sha256)[:8]})"
