"""`igdit table`: compare a table of the paper with own results; optionally run and track it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments import Resources  # noqa: TC001 - tyro resolves it at run time
from experiments.sit import EIGHT_GPUS
from experiments.tables import TABLES
from pipelines.commands.parse import asks_for_help, parse_options
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console
from pipelines.console.paper_table import print_paper_table, write_table
from pipelines.graph.garbage import in_use
from pipelines.graph.graph import Graph
from pipelines.graph.resolve import resolve, unnamed_files
from pipelines.results.paper_table import fill, named_runs, remember_table
from pipelines.store.home import Home
from pipelines.store.register import read_register
from pipelines.tracking.messages import behind, where_to_compare

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from experiments import Experiment
    from experiments.tables import TableRow
    from pipelines.results.paper_table import TableLine
    from pipelines.store.base import Store


TABLE_HELP = """\
usage: igdit table NAME [options]

Compare a table of the paper with own results, row by row. --run runs the rows that are missing.

options: --run, --track, --rows and the files that rows need; `igdit table NAME --help` lists them.

NAME is one of
"""
CODEC_OPTIONS = {
    ("sd-vae", "data.path"): "sd_latents",
    ("sd-vae", "data.codec_path"): "sd_vae",
    ("va-vae", "data.path"): "va_latents",
    ("va-vae", "data.codec_path"): "va_vae",
}
"""Codec and field of an experiment -> the option of the table that sets it."""


@dataclass(frozen=True)
class TableOptions:
    """Options of `igdit table`."""

    run: bool = False
    """Run the rows that are not measured yet, and track the table in MLflow. Without it the table
    shows what is measured, and MLflow is not changed."""
    track: bool = False
    """Track the table as one comparison in MLflow, without running anything."""
    rows: tuple[str, ...] = ()
    """Rows to run and print; none: all. The CSV file and the comparison always hold all rows."""
    from_checkpoint: tuple[str, ...] = ()
    """ROW=FILE: published checkpoint that replaces the training of a row; several may be given."""
    sd_latents: str | None = None
    """Folder of SD-VAE latents, for the rows of SiT."""
    sd_vae: str | None = None
    """Weights of SD-VAE."""
    va_latents: str | None = None
    """Folder of VA-VAE latents, for the rows of LightningDiT."""
    va_vae: str | None = None
    """Weights of VA-VAE."""
    extractor_weights: str | None = None
    """Weights of the Inception-v3 of 2015 (weights-inception-2015-12-05-6726825d.pth)."""
    reference: str | None = None
    """ADM's reference for ImageNet 256 x 256 (VIRTUAL_imagenet256_labeled.npz)."""
    resources: Resources = EIGHT_GPUS
    """Workers and batch sizes."""


def table_command(arguments: list[str]) -> int:
    """Run `igdit table`."""
    from pipelines.console.paper_table import print_tables

    if not arguments or asks_for_help(arguments):
        if arguments:
            log(make_console(), TABLE_HELP.rstrip())
        print_tables(make_console())
        return 0
    if arguments[0].startswith("-"):
        raise UsageError(
            f"igdit table needs a table before its options: one of {', '.join(TABLES)}"
        )
    name, *rest = arguments
    options = parse_options(TableOptions, rest, f"igdit table {name}")
    return show_table(name, options, Home.default(), make_console())


def show_table(name: str, options: TableOptions, home: Home, console: Console) -> int:
    """Run rows if asked to, then print the table and track it if asked to; returns the exit code.

    Raises:
        ValueError: If there is no such table or row, or a run needs a file that is not named.
        PipelineError: If a run failed; earlier measurements stay.
    """
    chosen = _rows(name, options)
    checkpoints = _checkpoints(chosen, options)
    experiments = _experiments(chosen, checkpoints, options)
    store = home.store
    if options.run:
        candidates = _candidates(experiments, checkpoints, store)
        _run(chosen, experiments, candidates, home, console)
    rows = TABLES[name]()
    if store.exists():
        with in_use(store):
            lines = fill(rows, store, _candidates(experiments, checkpoints, store))
            remember_table(store, name, lines, tracked=options.run or options.track)
    else:
        lines = fill(rows, store, {})
    print_paper_table(name, [line for line in lines if line.row in chosen], console)
    path = write_table(lines, home.table_folder(name))
    log(console, f"All metrics of all rows: {path}")
    if options.run or options.track:
        _track(name, lines, path, home, console)
    return 0


def _candidates(
    experiments: dict[str, Experiment], checkpoints: dict[str, str], store: Store
) -> dict[str, list[Experiment]]:
    """Return row -> its experiments, now and in earlier tables; a checkpoint replaces those."""
    candidates: dict[str, list[Experiment]] = {}
    tables = named_runs(read_register(store)) if store.exists() else {}
    for named in tables.values():
        for row, runs in named.items():
            if row not in checkpoints:
                candidates.setdefault(row, []).extend(runs)
    for row, experiment in experiments.items():
        candidates.setdefault(row, []).append(experiment)
    return candidates


