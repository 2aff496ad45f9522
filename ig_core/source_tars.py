"""WebDataset tars, listed by their headers; see `ig_core.sources`."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from ig_core.source_formats import Row
from ig_core.source_images import IMAGES
from ig_core.source_labels import plain_name, some, whole_number
from ig_core.source_walk import is_hidden

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.source_images import Search

FIELDS = ("label", "cls")
"""Fields of a `.json` member that may hold the label."""
_MOST = 2**20
"""Bytes of such a member that are read."""


def list_tar(search: Search) -> list[Row]:
    """Images in tars, labelled by a member `.cls` of their key, or else by its `.json`."""
    rows = []
    for file in search.found.files:
        path = search.found.root / file
        with tarfile.open(path, "r:") as archive:
            keys = _members(archive, search, path)
            _check_end(archive, path)
            for members in keys.values():
                image = members.get("image")
                if image is None:
                    continue
                label = (_label(archive, members, path) if search.labels is None
                         else search.labels.of(plain_name(image.name)))  # fmt: skip
                rows.append(Row(f"{file}/{image.name}", file, image.offset_data, image.size, label))
    return rows


def _members(
    archive: tarfile.TarFile, search: Search, path: Path
) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Members by key, then `image` or suffix."""
    keys: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in archive:
        *folders, name = member.name.split("/")
        if member.isdir() or name.startswith(".") or any(map(is_hidden, folders)):
            continue
        start, _, suffix = name.partition(".")
        key, suffix = "/".join((*folders, start)), f".{suffix.lower()}"
        kind = "image" if suffix in IMAGES else suffix
        held = keys.setdefault(key, {})
        if kind in held and kind in ("image", ".cls", ".json"):
            raise ValueError(f"{path} must hold one image and one label of a key, but of {key} it "
                             f"holds {held[kind].name} and {member.name}")  # fmt: skip
        held[kind] = member
        if kind not in ("image", ".cls", ".json"):
            search.ignored[suffix] += 1
    return keys


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Raise ValueError unless the headers end as a tar does: a cut is no end.

    The standard library takes an end in a header, or where the next one should be, for the end of
    the archive, and what follows a damaged header for nothing.
    """
    with path.open("rb") as file:
        file.seek(archive.offset)
        empty = True
        first = file.read(tarfile.BLOCKSIZE)
        block = first
        while block and empty:
            empty = not any(block)
            block = file.read(2**20)
    if len(first) < tarfile.BLOCKSIZE or not empty:
        raise ValueError(f"{path} is cut short or damaged: at byte {archive.offset} it must go on "
                         f"or end with blocks of zeros")  # fmt: skip


def _label(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], path: Path) -> int:
    where = f"{path}: {members['image'].name}"
    if ".cls" in members:
        text = _content(archive, members[".cls"]).strip()
        if not text.removeprefix(b"-").isdigit():
            raise ValueError(f"{path}: {members['.cls'].name} must hold an integer, but holds "
                             f"{text[:32]!r}")  # fmt: skip
        return int(text)
    if ".json" not in members:
        others = sorted(kind for kind in members if kind != "image")
        raise ValueError(f"{where} has no label: a member .cls, or .json with {' or '.join(FIELDS)}"
                         f", but beside it are {', '.join(others) or 'none'}")  # fmt: skip
    name = members[".json"].name
    try:
        held: Any = json.loads(_content(archive, members[".json"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {name} must be JSON, but is not: {error}") from error
    fields = list(held) if isinstance(held, dict) else []
    given = [field for field in FIELDS if field in fields]
    if given:  # one may be the name of the class
        field = next((each for each in given if isinstance(held[each], int)), given[0])
        return whole_number(held[field], f"{path}: {field} in {name}")
    raise ValueError(f"{path}: {name} must have a field {' or '.join(FIELDS)}, but has "
                     f"{some([str(each) for each in fields])}")  # fmt: skip


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read(_MOST)
