"""What a study found: a table, the best point and its equals, importances, plots."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.console import ScreenTable, log, numbers, print_table, words
from pipelines.durations import in_words
from pipelines.errors import ArtifactError
from pipelines.graph import Graph, closure
from pipelines.number_format import (
    change,
    data_size,
    metric,
    metric_interval,
    number,
    percent,
)
from pipelines.results import METRICS, fid_jackknife_of, read_reported, work_seconds
from pipelines.study.trials import by_training

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from experiments.study import Study
    from ig_core.metrics import Jackknife
    from pipelines.artifacts import Store
    from pipelines.results import Reported
    from pipelines.study.forecast import Forecast
    from pipelines.study.trials import Trial

CONFIRMED = "confirmed.parquet"
SHOWN = 10
"""Points that are listed on screen; the table on disk holds all."""


@dataclass(frozen=True)
class Findings:
    """The trials of a study and what they cost."""

    study: Study
    trials: tuple[Trial, ...]
    table: pd.DataFrame
    """One row a trial: number, point, state, FID, interval, seconds, artifact."""
    best: Trial | None
    equals: tuple[Trial, ...]
    """Points whose FID cannot be told from the best one's (paired 95 % interval)."""
    importances: dict[str, float]
    reported: Reported | None
    """The best point on a bank of noise that had no part in the choice, once it is measured."""
    spent_seconds: float
    """Work on all its trainings and points, each counted once."""
    naive_seconds: float
    """The same points with a training each."""


def findings(
    study: Study, trials: Sequence[Trial], importances: dict[str, float], store: Store
) -> Findings:
    """Put together what is known.

    Raises:
        ValueError: trials were not measured in the same way.
    """
    complete = [t for t in trials if t.state == "COMPLETE" and t.fid is not None]
    marks = {t.facts["fingerprint"] for t in complete if "fingerprint" in t.facts}
    if len(marks) > 1:
        raise ValueError(
            f"trials of study {study.name!r} were not measured in the same way and must not be "
            f"compared: their fingerprints are {', '.join(sorted(marks))}"
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
    reported = None if best is None else read_reported(store, *report_of(study, best))
    return Findings(
        study,
        tuple(trials),
        table,
        best,
        tuple(sorted(equals, key=lambda t: t.fid or 0)),
        importances,
        reported,
        spent_seconds=sum(training_costs.values()) + point_seconds,
        naive_seconds=sum(costs[t.number][0] for t in complete) + point_seconds,
    )


def report_of(study: Study, best: Trial) -> tuple[Graph, float]:
    """The training of the best point, and its scale: `Graph.report` of it is what is quoted."""
    scale = best.point.ig_scale
    return Graph(study.at(*best.point.training, (scale,))), scale


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
    """Trial -> seconds of its training with the FID curve, and of its own samples."""
    found = {}
    for training, members in by_training(trials).items():
        graph = Graph(study.at(*training, tuple(t.point.ig_scale for t in members)))
        curve = [
            p.evaluate
            for p in graph.curve
            if p.guidance.ig_scale == study.experiment.guidance.ig_scale
        ]
        shared = {n for n in closure(curve) if n.stage != "data"}
        train = work_seconds(store, {*shared, *graph.checkpoints})
        for trial in members:
            own = next(p for p in graph.final if p.guidance.ig_scale == trial.point.ig_scale)
            mine = {n for n in closure([own.evaluate]) if n.stage in ("sample", "evaluate")}
            found[trial.number] = (train, work_seconds(store, mine - shared))
    return found


def _jackknife(trial: Trial, store: Store) -> Jackknife | None:
    kind, _, key = str(trial.facts.get("evaluate", "")).partition("/")
    try:
        return fid_jackknife_of(
            json.loads((store.open(kind, key).path / METRICS).read_text(encoding="utf-8"))
        )
    except (ArtifactError, ValueError, KeyError, TypeError):
        # Collected or damaged since, or written by another program: no comparison with it.
        return None


def _includes_zero(one: Jackknife | None, other: Jackknife | None) -> bool:
    if one is None or other is None:
        return False
    low, high = one.improvement_over(other).interval()
    return low <= 0 <= high


def print_findings(found: Findings, console: Console) -> None:
    """Print the best points, what cannot be told apart, importances and cost."""
    states = found.table["state"].value_counts().to_dict() if len(found.table) else {}
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items())
    complete = sorted((t for t in found.trials if t.fid is not None), key=lambda t: t.fid or 0)
    order = "lowest FID first"
    if len(complete) > SHOWN:
        order = f"the {SHOWN} lowest FIDs of {len(complete)}"
    title = f"Study {found.study.name}: {counts or 'no trials'}; {order}"
    rows = []
    for trial in complete[:SHOWN]:
        note = "best" if trial is found.best else "equal" if trial in found.equals else ""
        rows.append(
            (
                str(trial.number),
                str(trial.point.aux_layer),
                f"{trial.point.aux_weight:g}",
                f"{trial.point.ig_scale:g}",
                number(trial.fid or 0.0),
                metric_interval({"fid": trial.fid, **trial.facts}),
                note,
            )
        )
    columns = [*numbers("trial", "layer", "weight", "scale", "FID", "95 % interval"), *words("")]
    print_table(ScreenTable(title, columns, rows), console)
    if found.best is not None:
        console.print(
            f"{counted(len(found.equals), 'point')} cannot be told from the best one "
            f"(same noise, paired 95 % interval); it was chosen on these very "
            f"samples."
        )
    if found.reported is not None:
        metrics, gain = found.reported.measurement.metrics, found.reported.gain
        against = "" if gain is None else f", {change(gain)} against scale 1"
        console.print(
            f"The best point on noise that had no part in the choice: "
            f"FID {metric(metrics)}{against}",
            style="bold",
        )
    if found.importances:
        texts = (f"{name} {percent(value)}" for name, value in found.importances.items())
        console.print(f"Importance for FID: {', '.join(texts)}")
    if found.naive_seconds:
        console.print(
            f"Work: {in_words(found.spent_seconds)}; one training for each point would "
            f"have cost {in_words(found.naive_seconds)} "
            f"(ratio {number(found.spent_seconds / found.naive_seconds)})"
        )