def _rows(name: str, options: TableOptions) -> list[TableRow]:
    """Return the rows that the options select."""
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, but got {name!r}")
    rows = list(TABLES[name]())
    names = [row.name for row in rows if row.experiment is not None]
    for wanted in options.rows:
        if wanted not in names:
            raise ValueError(f"row must be one of {', '.join(names)}, but got {wanted!r}")
    return [row for row in rows if not options.rows or row.name in options.rows]


def _checkpoints(rows: Sequence[TableRow], options: TableOptions) -> dict[str, str]:
    """Parse --from-checkpoint: row -> published checkpoint."""
    names = [row.name for row in rows if row.experiment is not None]
    checkpoints: dict[str, str] = {}
    for entry in options.from_checkpoint:
        name, _, path = entry.partition("=")
        if not path:
            raise ValueError(f"from_checkpoint must be ROW=FILE, but got {entry!r}")
        if name not in names:
            asked = " (those of --rows)" if options.rows else ""
            raise ValueError(
                f"from_checkpoint must name one of the rows {', '.join(names)}{asked},"
                f" but got {name!r}"
            )
        if name in checkpoints:
            raise ValueError(f"from_checkpoint must name a row once, but got {name!r} twice")
        checkpoints[name] = path
    return checkpoints


def _experiments(
    rows: Sequence[TableRow], checkpoints: dict[str, str], options: TableOptions
) -> dict[str, Experiment]:
    """Return row -> its experiment with the files of the options, resolved as far as possible."""
    return {
        row.name: resolve(
            _with_options(row.experiment, checkpoints.get(row.name), options), partly=True
        )
        for row in rows
        if row.experiment is not None
    }


def _with_options(
    experiment: Experiment, checkpoint: str | None, options: TableOptions
) -> Experiment:
    """Return the experiment with the files and resources of the options."""
    data, codec = experiment.data, experiment.data.codec
    for field in ("path", "codec_path"):
        option = CODEC_OPTIONS.get((codec, f"data.{field}"))
        if option is not None and getattr(options, option) is not None:
            data = replace(data, **{field: getattr(options, option)})
    evaluation = replace(
        experiment.evaluation,
        extractor_weights=options.extractor_weights,
        reference=options.reference,
    )
    train = replace(experiment.train, from_checkpoint=checkpoint)
    return replace(
        experiment, data=data, evaluation=evaluation, train=train, resources=options.resources
    )


def _run(
    rows: Sequence[TableRow],
    experiments: dict[str, Experiment],
    candidates: dict[str, list[Experiment]],
    home: Home,
    console: Console,
) -> None:
    """Measure the missing rows, those of one experiment together.

    Raises:
        ValueError: If a run needs a file that is not named.
        PipelineError: If a run failed.
    """
    from pipelines.commands.run import measure_guidances

    missing = [
        line.row
        for line in fill(rows, home.store, candidates)
        if line.row.experiment is not None and line.measured is None
    ]
    unnamed: dict[str, str] = {}
    for row in missing:
        experiment = experiments[row.name]
        for field, description in unnamed_files(experiment).items():
            option = CODEC_OPTIONS.get((experiment.data.codec, field), field.partition(".")[2])
            unnamed[f"--{option.replace('_', '-')}"] = description
    if unnamed:
        files = "; ".join(f"{option} PATH: {text}" for option, text in unnamed.items())
        raise ValueError(
            f"the rows {', '.join(row.name for row in missing)} need files that are not named: "
            f"{files}"
        )
    by_run: dict[str, list[TableRow]] = {}
    for row in missing:
        key = Graph(resolve(experiments[row.name])).run_key
        by_run.setdefault(key, []).append(row)
    for group in by_run.values():
        experiment = experiments[group[0].name]
        guidances = [row.guidance for row in group if row.guidance is not None]
        if len(guidances) < len(group):  # a row without guidance shows the best of all
            guidances = list(experiment.guidances)
        measure_guidances(experiment, guidances, home, console)


def _track(name: str, lines: Sequence[TableLine], path: Path, home: Home, console: Console) -> None:
    """Bring MLflow up to date; a failure is logged and loses nothing."""
    from pipelines.tracking.client import MlflowTracker
    from pipelines.tracking.table import track_table

    home.root.mkdir(parents=True, exist_ok=True)
    try:
        tracker = MlflowTracker(home.tracking_uri, home.mlartifacts, home.store)
        page = track_table(tracker, name, lines, [path])
        log(console, where_to_compare(home.tracking_uri, page, "this table"))
    except Exception as error:  # noqa: BLE001 - any server, any failure; nothing is lost
        log(console, behind(home.tracking_uri, error), "yellow")
