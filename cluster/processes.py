"""Processes that outlive the command that started them, identified by pid and start time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Process:
    """Process that may not be a child of this one any more."""

    pid: int
    start_time: str
    """Start time in /proc: pids are used again, the pair is not."""

    @classmethod
    def start(cls, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
        """Start a program in a session of its own; its output is appended to the log."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        return cls(child.pid, _start_time(child.pid))

    @property
    def alive(self) -> bool:
        """True if the process runs; a child that ended is reaped."""
        with contextlib.suppress(ChildProcessError):  # another command started it
            os.waitpid(self.pid, os.WNOHANG)
        return bool(self.start_time) and _start_time(self.pid) == self.start_time

    def end(self, seconds: float = 20.0) -> None:
        """Terminate the process, and kill it and its descendants that still run after `seconds`."""
        if not self.alive:
            return
        tree = [self, *self.below()]
        os.kill(self.pid, signal.SIGTERM)
        _until(lambda: not self.alive, seconds)
        _kill(tree)

    def kill(self) -> None:
        """Kill the process and its descendants at once, as if the machine were lost."""
        if self.alive:
            _kill([self, *self.below()])

    def below(self) -> list[Process]:
        """Return all descendants of the process."""
        return [Process(pid, _start_time(pid)) for pid in descendants(self.pid)]


def descendants(root: int) -> list[int]:
    """Return the pids of all descendants of a process."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [root]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def title(pid: int) -> str:
    """Return the command line of a process, as `ps` shows it; empty if it has ended."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""


def _kill(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.alive:
            os.kill(process.pid, signal.SIGKILL)
    _until(lambda: not any(process.alive for process in processes), 20.0)


def _start_time(pid: int) -> str:
    """Return the start time of a running process; empty if there is none, or a zombie."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def wait_for_port(host: str, port: int, process: Process, log: Path, seconds: float = 60.0) -> None:
    """Wait until a program listens.

    Raises:
        RuntimeError: If the program ended, or does not listen in time; with the end of its log.
    """

    def listens() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((host, port)) == 0

    wait_for(listens, process, log, seconds)


def wait_for(
    condition: Callable[[], bool], process: Process | None, log: Path, seconds: float
) -> None:
    """Wait until a program is ready.

    Raises:
        RuntimeError: If the program ended, or is not ready in time; with the end of its log.
    """
    assert process is not None, "the process was just started"
    if _until(lambda: not process.alive or condition(), seconds) and process.alive:
        return
    process.kill()
    raise RuntimeError(f"the program did not get ready; the end of {log}:\n{end_of(log, 1500)}")


def end_of(log: Path, characters: int) -> str:
    """Return the last characters of a program's log, whatever its encoding."""
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing uses right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
