"""Files below a folder, each real folder once."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path


class WalkResult(NamedTuple):
    """Files below a folder."""

    files: list[tuple[str, int]]
    """Name relative to the folder, with `/`, and bytes: 0 where a link leads nowhere."""
    ignored: Counter[str]
    """Count of other entries by suffix, name without one, or hidden folder with `/`."""


def is_hidden(name: str) -> bool:
    """Check for a name that is not part of the data: `.cache`, `__MACOSX`, `._image.png`."""
    return name.startswith((".", "__")) and name not in (".", "..")


def walk(root: Path, suffixes: Collection[str]) -> WalkResult:
    """Find files below a folder with one of the suffixes; links to folders are followed.

    Raises:
        ValueError: If two links lead to one folder, whose files would count twice. (A link to a
            folder that it lies in is passed over.)
    """
    files: list[tuple[str, int]] = []
    ignored: Counter[str] = Counter()
    first = _identity(root)
    known = {first: root}
    waiting = [("", frozenset([first]))]
    while waiting:
        within, above = waiting.pop()
        folders = []
        with os.scandir(root / within) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry.name)
                elif suffix_of(entry.name) in suffixes and not entry.name.startswith("."):
                    files.append((f"{within}{entry.name}", _size(entry)))
                else:
                    ignored[suffix_of(entry.name) or entry.name] += 1
        for name in folders:
            path = root / within / name
            if is_hidden(name):
                ignored[f"{name}/"] += 1
                continue
            identity = _identity(path)
            if identity in above:
                continue
            if identity in known:
                raise ValueError(
                    f"{path} and {known[identity]} are one folder, whose files would count twice"
                )
            known[identity] = path
            waiting.append((f"{within}{name}/", above | {identity}))
    return WalkResult(files, ignored)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # it cannot be read either, and becomes a faulty image
        return 0


PREVIEW_NAMES = 3
"""Largest number of names in a message."""


def plain_name(name: str) -> str:
    """Write a name in an archive or mapping with `/`, and without `./` before it."""
    return name.replace("\\", "/").removeprefix("./")


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million times


def preview(names: Iterable[str], count: int | None = None) -> str:
    """Count names and show the first of them: `5 (a, b, c, ...)`."""
    held = names if isinstance(names, list) else list(islice(names, PREVIEW_NAMES + 1))
    count = len(held) if count is None else count
    more = ", ..." if count > PREVIEW_NAMES else ""
    return f"{count} ({', '.join(held[:PREVIEW_NAMES])}{more})"
