"""Tables of the paper in MLflow: one experiment, a run for each row, published numbers beside ours.

Logging a table again changes nothing; the run of a row is replaced when its number changes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pipelines.graph.graph import Graph
from pipelines.results.paper_table import METRICS
from pipelines.tracking.client import DELETED, source_tags
from pipelines.tracking.metrics import Value, timestamp_ms
from pipelines.tracking.views import TABLE_NOTE, table_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pipelines.results.paper_table import TableLine
    from pipelines.tracking.client import MlflowTracker

ROW_TAG, NUMBER_TAG = "igdit.table_row", "igdit.table_number"
VIEW = "igdit"


def track_table(
    tracker: MlflowTracker, name: str, lines: Sequence[TableLine], files: Iterable[Path]
) -> str:
    """Bring the table's runs up to date.

    Returns:
        Path of the page that compares the rows, below the server's address.
    """
    client = tracker.client
    with tracker.alone():
        experiment_id = tracker.experiment(f"table-{name}")
        known: dict[str, list[Any]] = {}
        for run in tracker.runs_of(experiment_id, f"tags.`{ROW_TAG}` != ''"):
            known.setdefault(run.data.tags[ROW_TAG], []).append(run)
        for order, line in enumerate(lines):
            number, run_id = _number(line), None
            for run in known.get(line.row.name, []):
                if run.data.tags[NUMBER_TAG] == number and run_id is None:
                    run_id = tracker.live(run).info.run_id
                elif run.info.lifecycle_stage != DELETED:
                    client.delete_run(run.info.run_id)
            if run_id is None:
                source = source_tags(f"igdit table {name} --track")
                run_id = _create(tracker, experiment_id, line, order, source | {NUMBER_TAG: number})
            for key, text in _tags(line).items():
                client.set_tag(run_id, key, text)
            tracker.log(run_id, _values(line))
            for path in files:
                client.log_artifact(run_id, str(path))
        return tracker.save_view(experiment_id, VIEW, table_view(), TABLE_NOTE)


def _number(line: TableLine) -> str:
    """Return the key of our number of a row; `none` if it is not measured."""
    return "none" if line.measured is None else line.measured.point.evaluate.key


def _create(
    tracker: MlflowTracker, experiment_id: str, line: TableLine, order: int, tags: dict[str, str]
) -> str:
    row = line.row
    started = timestamp_ms(line.measured) if line.measured else round(1000 * time.time())
    tags = {**tags, ROW_TAG: row.name}
    run = tracker.client.create_run(experiment_id, started, tags, row.name)
    tracker.log_parameters(
        run,
        {
            "row": f"{order:02d}",
            "method": row.published.method,
            "epochs": row.published.epochs,
            "cfg": row.published.cfg,
            "source": row.published.source,
            "ig_scale": line.measured.guidance.ig_scale if line.measured else row.scale,
        },
    )
    tracker.client.set_terminated(run.info.run_id, "FINISHED", started)
    return str(run.info.run_id)


def _tags(line: TableLine) -> dict[str, str]:
    """Return the tags of a row, which may change."""
    tags = {
        "state": line.state,
        "not_compared_because": "; ".join(line.incomparable_because) or "-",
        "protocol_differences": "; ".join(line.differences) or "-",
    }
    if line.measured is not None and line.experiment is not None:
        tags |= {
            "fingerprint": line.measured.fingerprint.id,
            "igdit.run_key": Graph(line.experiment).run_key,
        }
    return tags


def _values(line: TableLine) -> list[Value]:
    """Return own and published numbers under separate names, so that a chart shows both."""
    published, measured = line.row.published, line.measured
    stamp = timestamp_ms(measured) if measured else 0
    values = [
        Value(f"{key}_published", 0, float(number), stamp)
        for key in METRICS
        if (number := getattr(published, key)) is not None
    ]
    if measured is not None:
        keys = (*METRICS, "fid_low", "fid_high")
        values += [
            Value(key, 0, float(measured.metrics[key]), stamp)
            for key in keys
            if key in measured.metrics
        ]
    if line.difference is not None:
        values.append(Value("fid_difference", 0, line.difference, stamp))
    return values