def counted(count: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_forecast(cost: Forecast, console: Console) -> None:
    """Print what is left to do."""
    hours = "unknown (nothing comparable was run here yet)"
    if cost.hours is not None:
        parts = (cost.hours, cost.train_hours or 0.0, cost.sample_hours or 0.0)
        hours = "{} (training {}, samples {})".format(*(number(p, separator=",") for p in parts))
    disk = "unknown" if cost.gigabytes is None else data_size(cost.gigabytes * 2**30)
    work = (
        f"{counted(cost.trials, 'trial')}, {counted(cost.trainings, 'training')}, "
        f"{cost.images:,} images"
    )
    log(console, f"Forecast: {work}; worker-hours {hours}; disk {disk}")


def write_findings(
    found: Findings, directory: Path, confirmed: pd.DataFrame | None = None
) -> list[Path]:
    """Write tables as Parquet, and the plots; returns the files."""
    from pipelines.plots import plot_confirmed, plot_curves, plot_scales

    directory.mkdir(parents=True, exist_ok=True)
    table = directory / "trials.parquet"
    found.table.to_parquet(table)
    files = [table]
    complete = [t for t in found.trials if t.fid is not None]
    if complete:
        files.append(plot_scales(complete, directory / "fid_by_scale.png"))
        files.append(plot_curves(complete, directory / "fid_curves.png"))
    if confirmed is not None:
        files.append(directory / CONFIRMED)
        confirmed.to_parquet(files[-1])
        files.append(plot_confirmed(confirmed, directory / "fid_confirmed.png"))
    return files
