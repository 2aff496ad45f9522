"""Status of a home on the terminal."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from pipelines.common.formatting import clock
from pipelines.console.console import ScreenTable, numbers, words
from pipelines.console.progress import time_ago, training_text
from pipelines.status.read import read_status
from pipelines.store.keys import Ref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from pipelines.status.activity import Build, ProcessState
    from pipelines.status.read import Status, Task
    from pipelines.store.home import Home
    from pipelines.store.locks import Holder


MAX_TASKS = 12
"""Most tasks that are listed; the rest are counted."""
MIN_DONE = 3
"""Fewest artifacts or trials from which the time left is estimated."""


def watch_status(home: Home, console: Console, every: float) -> None:
    """Show the status until interrupted, and refresh it every so many seconds."""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(render_status(read_status(home)), refresh=True)
            time.sleep(every)


def render_status(status: Status) -> RenderableType:
    """Format the status for a console."""
    parts: list[RenderableType] = [*_head(status)]
    for process in status.working:
        parts += ["", *_process(process, status.now)]
    if status.tasks:
        parts += ["", _tasks(status)]
    for process in status.gone:
        parts += ["", _gone(process, status.now)]
    if status.events:
        parts += ["", *_events(status)]
    parts += [_line(f"note: {note}", style="yellow") for note in status.notes]
    return Group(*parts)


def _line(text: str, style: str = "") -> Text:
    """Return a line without control characters, which a terminal would obey."""
    return Text(_printable(text), style=style, overflow="fold")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _head(status: Status) -> Iterator[Text]:
    count = len(status.working)
    if count:
        running = "1 process is running" if count == 1 else f"{count} processes are running"
        yield _line(f"{running} in {status.root}", "bold")
    elif status.tasks:
        yield _line(f"No run or study is running in {status.root}, but these tasks are", "bold")
    else:
        yield _line(f"Nothing is running in {status.root}", "bold")
    last = status.last
    if last is not None and not count:
        took = clock(max(last.updated - last.started, 0))
        yield _line(
            f"Last: {last.title}, {last.outcome} {time_ago(last.updated, status.now)} on "
            f"{last.host} after {took}"
        )
        if last.news:
            yield _line(last.news)


def _process(process: ProcessState, now: float) -> Iterator[Text]:
    yield _line(
        f"{process.title}: {process.phase} for {clock(max(now - process.started, 0))}, on "
        f"{process.host} (pid {process.pid}), updated {time_ago(process.updated, now)}",
        "bold cyan",
    )
    if process.where:
        yield _line(f"  {process.where}")
    trials = process.trials
    if trials is not None:
        left = _pace(
            trials.complete - trials.at_first,
            trials.wanted - trials.complete,
            now - process.started,
        )
        more = "".join(
            f", {n} {word}"
            for n, word in (
                (trials.running, "running"),
                (trials.pruned, "pruned"),
                (trials.failed, "failed"),
            )
            if n
        )
        yield _line(f"  trials    {trials.complete} of {trials.wanted} complete{more}{left}")
    for build in process.builds:
        yield from _build(build, now)
    if process.news:
        yield _line(f"  last      {process.news}")


def _build(build: Build, now: float) -> Iterator[Text]:
    left = _pace(build.done, build.total - build.done, now - build.started)
    count = f"{build.done} of {build.total} artifacts" if build.total else "no artifact yet"
    yield _line(f"  {build.name}: {count}{left}")
    if build.training is not None:
        yield _line(f"    train   {training_text(build.training, now)}")
    if build.waiting:
        yield _line(f"    waiting for {build.waiting}, which another process builds")


def _pace(done: int, left: int, seconds: float) -> str:
    """Format the time left at the pace so far; empty if too little is done."""
    if done < MIN_DONE or left <= 0 or seconds <= 0:
        return ""
    return f", about {clock(left * seconds / done)} left at this pace"


def _tasks(status: Status) -> ScreenTable:
    names = {(process.host, process.pid): process.title for process in status.working}
    builds = {build.trajectory: build for process in status.working for build in process.builds}
    rows = []
    for task in status.tasks[:MAX_TASKS]:
        lease = (
            ""
            if task.lease is None
            else names.get((task.lease.host, task.lease.pid), _place(task.lease))
        )
        build = builds.get(task.ref.key)
        cells = (
            task.ref.short,
            task.label or ("" if build is None else build.name),
            lease,
            _worker(task),
            clock(max(status.now - task.since, 0)),
        )
        rows.append([_printable(cell) for cell in cells])
    if len(status.tasks) > MAX_TASKS:
        rows.append([f"and {len(status.tasks) - MAX_TASKS} more", "", "", "", ""])
    columns = [*words("in flight", "part of", "leased by", "worker"), *numbers("for")]
    return ScreenTable("", columns, rows)


def _worker(task: Task) -> str:
    if task.worker is not None:
        return _place(task.worker)
    return "" if task.ref.kind == "train" else "none yet"


def _place(holder: Holder) -> str:
    return f"{holder.host} pid {holder.pid}" if holder.pid else holder.host


def _gone(process: ProcessState, now: float) -> Text:
    text = (
        f"{process.title} died on {process.host} (pid {process.pid}); last update "
        f"{time_ago(process.updated, now)}"
    )
    steps = [
        f"{build.name} at step {build.training.step} of {build.training.steps}"
        for build in process.builds
        if build.training is not None
    ]
    text += f": {'; '.join(steps)}" if steps else ""
    return _line(f"{text}. Run the same command to continue from the published artifacts.", "red")


def _events(status: Status) -> Iterator[Text]:
    yield _line("last events", "bold")
    for event in status.events:
        moment = datetime.fromtimestamp(float(event["time"])).astimezone()
        seconds = event.get("seconds")
        took = f"  {seconds:.1f} s" if isinstance(seconds, int | float) else ""
        day = "" if status.now - float(event["time"]) < 20 * 3600 else f"{moment:%Y-%m-%d} "
        name = Ref(event["kind"], event["key"]).short
        yield _line(f"{day}{moment:%H:%M:%S}  {event['event']!s:<11} {name}{took}")
