"""What the store remembers of tables: which MLflow has, and which runs were named for their rows.

A run with a checkpoint that a row does not know by its digest is the row's only because somebody
said so (`--from-checkpoint ROW=FILE`). That is kept, so that a table can be made again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipelines.collection import recorded_runs, warn_of_record
from pipelines.graph import Graph
from pipelines.keys import content_key
from pipelines.table import fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from experiments import Experiment
    from pipelines.artifacts import Store
    from pipelines.table import TableLine

    Named = dict[str, list[Experiment]]
    """Row -> runs that were named for it."""

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
        if line.experiment is not None and not fits(line.row, line.experiment)
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
