"""Copies of artifacts on one machine, shared by its processes, up to a size.

    CACHE/ENTRY/           the files of an artifact
    CACHE/ENTRY.lock       lock of whoever fetches it
    CACHE/.staging/        what is being fetched or built

What was used longest ago goes first; what was used within `KEEP_SECONDS` stays, even if that is
more than the size, since somebody may be reading it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pipelines.locks import FileLock, waited_for
from pipelines.staging import staging, sweep_staging

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

KEEP_SECONDS = 3600.0


class Cache:
    """A folder of copies."""

    def __init__(self, folder: Path, limit: int, keep_seconds: float = KEEP_SECONDS) -> None:
        """Use a folder.

        Args:
            folder: Where; made when it is needed.
            limit: Bytes it may hold.
            keep_seconds: What was used within that time stays.
        """
        self.folder, self.limit, self._keep = folder, limit, keep_seconds
        self._sizes: dict[str, int] = {}

    def path(self, name: str) -> Path:
        """Where an entry is, or would be."""
        return self.folder / name

    def fetch(self, name: str, fill: Callable[[Path], None]) -> None:
        """See that an entry is there; `fill` writes it into an empty folder."""
        if self._touch(name):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with waited_for(FileLock(self.folder / f"{name}.lock")):
            if self._touch(name):
                return
            with self.staging(name) as aside:
                aside.mkdir()
                fill(aside)
                aside.rename(self.path(name))
        self._trim()

    def adopt(self, name: str, folder: Path) -> None:
        """Take over a folder of `staging` as an entry."""
        with suppress(OSError):  # it is there, then, or is fetched when it is needed
            folder.rename(self.path(name))
            self._trim()

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A fresh name for a folder that is to become an entry."""
        return staging(self.folder / ".staging", name)

    def drop(self, name: str) -> None:
        """Remove an entry; whoever has a file of it open keeps that."""
        with self.staging("trash") as trash, suppress(FileNotFoundError):
            self.path(name).rename(trash)
        self.path(f"{name}.lock").unlink(missing_ok=True)
        self._sizes.pop(name, None)

    def sweep(self) -> int:
        """Remove what dead processes of this machine left."""
        return sweep_staging(self.folder / ".staging")

    def _touch(self, name: str) -> bool:
        try:
            os.utime(self.path(name))
        except FileNotFoundError:
            return False
        return True

    def _trim(self) -> None:
        used: list[tuple[float, str]] = []
        for path in self.folder.glob("[!.]*"):
            with suppress(FileNotFoundError):
                if path.is_dir():
                    used.append((path.stat().st_mtime, path.name))
                    if path.name not in self._sizes:
                        self._sizes[path.name] = _size(path)
        total = sum(self._sizes[name] for _, name in used)
        for when, name in sorted(used):
            if total <= self.limit or time.time() - when < self._keep:
                return
            total -= self._sizes[name]
            self.drop(name)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
