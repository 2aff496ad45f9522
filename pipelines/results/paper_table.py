"""One of the paper's tables, with what was measured here beside what was published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.graph.garbage import recorded_runs, warn_of_record
from pipelines.graph.graph import Graph
from pipelines.results.comparability import differences, incomparable_because
from pipelines.results.measurements import collect
from pipelines.store.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from experiments import Experiment
    from experiments.tables import TableRow
    from pipelines.results.measurements import Measurement, Results
    from pipelines.store.base import Store

    Named = dict[str, list[Experiment]]


METRICS = ("fid", "sfid", "inception_score", "precision", "recall", "balanced_fid")
"""Metrics that papers publish, by their names here."""


@dataclass(frozen=True)
class TableLine:
    """A row of the table, filled in."""

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
    """Fill in what the store holds.

    Args:
        rows: Rows of the table.
        store: Where results lie.
        given: Row -> experiments that were named for it, files pinned. Besides, recorded runs count
            that agree with the row in all that is not a file, a number of workers or the protocol.
    """
    runs = list(recorded_runs(store).values()) if store.exists() else []
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
    # What can be compared first, then the newest.
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


FOLDER = ".tables/"


def remember_table(store: Store, table: str, lines: Iterable[TableLine], *, tracked: bool) -> None:
    """Record the runs in a table that were named for a row.

    Args:
        store: Where.
        table: Its name.
        lines: Its rows.
        tracked: Whether MLflow has it, too.
    """
    pairs: list[tuple[str | None, str | None]] = [(None, None)] if tracked else []
    pairs += [
        (line.row.name, Graph(line.experiment).run_key)
        for line in lines
        if line.experiment is not None and not matches(line.row, line.experiment)
    ]
    for row, run in pairs:
        record = {"table": table, "row": row, "run": run}
        store.write_record(f"{FOLDER}{content_key(record)}.json", json.dumps(record))


def shown_tables(store: Store) -> dict[str, Named]:
    """Tables that were shown, with the runs that were named for their rows and are still recorded.

    Records that cannot be read are warned of.
    """
    runs, found = recorded_runs(store), dict[str, "Named"]()
    for table, row, run in _records(store):
        named = found.setdefault(table, {})
        if row is not None and run in runs:
            named.setdefault(row, []).append(runs[run])
    return found


def tracked_tables(store: Store) -> list[str]:
    """Names of the tables that MLflow is to have, in order."""
    return sorted({table for table, row, _ in _records(store) if row is None})


def _records(store: Store) -> Iterator[tuple[str, str | None, str | None]]:
    """Table, row and run key of each record; without a row it says that MLflow has the table."""
    for name, text in store.records(FOLDER).items():
        try:
            record = json.loads(text)
            table, row, run = (record[key] for key in ("table", "row", "run"))
            hash((table, row, run))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            remedy = "Delete it and show the table again, with what was named for its rows"
            warn_of_record(store, FOLDER + name, f"{error!r}", remedy)
            continue
        yield table, row, run
