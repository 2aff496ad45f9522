"""Commands of `igdit` that look at results, or judge what others made."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from experiments import EXPERIMENTS, Resources, get_experiment
from experiments.sit import GPUS
from experiments.tables import TABLES
from pipelines.cli_help import HELP, asks_for_help, help_of
from pipelines.cli_parse import parse_options
from pipelines.console import log, make_console
from pipelines.errors import UsageError
from pipelines.home import Home
from pipelines.pinned import resolve


@dataclass(frozen=True)
class EvaluateOptions:
    """How `igdit evaluate` judges a folder of PNG files, an .npz file or a set of shards."""

    reference: Path | None = None
    """What they are compared with: an .npz of the ADM protocol (mu, sigma), images of any of the
    kinds above, or other images (folders of JPEG and others, with class folders or without;
    Parquet files, tars, a zip), cropped to the size of those that are judged. None: scikit-learn's
    digits."""
    protocol: str | None = None
    """Protocol to follow to the letter; None: the metrics of all images that there are."""
    extractor: str = "digits-cnn"
    """Without a protocol: feature extractor, digits-cnn or inception-v3-compat."""
    weights: Path | None = None
    """Weights file of inception-v3-compat."""
    num_samples: int | None = None
    """Judge the first so many images; None: all, or as many as the protocol says."""
    groups: int = 50
    """Groups of the jackknife behind the intervals."""
    in_order: bool = False
    """Any run of the images is a fair sample of all, as rows in the order of their drawing are.
    Otherwise they are shuffled, as files that are sorted by class must be."""
    resources: Resources = field(default_factory=Resources)
    """Workers."""


@dataclass(frozen=True)
class EvaluateCommand:
    """What `igdit evaluate` takes."""

    options: Annotated[EvaluateOptions, tyro.conf.arg(name="")]


def evaluate_command(arguments: list[str]) -> int:
    """`igdit evaluate`."""
    from pipelines.evaluate_command import evaluate_images

    if asks_for_help(arguments):
        arguments = ["PATH", *arguments]
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("igdit evaluate needs images: a folder of PNG files or an .npz file")
    path, *rest = arguments
    one = replace(EvaluateOptions().resources, num_workers=1)
    default = EvaluateCommand(EvaluateOptions(resources=one))
    command = parse_options(EvaluateCommand, rest, f"igdit evaluate {path}", default)
    return evaluate_images(Path(path), command.options, Home.default(), make_console())


def inspect_command(arguments: list[str]) -> int:
    """`igdit inspect`."""
    from pipelines.inspect_command import inspect

    if set(HELP) & set(arguments):
        log(make_console(), help_of("inspect"))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError(
            "igdit inspect needs one path: a checkpoint, a codec, or a folder of latents"
        )
    return inspect(Path(arguments[0]), make_console())


@dataclass(frozen=True)
class TableOptions:
    """What `igdit table` takes."""

    run: bool = False
    """Run the rows that are not measured yet, and track the table; without it the table shows what
    is there, and changes nothing in MLflow."""
    track: bool = False
    """Make the table one comparison in MLflow, from what is there."""
    rows: tuple[str, ...] = ()
    """Run and print these rows only; none: all. The CSV file and the comparison have them all."""
    from_checkpoint: tuple[str, ...] = ()
    """ROW=FILE: the published checkpoint that stands for the training of a row; may be repeated."""
    sd_latents: str | None = None
    """SD-VAE latents, for the rows of SiT."""
    sd_vae: str | None = None
    """Weights of SD-VAE."""
    va_latents: str | None = None
    """VA-VAE latents, for the rows of LightningDiT."""
    va_vae: str | None = None
    """Weights of VA-VAE."""
    extractor_weights: str | None = None
    """Inception-v3 of 2015 (weights-inception-2015-12-05-6726825d.pth)."""
    reference: str | None = None
    """VIRTUAL_imagenet256_labeled.npz."""
    resources: Resources = GPUS
    """Workers."""


def table_command(arguments: list[str]) -> int:
    """`igdit table`."""
    from pipelines.table_command import show_table
    from pipelines.table_view import print_tables

    if not arguments or asks_for_help(arguments):
        if arguments:
            log(make_console(), help_of("table"))
        print_tables(make_console())
        return 0
    if arguments[0].startswith("-"):
        raise UsageError(
            f"igdit table needs a table before its options: one of {', '.join(TABLES)}"
        )
    name, *rest = arguments
    options = parse_options(TableOptions, rest, f"igdit table {name}")
    return show_table(name, options, Home.default(), make_console())


@dataclass(frozen=True)
class ExportOptions:
    """What `igdit export` takes."""

    ig_scale: float | None = None
    """Internal guidance scale; None: the experiment's own."""
    report: bool = False
    """Samples of the bank on which what was chosen is reported."""


