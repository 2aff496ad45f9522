"""Commands of `igdit` that read results, or evaluate images of other programs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.commands.help import HELP, asks_for_help, help_of
from pipelines.commands.parse import parse_options
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console
from pipelines.store.home import Home


def inspect_command(arguments: list[str]) -> int:
    """Run `igdit inspect`."""
    from pipelines.inspection.checkpoint import inspect

    if set(HELP) & set(arguments):
        log(make_console(), help_of("inspect"))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError(
            "igdit inspect needs one path: a checkpoint, a codec, or a folder of latents"
        )
    return inspect(Path(arguments[0]), make_console())


@dataclass(frozen=True)
class StatusOptions:
    """Options of `igdit status`."""

    watch: bool = False
    """Refresh the status until Ctrl-C."""
    every: float = 1.0
    """Seconds between two refreshes with --watch."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.every < float("inf"):
            raise ValueError(f"every must be at least 0.1 seconds, but got {self.every}")


def status_command(arguments: list[str]) -> int:
    """Run `igdit status`."""
    from pipelines.console.status import view, watch_status
    from pipelines.status.read import read_status

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
    """Options of `igdit store ls`: none."""


@dataclass(frozen=True)
class CollectOptions:
    """What `igdit store gc` takes."""

    forget: tuple[str, ...] = ()
    """What to forget of what `igdit store ls` lists, so that its artifacts are not kept: the name
    of a run, study, table or evaluation (study/NAME if a run has it, too), or digits of a key."""
    delete: bool = False
    """Delete the artifacts. Without it the command only lists them."""


def store_command(arguments: list[str]) -> int:
    """Run `igdit store ls` and `igdit store gc`."""
    from pipelines.console.results import print_freed, print_garbage, print_store
    from pipelines.graph.garbage import Garbage, collect_garbage, find_garbage

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

    def announce(garbage: Garbage) -> None:
        print_garbage(garbage, console)

    if options.delete:
        garbage = collect_garbage(store, options.forget, announce)
    else:
        garbage = find_garbage(store, options.forget)
        announce(garbage)
    print_freed(garbage, console, deleted=options.delete)
    return 0


@dataclass(frozen=True)
class UiOptions:
    """Options of `igdit ui`."""

    port: int = 5000
    """Port of the server, on loopback."""


def ui_command(arguments: list[str]) -> int:
    """Run `igdit ui`."""
    from pipelines.tracking.ui import serve_ui

    options = parse_options(UiOptions, arguments, "igdit ui")
    return serve_ui(Home.default(), options.port, partial(log, make_console()))
