"""`igdit table`: run what a table of the paper needs, then print and track it."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from experiments.tables import TABLES
from pipelines.collection import in_use
from pipelines.discretion import behind, where_to_compare
from pipelines.graph import Graph
from pipelines.pinned import resolve, unnamed_files
from pipelines.table import METRICS, among_ours, fill

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console

    from experiments import Experiment
    from experiments.tables import TableRow
    from pipelines.cli_results import TableOptions
    from pipelines.home import Home
    from pipelines.table import TableLine


OPTIONS = {
    ("sd-vae", "data.path"): "sd_latents",
    ("sd-vae", "data.codec_path"): "sd_vae",
    ("va-vae", "data.path"): "va_latents",
    ("va-vae", "data.codec_path"): "va_vae",
}
"""Codec and field of an experiment -> the option of the table that names it."""


def show_table(name: str, options: TableOptions, home: Home, console: Console) -> int:
    """Run what is asked for, then print and track the table; returns the exit code.

    Raises:
        ValueError: there is no such table or row, or a file is not named that a run needs.
        PipelineError: a run failed; what was measured before stays.
    """
    rows = _rows(name, options)
    given = _given(rows, options)
    store = home.store
    if options.run:
        _run(rows, given, home, console)
    if store.exists():
        with in_use(store):
            lines = fill(rows, store, given)
    else:
        lines = fill(rows, store, given)
    print_table(name, lines, console)
    folder = home.report / f"table-{name}"
    path = write_table(lines, folder)
    console.print(f"All metrics: {path}", highlight=False, soft_wrap=True)
    _track(name, lines, path, home, console)
    return 0


def _rows(name: str, options: TableOptions) -> list[TableRow]:
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, but got {name!r}")
    rows = list(TABLES[name]())
    names = [row.name for row in rows if row.experiment is not None]
    named = (*options.rows, *(entry.partition("=")[0] for entry in options.from_checkpoint))
    for wanted in named:
        if wanted not in names:
            raise ValueError(f"row must be one of {', '.join(names)}, but got {wanted!r}")
    return [row for row in rows if not options.rows or row.name in options.rows]


def _given(rows: Sequence[TableRow], options: TableOptions) -> dict[str, Experiment]:
    """Row -> its experiment with the files that the options name, pinned as far as they go."""
    files = {}
    for entry in options.from_checkpoint:
        name, _, path = entry.partition("=")
        if not path:
            raise ValueError(f"from_checkpoint must be ROW=FILE, but got {entry!r}")
        files[name] = path
    found = {}
    for row in rows:
        if row.experiment is not None:
            named = _named(row.experiment, files.get(row.name), options)
            found[row.name] = resolve(named, partly=True)
    return found


def _named(
    experiment: Experiment, checkpoint: str | None, options: TableOptions
) -> Experiment:  # fmt: skip
    data, codec = experiment.data, experiment.data.codec
    for field in ("path", "codec_path"):
        option = OPTIONS.get((codec, f"data.{field}"))
        if option is not None and getattr(options, option) is not None:
            data = replace(data, **{field: getattr(options, option)})
    evaluation = replace(experiment.evaluation, extractor_weights=options.extractor_weights,
                         reference=options.reference)  # fmt: skip
    train = replace(experiment.train, from_checkpoint=checkpoint)
    return replace(experiment, data=data, evaluation=evaluation, train=train,
                   resources=options.resources)  # fmt: skip


def _run(
    rows: Sequence[TableRow], given: dict[str, Experiment], home: Home, console: Console
) -> None:
    """Measure what rows lack, and no more: rows of one experiment together."""
    from pipelines.experiment_run import measure_scales

    todo = [line.row for line in fill(rows, home.store, given)
            if line.row.experiment is not None and line.measured is None]  # fmt: skip
    missing: dict[str, str] = {}
    for row in todo:
        experiment = given[row.name]
        for field, what in unnamed_files(experiment).items():
            option = OPTIONS.get((experiment.data.codec, field), field.partition(".")[2])
            missing[f"--{option.replace('_', '-')}"] = what
    if missing:
        named = "; ".join(f"{option} PATH: {what}" for option, what in missing.items())
        raise ValueError(f"the rows {', '.join(row.name for row in todo)} need files that are not "
                         f"named yet: {named}")  # fmt: skip
    together: dict[str, list[TableRow]] = {}
    for row in todo:
        key = Graph(resolve(given[row.name])).run_key
        together.setdefault(key, []).append(row)
    for group in together.values():
        scales = [row.scale for row in group if row.scale is not None]
        every = len(scales) < len(group)
        measure_scales(given[group[0].name], None if every else scales, home, console)


def print_table(name: str, lines: Sequence[TableLine], console: Console) -> None:
    """Print published numbers and ours, and in what the protocols differ."""
    table = Table(title=f"Table {name}: published numbers, and ours", title_justify="left",
                  title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
                  padding=(0, 1, 0, 0))  # fmt: skip
    for column in ("row", "method"):
        table.add_column(column)
    for column in ("epochs", "CFG", "FID published", "FID ours", "95 % interval", "difference",
                   "IS published", "IS ours"):  # fmt: skip
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*_cells(line))
    console.print(table)
    for text, rows in _by_text((line, line.obstacles) for line in lines).items():
        console.print(f"Not compared ({', '.join(rows)}): {text}.", highlight=False,
                      soft_wrap=True, markup=False)  # fmt: skip
    for text, rows in _by_text((line, line.differences) for line in lines).items():
        console.print(f"Differs from the published protocol ({', '.join(rows)}): {text}.",
                      highlight=False, soft_wrap=True, markup=False)  # fmt: skip
    for text in among_ours(lines):
        console.print(f"Ours differ: {text}.", highlight=False, soft_wrap=True, markup=False)
    console.print("Intervals are of the sampling alone; published numbers come without any.")


def _cells(line: TableLine) -> list[str]:
    published, measured = line.row.published, line.measured
    cells = [line.row.name, published.method, str(published.epochs or "-"),
             "yes" if published.cfg else "no", f"{published.fid:.2f}"]  # fmt: skip
    if measured is None:
        ours = [line.state, "", ""]
    else:
        low, high = measured.metrics["fid_low"], measured.metrics["fid_high"]
        difference = line.difference
        ours = [f"{measured.fid:.2f}", f"{low:.2f} .. {high:.2f}",
                line.state if difference is None else f"{difference:+.2f}"]  # fmt: skip
    scores = (published.inception_score,
              measured.metrics.get("inception_score") if measured else None)  # fmt: skip
    return [*cells, *ours, *("-" if score is None else f"{score:.1f}" for score in scores)]


def _by_text(found: Iterable[tuple[TableLine, tuple[str, ...]]]) -> dict[str, list[str]]:
    """Text -> the rows that it is said of."""
    texts: dict[str, list[str]] = {}
    for line, said in found:
        for text in said:
            texts.setdefault(text, []).append(line.row.name)
    return texts


def write_table(lines: Sequence[TableLine], folder: Path) -> Path:
    """Write every metric, published and ours, as CSV; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.csv"
    names = [f"{metric}_{whose}" for metric in METRICS for whose in ("published", "ours")]
    head = ["row", "method", "epochs", "cfg", "ig_scale", *names, "fid_low", "fid_high",
            "fid_difference", "state", "fingerprint", "not_compared_because",
            "protocol_differences", "source"]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        writer.writerows(_record(line) for line in lines)
    return path


