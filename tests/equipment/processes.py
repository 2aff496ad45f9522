"""Processes as the tests see them, read from /proc: whole trees ended, listening sockets."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

from cluster.processes import descendants


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds: float = 300.0):
    """Poll until the condition gives something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise TimeoutError(f"condition not met within {seconds} s")


def kill_tree(root: int) -> None:
    """SIGKILL a process and all below it, and wait until they are gone."""
    pids = [root, *descendants(root)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_for(lambda: not any(alive(pid) for pid in pids[1:]), 30)


def run_processes(work, world_size: int, *arguments) -> None:
    """Call `work(rank, world_size, *arguments)` in that many new processes, and wait for their end.

    They are forked from a server that has imported torch: importing it takes each 2 s.
    """
    import torch.multiprocessing

    multiprocessing.set_forkserver_preload(["torch", "pytest"])
    torch.multiprocessing.start_processes(
        _in_environment,
        (dict(os.environ), work, world_size, *arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def _in_environment(rank: int, environment: dict[str, str], work, *arguments) -> None:
    """Call `work` with the variables of who asked for it, not with those of the server."""
    os.environ.clear()
    os.environ.update(environment)
    work(rank, *arguments)


def listeners(pids: list[int]) -> set[str]:
    """Local addresses on which any of the processes listens, as `ADDRESS:PORT` in hexadecimal."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1])
    return found


LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net writes them."""


def is_loopback(address: str) -> bool:
    """Whether an address of `listeners` is on loopback."""
    return address.partition(":")[0] in LOOPBACK
