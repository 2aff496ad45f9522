"""WebDataset tars, listed by their headers; see `ig_core.data.sources.listing`."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any

from ig_core.data.sources.formats import Row
from ig_core.data.sources.labels import whole_number
from ig_core.data.sources.listing import IMAGES
from ig_core.data.sources.walk import is_hidden, plain_name, preview, suffix_of

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.data.sources.listing import ListingContext

FIELDS = ("label", "cls")
"""Fields of a `.json` member that may hold the label."""
LABEL_BYTES = 2**20
"""Largest number of bytes that are read of a label's member."""


MAX_LOST_SHARE = 0.01
"""Largest share of images that may be left out because they share a key."""


def list_tar(context: ListingContext) -> list[Row]:
    """List images in tars, labelled by a member `.cls` of their key, or else by its `.json`.

    A key ends at the first dot of a name, as WebDataset has it: `a.left.jpg` is of the key `a`.

    Raises:
        ValueError: If a key has no label or two, or too many images share a key.
    """
    rows: list[Row] = []
    lost: list[str] = []
    for file in context.found.files:
        path = context.found.root / file
        _refuse_compressed(path)
        with tarfile.open(path, "r:") as archive:
            keys = _members(archive, context, path)
            _check_end(archive, path)
            for held in keys.values():
                members, left = _sample(held, context)
                lost += [f"{file}/{image.name}" for image in left]
                image = members.get("image")
                if image is None:
                    continue
                label = (
                    _label(archive, members, path)
                    if context.labels is None
                    else context.labels.of(plain_name(image.name))
                )
                rows.append(Row(f"{file}/{image.name}", file, image.offset_data, image.size, label))
    if len(lost) > MAX_LOST_SHARE * (len(rows) + len(lost)):
        raise ValueError(
            f"{context.found.root}: {len(lost)} of {len(rows) + len(lost)} images "
            f"would be left out, because a key of WebDataset ends at the first dot of "
            f"a name and several images share one: {preview(lost)}; rename them without "
            f"dots before the suffix"
        )
    if lost:
        context.ignored[f"images that share a key ({preview(lost)})"] += len(lost)
    return rows


def _refuse_compressed(path: Path) -> None:
    """Raise ValueError for a compressed tar: its images cannot be read each by itself."""
    with path.open("rb") as file:
        start = file.read(6)
    for magic, (name, command) in COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"{path} must be a plain tar, but is compressed by {name}, so that no "
                f"image can be read by itself: {command}"
            )


COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip -c FILE > PLAIN.tar"),
    b"BZh": ("bzip2", "bunzip2 -c FILE > PLAIN.tar"),
    b"\xfd7zXZ": ("xz", "unxz -c FILE > PLAIN.tar"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd -c FILE > PLAIN.tar"),
    b"PK\x03\x04": ("zip", "unpack it and pack it by tar, or call it .zip"),
}
"""First bytes of a file -> its compression, and the command that makes a plain tar of it."""
KINDS = {".cls": ".cls", ".json": ".json", **dict.fromkeys(IMAGES, "image")}
"""Last suffix -> kind of a member of a key."""
USED = frozenset(KINDS.values())
"""Kinds of members that are read."""


def _members(
    archive: tarfile.TarFile, context: ListingContext, path: Path
) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Sort members by key, then by the rest of the name: `.jpg`, `.left.jpg`."""
    keys: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in archive:
        *folders, name = member.name.split("/")
        if member.isdir() or name.startswith(".") or any(map(is_hidden, folders)):
            continue
        start, _, suffix = name.partition(".")
        key, suffix = "/".join((*folders, start)), f".{suffix.lower()}"
        held = keys.setdefault(key, {})
        kind = KINDS.get(suffix)
        other = next((m for s, m in held.items() if kind and KINDS.get(s) == kind), None)
        if other is not None:
            raise ValueError(
                f"{path} must hold one image and one label of a key, but of {key} it "
                f"holds {other.name} and {member.name}"
            )
        if suffix in held and _kind(suffix) in USED:
            raise ValueError(f"{path} must hold each member once, but holds {member.name} twice")
        held[suffix] = member
        if _kind(suffix) not in USED:
            context.ignored[suffix] += 1
    return keys


def _kind(suffix: str) -> str:
    """Return the kind of a member by its last suffix; else the suffix itself."""
    return KINDS.get(suffix_of(f"x{suffix}"), suffix)


def _sample(
    held: dict[str, tarfile.TarInfo], context: ListingContext
) -> tuple[dict[str, tarfile.TarInfo], list[tarfile.TarInfo]]:
    """Choose the image of a key; return it with its label and fields, and images that are left out.

    The image is the one without a field's name (`.jpg`), else the only one (`.left.jpg`). Others
    are fields of the sample (`.mask.png`), unless they have labels of their own: then their keys
    were meant to have dots.
    """
    images = [suffix for suffix in held if _kind(suffix) == "image"]
    chosen = next((suffix for suffix in images if suffix in KINDS), None)
    if chosen is None and len(images) == 1:
        chosen = images[0]
    members = {suffix: held[suffix] for suffix in held if _kind(suffix) != "image"}
    left = [
        suffix
        for suffix in images
        if suffix != chosen and (chosen is None or _is_labelled(suffix, held, context))
    ]
    if chosen is None:
        return members, [held[suffix] for suffix in left]
    field = chosen.rpartition(".")[0]
    for kind in (".cls", ".json"):
        own = f"{field}{kind}"
        if kind not in held and own in held:
            members[kind] = held[own]
    for suffix in images:
        if suffix != chosen and suffix not in left:
            context.ignored[suffix] += 1
    return {**members, "image": held[chosen]}, [held[suffix] for suffix in left]


def _is_labelled(suffix: str, held: dict[str, tarfile.TarInfo], context: ListingContext) -> bool:
    """Check whether an image of a key has a label of its own, besides that of the key."""
    if context.labels is not None:
        return plain_name(held[suffix].name) in context.labels.by_name
    field = suffix.rpartition(".")[0]
    return any(f"{field}{kind}" in held for kind in (".cls", ".json"))


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
        raise ValueError(
            f"{path} is cut short or damaged: at byte {archive.offset} it must go on "
            f"or end with blocks of zeros"
        )


def _label(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], path: Path) -> int:
    where = f"{path}: {members['image'].name}"
    if ".cls" in members:
        text = _content(archive, members[".cls"]).strip()
        if not text.removeprefix(b"-").isdigit():
            raise ValueError(
                f"{path}: {members['.cls'].name} must hold an integer, but holds {text[:32]!r}"
            )
        return int(text)
    if ".json" not in members:
        others = sorted(kind for kind in members if kind != "image")
        raise ValueError(
            f"{where} has no label: a member .cls, or .json with {' or '.join(FIELDS)}"
            f", but beside it are {', '.join(others) or 'none'}"
        )
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
    raise ValueError(
        f"{path}: {name} must have a field {' or '.join(FIELDS)}, but has "
        f"{preview([str(each) for each in fields])}"
    )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read(LABEL_BYTES)