def _record(line: TableLine) -> dict[str, object]:
    published, measured = line.row.published, line.measured
    ours = measured.metrics if measured else {}
    record: dict[str, object] = {
        "row": line.row.name, "method": published.method, "epochs": published.epochs,
        "cfg": published.cfg, "ig_scale": measured.scale if measured else line.row.scale,
        "fid_low": ours.get("fid_low"), "fid_high": ours.get("fid_high"),
        "fid_difference": line.difference, "state": line.state,
        "fingerprint": measured.fingerprint.id if measured else None,
        "not_compared_because": "; ".join(line.obstacles),
        "protocol_differences": "; ".join(line.differences), "source": published.source,
    }  # fmt: skip
    for metric in METRICS:
        record[f"{metric}_published"] = getattr(published, metric)
        record[f"{metric}_ours"] = ours.get(metric)
    return record


def _track(
    name: str, lines: Sequence[TableLine], path: Path, home: Home, console: Console
) -> None:  # fmt: skip
    """Bring MLflow up to date; being unable to is said, and loses nothing."""
    from pipelines.table_tracking import track_table
    from pipelines.tracking import MlflowTracker

    home.root.mkdir(parents=True, exist_ok=True)
    try:
        tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
        page = track_table(tracker, name, lines, [path])
        console.print(where_to_compare(home.tracking_uri, page, "this table"), highlight=False,
                      soft_wrap=True)  # fmt: skip
    except Exception as error:  # noqa: BLE001 - any server, any failure; nothing is lost
        console.print(behind(home.tracking_uri, error))
