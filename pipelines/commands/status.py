"""`igdit status`: show what runs in a home."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from pipelines.commands.parse import parse_options
from pipelines.console.console import make_console
from pipelines.store.home import Home


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
    from pipelines.console.status import render_status, watch_status
    from pipelines.status.read import read_status

    options = parse_options(StatusOptions, arguments, "igdit status")
    home, console = Home.default(), make_console()
    if options.watch and console.is_terminal:
        with suppress(KeyboardInterrupt):
            watch_status(home, console, options.every)
    else:
        console.print(render_status(read_status(home)))
    return 0