def export_command(arguments: list[str]) -> int:
    """`igdit export`."""
    from pipelines.export_command import export_samples
    from pipelines.report_command import find_run

    if asks_for_help(arguments[:1]) or asks_for_help(arguments[1:2]):
        arguments = ["RUN", "TARGET", "--help"]
    if len(arguments) < 2 or any(word.startswith("-") for word in arguments[:2]):
        raise UsageError(
            "igdit export needs a run (a name, or the first digits of its key) and a "
            "target (NAME.npz, or a folder for PNG files)"
        )
    word, target, *rest = arguments
    options = parse_options(ExportOptions, rest, f"igdit export {word} {target}")
    home = Home.default()
    exact = resolve(get_experiment(word)) if word in EXPERIMENTS else None
    run = find_run(home, word, exact)
    count = export_samples(home, run, Path(target), options.ig_scale, report=options.report)
    log(make_console(), f"{count:,} images: {target}")
    return 0


@dataclass(frozen=True)
class StatusOptions:
    """What `igdit status` takes."""

    watch: bool = False
    """Keep it on the screen until Ctrl-C."""
    every: float = 1.0
    """Seconds between looks, with --watch."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.every < float("inf"):
            raise ValueError(f"every must be at least 0.1 seconds, but got {self.every}")


def status_command(arguments: list[str]) -> int:
    """`igdit status`."""
    from pipelines.status import read_status
    from pipelines.status_view import view, watch_status

    options = parse_options(StatusOptions, arguments, "igdit status")
    home, console = Home.default(), make_console()
    if options.watch and console.is_terminal:
        with suppress(KeyboardInterrupt):
            watch_status(home, console, options.every)
    else:
        console.print(view(read_status(home)))
    return 0


@dataclass(frozen=True)
class NoOptions:
    """What `igdit store ls` takes: nothing."""


@dataclass(frozen=True)
class CollectOptions:
    """What `igdit store gc` takes."""

    forget: tuple[str, ...] = ()
    """Recorded runs (the first digits of their key) whose artifacts are not kept any more."""
    delete: bool = False
    """Delete; without it the command only says what would go."""


def store_command(arguments: list[str]) -> int:
    """`igdit store ls` and `igdit store gc`."""
    from pipelines.collection import collect_garbage, find_garbage
    from pipelines.report import print_garbage, print_store

    if asks_for_help(arguments):
        log(make_console(), help_of("store"))
        return 0
    if not arguments or arguments[0] not in ("ls", "gc"):
        raise UsageError(f"igdit store needs ls or gc, but got {' '.join(arguments) or 'nothing'}")
    store, console = Home.default().store, make_console()
    if arguments[0] == "ls":
        parse_options(NoOptions, arguments[1:], "igdit store ls")
        print_store(store, console)
        return 0
    options = parse_options(CollectOptions, arguments[1:], "igdit store gc")
    collect = collect_garbage if options.delete else find_garbage
    print_garbage(collect(store, options.forget), console, deleted=options.delete)
    return 0


@dataclass(frozen=True)
class UiOptions:
    """What `igdit ui` takes."""

    port: int = 5000
    """Port on loopback."""


def ui_command(arguments: list[str]) -> int:
    """`igdit ui`."""
    from pipelines.ui import serve_ui

    options = parse_options(UiOptions, arguments, "igdit ui")
    return serve_ui(Home.default(), options.port, partial(log, make_console()))


@dataclass(frozen=True)
class TrackOptions:
    """What `igdit track rebuild` takes."""

    storage: str | None = None
    """Database of the studies (SQLAlchemy URL); None: that of IGDIT_STUDY_STORAGE, or study.db."""


def track_command(arguments: list[str]) -> int:
    """`igdit track rebuild`."""
    from pipelines.rebuild import rebuild

    if asks_for_help(arguments):
        log(make_console(), help_of("track"))
        return 0
    if not arguments or arguments[0] != "rebuild":
        raise UsageError(f"igdit track needs rebuild, but got {' '.join(arguments) or 'nothing'}")
    options = parse_options(TrackOptions, arguments[1:], "igdit track rebuild")
    return rebuild(Home.default(), options.storage, partial(log, make_console()))
