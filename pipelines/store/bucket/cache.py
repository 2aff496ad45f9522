"""Cache: copies of artifacts on one machine, shared by its processes, up to a size.

    CACHE/ENTRY/           the files of an artifact
    CACHE/.locks/ENTRY     lock of the process that fetches or deletes it
    CACHE/.staging/        what is being fetched or built

The entry used longest ago is deleted first. An entry used within `KEEP_SECONDS` stays, even beyond
the size, since a process may be about to read it; a process keeps what it uses for longer
(`Cache.keeping`). A file that is open stays readable when its entry is deleted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipelines.store.locks import FileLock, staging, sweep_staging, waited_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

logger = logging.getLogger(__name__)

KEEP_SECONDS = 1800.0
"""Seconds for which an entry stays after its last use."""


class Cache:
    """Folder of copies."""

    def __init__(self, folder: Path, limit: int, keep_seconds: float = KEEP_SECONDS) -> None:
        """Use a folder.

        Args:
            folder: Path of the folder; made when it is needed.
            limit: Size that the folder may have, in bytes.
            keep_seconds: Seconds for which an entry stays after its last use.
        """
        self.folder, self.limit, self._keep = folder, limit, keep_seconds
        self._sizes: dict[str, int] = {}
        self._swept = self._warned = False
        self._blocks: dict[int, set[str]] = {}
        """Entries fetched in each block of `keeping` that is not over."""
        self._guard = threading.Lock()
        self._keeper: threading.Thread | None = None

    def path(self, name: str) -> Path:
        """Return the path where an entry is, or would be."""
        return self.folder / name

    def fetch(self, name: str, fill: Callable[[Path], None], size: int = 0) -> bool:
        """Fetch an entry unless it is there.

        Args:
            name: Name of the entry.
            fill: Writes the entry into an empty folder.
            size: Bytes that it is going to have; room is made for them first.

        Returns:
            True if this call wrote it.
        """
        with self._guard:
            for names in self._blocks.values():
                names.add(name)
        if self._touch(name):
            return False
        if not self._swept:
            self._swept = True
            self.sweep()
        with self._alone(name):
            if self._touch(name):
                return False
            self._trim(size)
            with self.staging(name) as aside:
                aside.mkdir()
                fill(aside)
                aside.rename(self.path(name))
        return True

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the entries that are fetched in the block until its end, however long that takes."""
        names: set[str] = set()
        with self._guard:
            self._blocks[id(names)] = names
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_on, name="cache", daemon=True)
                self._keeper.start()
        try:
            yield
        finally:
            with self._guard:
                del self._blocks[id(names)]

    def _keep_on(self) -> None:
        """Mark kept entries as used, again and again, until no block keeps any."""
        while True:
            with self._guard:
                if not self._blocks:
                    self._keeper = None
                    return
                names = set().union(*self._blocks.values())
            for name in names:
                self._touch(name)
            time.sleep(self._keep / 6)

    def adopt(self, name: str, folder: Path) -> None:
        """Make a folder of `staging` an entry, the first to go, since nobody needs it yet."""
        with suppress(OSError), self._alone(name):  # it is there, then, or is fetched if needed
            folder.rename(self.path(name))
            long_ago = time.time() - self._keep
            os.utime(self.path(name), (long_ago, long_ago))
        self._trim()

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """Yield a fresh path for a folder that is to become an entry."""
        return staging(self.folder / ".staging", name)

    def delete(self, name: str, unless: Callable[[], bool] = lambda: False) -> None:
        """Delete an entry; files of it that are open stay readable.

        Args:
            name: Name of the entry.
            unless: Called while nobody else fetches or deletes the entry; True leaves it there.
        """
        with self._alone(name), self.staging("trash") as trash:
            if not unless():
                with suppress(FileNotFoundError):
                    self.path(name).rename(trash)
                self._sizes.pop(name, None)

    def sweep(self) -> int:
        """Delete what dead processes of this machine left; return how many left something."""
        return sweep_staging(self.folder / ".staging")

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        lock = FileLock(self.folder / ".locks" / name)
        with waited_for(lock):
            yield

    def _touch(self, name: str) -> bool:
        try:
            os.utime(self.path(name))
        except FileNotFoundError:
            return False
        return True

    def _used(self, name: str) -> float | None:
        """Return when an entry was used last; None if it is not there."""
        try:
            return self.path(name).stat().st_mtime
        except FileNotFoundError:
            return None

    def _trim(self, coming: int = 0) -> None:
        """Delete the entries used longest ago until there is room for `coming` more bytes."""
        found = {path.name: self._used(path.name) for path in self.folder.glob("[!.]*")}
        used = {name: when for name, when in found.items() if when is not None}
        for name in used:
            if name not in self._sizes:
                self._sizes[name] = _size(self.path(name))
        total = coming + _size(self.folder / ".staging") + sum(self._sizes[name] for name in used)
        for name, when in sorted(used.items(), key=lambda item: item[1]):
            if total <= self.limit:
                return
            if time.time() - when < self._keep:
                self._warn(total)
                return
            total -= self._sizes[name]
            self._delete_unused(name, when)

    def _warn(self, total: int) -> None:
        if not self._warned:
            logger.warning(
                "what is used at once of %s takes %.1f GiB, more than IGDIT_CACHE_GIB (%.1f)",
                self.folder,
                total / 2**30,
                self.limit / 2**30,
            )
        self._warned = True

    def _delete_unused(self, name: str, when: float) -> None:
        """Delete an entry, unless it was used while others were deleted."""
        self.delete(name, unless=lambda: self._used(name) != when)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
