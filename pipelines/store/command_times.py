"""When the commands ran that made a run's results, kept in the store beside them.

    .commands/RUN-KEY/START          a command that had something to build was started
    .commands/RUN-KEY/START-END      the same command has ended (times in milliseconds)

A record is written once and never changed, so that every process tells the same of a run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.store.base import Store

FOLDER = ".commands/"


@dataclass(frozen=True)
class CommandTimes:
    """The commands of a run, in milliseconds since the epoch."""

    started_ms: int | None = None
    """Start of the first; None if none was recorded."""
    ended_ms: int | None = None
    """End of the last that ended; None if none did."""
    is_open: bool = False
    """Whether the one that was started last has not ended: it runs, or was killed."""


def record_start(store: Store, run_key: str, started: float) -> None:
    """Record that a command was started, at a time in seconds since the epoch."""
    _write(store, run_key, f"{_ms(started)}")


def record_end(store: Store, run_key: str, started: float) -> None:
    """Record that the command that was started at a time ends now."""
    _write(store, run_key, f"{_ms(started)}-{_ms(time.time())}")


def command_times(store: Store, run_key: str) -> CommandTimes:
    """Read when the commands of a run were started and ended."""
    names = [name.split("-") for name in store.record_times(_folder(run_key))]
    times = [tuple(map(int, parts)) for parts in names if all(map(str.isdigit, parts))]
    if not times:
        return CommandTimes()
    ended = {started: end for started, *rest in times for end in rest}
    starts = [started for started, *_ in times]
    return CommandTimes(min(starts), max(ended.values(), default=None), max(starts) not in ended)


def forget_commands(store: Store, run_key: str) -> None:
    """Remove what is recorded of a run's commands."""
    for name in store.record_times(_folder(run_key)):
        store.remove_record(_folder(run_key) + name)


def _folder(run_key: str) -> str:
    return f"{FOLDER}{run_key}/"


def _write(store: Store, run_key: str, name: str) -> None:
    store.write_record(_folder(run_key) + name, f"{name}\n")


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
