"""Tables of the paper, with measurements beside the published numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.graph.graph import Graph
from pipelines.results.comparability import differences, incomparable_because
from pipelines.results.measurements import collect
from pipelines.store.keys import content_key
from pipelines.store.register import Record, read_register, remember

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from experiments import Experiment
    from experiments.tables import TableRow
    from pipelines.results.measurements import Measurement, Results
    from pipelines.store.base import Store
    from pipelines.store.register import Register

    Named = dict[str, list[Experiment]]


METRICS = ("fid", "sfid", "inception_score", "precision", "recall", "balanced_fid")
"""Metrics that papers publish, by their names in evaluations."""


@dataclass(frozen=True)
class TableLine:
    """Row of a table, filled in."""

    row: TableRow
    experiment: Experiment | None
    """Run that stands for the row; None if there is none."""
    measured: Measurement | None
    """Our number; None if it was not run."""
    incomparable_because: tuple[str, ...] = ()
    """Protocol differences that make our number and the published one incomparable."""
    differences: tuple[str, ...] = ()
    """Other differences of the protocols, whose effect on FID is not known."""

    @property
    def state(self) -> str:
        """State of the row in a word or two."""
        if self.row.experiment is None:
            return "published alone"
        if self.measured is None:
            return "not run"
        return "not compared" if self.incomparable_because else "measured"

    @property
    def difference(self) -> float | None:
        """Our FID less the published one; None where they are incomparable."""
        if self.measured is None or self.incomparable_because:
            return None
        return self.measured.fid - self.row.published.fid


def fill(
    rows: Iterable[TableRow], store: Store, given: Mapping[str, Sequence[Experiment]]
) -> list[TableLine]:
    """Fill in the rows of a table with the results of a store.

    Args:
        rows: Rows of the table.
        store: Store of the results.
        given: Row -> experiments that were named for it, resolved. Recorded runs count too if they
            agree with the row in all but files, numbers of workers and the protocol.
    """
    runs = list(read_register(store).experiments.values()) if store.exists() else []
    return [_line(row, store, given.get(row.name, ()), runs) for row in rows]


def _line(
    row: TableRow, store: Store, given: Iterable[Experiment], runs: Iterable[Experiment]
) -> TableLine:
    if row.experiment is None:
        return TableLine(row, None, None)
    candidates = [*given, *(run for run in runs if matches(row, run))]
    found = []
    for experiment in candidates:
        measured = _measured(row, collect(store, Graph(experiment)))
        if measured is not None:
            found.append(
                TableLine(
                    row,
                    experiment,
                    measured,
                    incomparable_because(row, experiment, measured, store),
                    differences(row, experiment, measured),
                )
            )
    # Comparable numbers first, then the newest.
    return max(
        found,
        default=TableLine(row, None, None),
        key=lambda line: (not line.incomparable_because, _published_at(line)),
    )


def _published_at(line: TableLine) -> float:
    artifact = line.measured.artifact if line.measured else None
    return float(artifact.manifest["created"]) if artifact else 0.0


def _measured(row: TableRow, results: Results) -> Measurement | None:
    """Return the row's number: under its guidance, or under the chosen one on holdout noise."""
    if row.guidance is None:
        holdout = results.chosen_holdout()
        return None if holdout is None else holdout.measurement
    return results.headline(row.guidance)


def matches(row: TableRow, run: Experiment) -> bool:
    """Check whether a run is the row's experiment, but for files, workers, scales and protocol."""
    if row.experiment is None:
        return False
    scale = row.experiment.guidance.ig_scale if row.scale is None else row.scale
    if _science(row.experiment, scale) != _science(run, scale):
        return False
    if run.train.imported:
        return run.train.checkpoint_sha256 in row.checkpoints
    return _training(row.experiment) == _training(run)


def _science(experiment: Experiment, scale: float) -> dict[str, Any]:
    return {
        "model": experiment.model,
        "sampler": experiment.sampler.canonical(),
        "guidance": experiment.guidance_at(scale),
        "codec": experiment.data.codec,
    }


def _training(experiment: Experiment) -> dict[str, Any]:
    train = experiment.train
    return {
        "loss": experiment.loss,
        "optim": experiment.optim.canonical(),
        "steps": train.steps,
        "batch": train.batch_size,
        "seed": train.seed,
        "flip": experiment.data.flip,
        "imported": train.imported,
    }


def own_differences(lines: Iterable[TableLine]) -> list[str]:
    """List the differences of our own fingerprints from the first of them."""
    measured = [(line.row.name, line.measured.fingerprint) for line in lines if line.measured]
    found = []
    for name, fingerprint in measured[1:]:
        if fingerprint != measured[0][1]:
            reasons = "; ".join(measured[0][1].differences(fingerprint))
            found.append(f"{measured[0][0]} and {name}: {reasons}")
    return found


def remember_table(store: Store, table: str, lines: Iterable[TableLine], *, tracked: bool) -> None:
    """Record the runs in a table that were named for a row.

    Args:
        store: Store with the register.
        table: Name of the table.
        lines: Rows of the table.
        tracked: True if MLflow has the table, too.
    """
    pairs: list[tuple[str | None, str | None]] = [(None, None)] if tracked else []
    pairs += [
        (line.row.name, Graph(line.experiment).run_key)
        for line in lines
        if line.experiment is not None and not matches(line.row, line.experiment)
    ]
    key = content_key(["table", table])
    for row, run in pairs:
        remember(store, Record(kind="table", name=table, key=key, row=row, run=run))


def named_runs(register: Register) -> dict[str, Named]:
    """Return the runs that were named for the rows of each table and are still recorded."""
    runs, found = register.experiments, dict[str, "Named"]()
    for record in _tables(register):
        if record.row is not None and record.run in runs:
            rows = found.setdefault(record.name, {})
            rows.setdefault(record.row, []).append(runs[record.run])
    return found


def tracked_tables(register: Register) -> list[str]:
    """Return the names of the tables that MLflow is to have, in order."""
    return sorted({record.name for record in _tables(register) if record.row is None})


def _tables(register: Register) -> list[Record]:
    return [record for record in register.records if record.kind == "table"]
