"""Folders under construction: each has a lock beside it that says that its builder lives."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.files import remove_tree
from pipelines.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = ".lock"


@contextmanager
def staging(folder: Path, label: str) -> Iterator[Path]:
    """A fresh name in a folder, for this block alone; what is left under it goes at the end."""
    path, lock = _new(folder, label)
    try:
        yield path
    finally:
        remove_tree(path, as_far_as_possible=True)
        lock.release(remove=True)


def _new(folder: Path, label: str) -> tuple[Path, FileLock]:
    while True:
        path = folder / f"{label}-{uuid.uuid4().hex[:12]}"
        lock = FileLock(path.with_name(path.name + LOCK))
        if lock.acquire():  # unless a sweep looked at it in that very moment
            return path, lock


def sweep_staging(folder: Path) -> int:
    """Remove what dead builders left in a folder; returns how many."""
    removed = 0
    for path in folder.glob(f"*{LOCK}"):
        lock = FileLock(path)
        if lock.acquire():
            left = path.with_name(path.name.removesuffix(LOCK))
            remove_tree(left, as_far_as_possible=True)
            lock.release(remove=True)
            removed += 1
    return removed
