"""Tables of the paper beside own results, on the terminal and as CSV."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from experiments.tables import TABLES
from pipelines.common.formatting import metric_interval, number
from pipelines.console.console import ScreenTable, log, numbers, print_facts, print_table, words
from pipelines.results.paper_table import METRICS, own_differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

    from pipelines.results.paper_table import TableLine


COLUMNS = (
    *words("row", "method", "ours"),
    *numbers("epochs", "CFG", "FID published", "FID ours", "95 % interval", "difference"),
    *numbers("IS published", "IS ours"),
)


def print_tables(console: Console) -> None:
    """Print the name of each table with a description."""
    descriptions = {}
    for name, make in TABLES.items():
        title = str(make.__doc__).partition("\n")[0].rstrip(".")
        descriptions[name] = f"{title} ({len(make())} rows)"
    print_facts(descriptions, console)
    log(
        console,
        "`igdit table NAME` shows a table; `igdit table NAME --help` lists the options that "
        "run its rows and track it in MLflow.",
    )


def print_paper_table(name: str, lines: Sequence[TableLine], console: Console) -> None:
    """Print published and own numbers, and the differences between their protocols."""
    title = f"Table {name}: published numbers and ours"
    print_table(ScreenTable(title, COLUMNS, map(_cells, lines)), console)
    for text, rows in _by_text((line, line.incomparable_because) for line in lines).items():
        log(
            console,
            f"Not compared ({', '.join(rows)}): {text}.",
        )
    for text, rows in _by_text((line, line.differences) for line in lines).items():
        log(
            console,
            f"Differs from the published protocol ({', '.join(rows)}): {text}.",
        )
    for text in own_differences(lines):
        log(console, f"Own results differ: {text}.")
    log(console, "Intervals cover the sampling error alone; published numbers have none.")


def write_table(lines: Sequence[TableLine], folder: Path) -> Path:
    """Write every published and own metric as CSV; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.csv"
    names = [f"{metric}_{whose}" for metric in METRICS for whose in ("published", "ours")]
    head = [
        "row",
        "method",
        "epochs",
        "cfg",
        "ig_scale",
        *names,
        "fid_low",
        "fid_high",
        "fid_difference",
        "state",
        "fingerprint",
        "not_compared_because",
        "protocol_differences",
        "source",
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(_record(line) for line in lines)
    return path


def _cells(line: TableLine) -> list[str]:
    published, measured = line.row.published, line.measured
    cells = [
        line.row.name,
        published.method,
        line.state,
        str(published.epochs or "-"),
        "yes" if published.cfg else "no",
        number(published.fid),
    ]
    if measured is None:
        ours = ["", "", ""]
    else:
        difference = line.difference
        ours = [
            number(measured.fid),
            metric_interval(measured.metrics),
            "" if difference is None else number(difference, sign="+"),
        ]
    scores = (
        published.inception_score,
        measured.metrics.get("inception_score") if measured else None,
    )
    return [*cells, *ours, *("-" if score is None else number(score, least=1) for score in scores)]


def _by_text(remarks: Iterable[tuple[TableLine, tuple[str, ...]]]) -> dict[str, list[str]]:
    """Group the names of rows by the remarks about them."""
    rows: dict[str, list[str]] = {}
    for line, texts in remarks:
        for text in texts:
            rows.setdefault(text, []).append(line.row.name)
    return rows


def _record(line: TableLine) -> dict[str, object]:
    published, measured = line.row.published, line.measured
    ours = measured.metrics if measured else {}
    record: dict[str, object] = {
        "row": line.row.name,
        "method": published.method,
        "epochs": published.epochs,
        "cfg": published.cfg,
        "ig_scale": measured.guidance.ig_scale if measured else line.row.scale,
        "fid_low": ours.get("fid_low"),
        "fid_high": ours.get("fid_high"),
        "fid_difference": line.difference,
        "state": line.state,
        "fingerprint": measured.fingerprint.id if measured else None,
        "not_compared_because": "; ".join(line.incomparable_because),
        "protocol_differences": "; ".join(line.differences),
        "source": published.source,
    }
    for metric in METRICS:
        record[f"{metric}_published"] = getattr(published, metric)
        record[f"{metric}_ours"] = ours.get(metric)
    return record
