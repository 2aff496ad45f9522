"""Locks that the kernel releases when their process dies, on files of a shared folder.

The kernel's `flock` needs no heartbeats: a builder that is killed loses its lock at that moment, a
builder that is slow never does. It works on local file systems and on NFS version 4.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipelines.common.errors import StoppedError
from pipelines.store.files import delete_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType


class Lock(Protocol):
    """Lock of one process, or of several that share it."""

    def acquire(self) -> bool:
        """Take the lock if it is free; False if somebody holds it."""

    def release(self, *, delete: bool = False) -> None:
        """Release the lock; `delete` also deletes its trace."""


def wait_for_lock(
    lock: Lock, seconds: float = 0.05, stopped: Callable[[], bool] = lambda: False
) -> None:
    """Take a lock, and wait while another process holds it.

    A lock that no other process wants is to be waited for, too: a look for its holder (`holder`)
    and a sweep take it for a moment.

    Args:
        lock: Lock to take.
        seconds: Seconds between two tries.
        stopped: Called between tries; True ends the wait.

    Raises:
        StoppedError: If `stopped` ended the wait.
    """
    while not lock.acquire():
        if stopped():
            raise StoppedError("the work was stopped while it waited for others")
        time.sleep(seconds)


@contextmanager
def waited_for(
    lock: Lock, seconds: float = 0.05, stopped: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Hold a lock for the block; see `wait_for_lock`."""
    wait_for_lock(lock, seconds, stopped)
    try:
        yield
    finally:
        lock.release()


class FileLock:
    """Lock on a file, held by this object (two objects of one process exclude each other)."""

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path, self.shared = path, shared
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; False if somebody holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # For every user whom the umask lets: to lock over NFS means to write.
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # The file may have been removed between opening and locking: then it locks nothing.
            if os.path.samestat(self.path.stat(), os.fstat(file)):
                self._file = file
        except (BlockingIOError, FileNotFoundError):
            pass
        finally:
            if self._file != file:
                os.close(file)
        if self._file != file:
            return False
        self._sign()
        return True

    def _sign(self) -> None:
        """Write the holder into the file; on a full disk the lock holds without that."""
        if self._file is not None and not self.shared:
            with suppress(OSError):
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, f"{os.getpid()} {platform.node()}\n".encode(), 0)

    def release(self, *, delete: bool = False) -> None:
        """Release the lock; `delete` also deletes its file, while the lock still holds."""
        if self._file is None:
            return
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def __enter__(self) -> FileLock:
        if not self.acquire():
            raise BlockingIOError(f"{self.path} is locked by another process")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock."""

    host: str
    pid: int
    since: float
    """Time when it took the lock, in seconds since the epoch."""


def holder(path: Path) -> Holder | None:
    """Return the holder of a lock on a file; None if it is free.

    A process that tries to take the lock in that very moment finds it taken, and tries again.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, host = os.pread(file, 300, 0).decode(errors="replace").strip().partition(" ")
        known = pid.isascii() and pid.isdigit()
        since = os.fstat(file).st_mtime
        return Holder(host, int(pid), since) if known else Holder("unknown", 0, since)
    except OSError:
        return None
    finally:
        os.close(file)
    return None


LOCK = ".lock"


@contextmanager
def staging(folder: Path, label: str) -> Iterator[Path]:
    """Yield a fresh path in a folder for the block; what is left there is deleted at its end."""
    path, lock = _new(folder, label)
    try:
        yield path
    finally:
        delete_tree(path, as_far_as_possible=True)
        lock.release(delete=True)


def _new(folder: Path, label: str) -> tuple[Path, FileLock]:
    while True:
        path = folder / f"{label}-{uuid.uuid4().hex[:12]}"
        lock = FileLock(path.with_name(path.name + LOCK))
        if lock.acquire():  # unless a sweep looked at it in that very moment
            return path, lock


def sweep_staging(folder: Path) -> int:
    """Delete what dead builders left in a folder; return how many left something."""
    removed = 0
    for path in folder.glob(f"*{LOCK}"):
        lock = FileLock(path)
        if lock.acquire():
            left = path.with_name(path.name.removesuffix(LOCK))
            delete_tree(left, as_far_as_possible=True)
            lock.release(delete=True)
            removed += 1
    return removed
