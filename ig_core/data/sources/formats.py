"""Recognise the formats of training data; see `ig_core.data.sources.listing`."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from ig_core.config import SettingError
from ig_core.data.sources.walk import is_hidden, preview

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path


MAPPING, CLASSES, STATISTICS = "dataset.json", "classes.json", "latents_stats.pt"
CONTAINERS = {".parquet": "parquet", ".tar": "tar", ".zip": "zip", ".safetensors": "safetensors"}
SPLITS = ("train", "validation", "val", "test")
MAX_NAMED_FILES = 1_000_000
"""Largest number of files that a range in braces may name."""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_PART = re.compile(r"(?P<before>.*-)(?P<number>\d+)-of-(?P<parts>\d+)(?P<after>[-.].*)")
_SHARD = re.compile(r"latents_rank(?P<rank>\d+)_shard(?P<shard>\d+)\.safetensors")


class Row(NamedTuple):
    """One image or latent."""

    name: str
    """Name in messages."""
    file: str
    """The file that holds it, relative to the root."""
    offset: int
    """First byte in a tar, row in Parquet and safetensors, else 0."""
    size: int
    """Bytes, or -1 where the format knows."""
    label: int
    """Class."""


class DetectedSource(NamedTuple):
    """Format and files of a source."""

    format: str
    root: Path
    files: list[str]
    extra: tuple[str, ...] = ()


def detect(path: Path) -> DetectedSource:
    """Recognise a source.

    Raises:
        ValueError: If nothing lies there, no format is known, several formats or splits lie there,
            or a part of a set is missing.
    """
    if path.is_file():
        return _containers(path, path.parent, [path])
    if not path.is_dir():
        return _pattern(path)
    held = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in CONTAINERS and not file.name.startswith(".") and not file.is_dir()
    )
    if held:
        return _containers(path, path, held, whole=True)
    for root in (path, path / "vae-sd"):
        if (root / MAPPING).is_file() and next(root.glob("*/*.npy"), None) is not None:
            return DetectedSource("npy", root, [], (MAPPING,))
    extra = tuple(name for name in (MAPPING, CLASSES) if (path / name).is_file())
    return DetectedSource("folder", path, [], extra)


def _pattern(path: Path) -> DetectedSource:
    """Find files by a pattern (`*`, `?`, `[...]`), or by braces, which name each of them."""
    names = list(_expand(path.name))
    braces = names != [path.name]
    if not braces and not _is_glob(path.name):
        raise SettingError(
            f"path must be a folder, a file or a pattern in the last part of its name, but nothing "
            f"is at {str(path)!r}",
            path="",
        )
    found = {
        name: [file for file in path.parent.glob(name) if not file.name.startswith(".")]
        if _is_glob(name)
        else [file for file in (path.parent / name,) if file.is_file()]
        for name in names
    }
    absent = [name for name, files in found.items() if not files]
    if absent and braces:
        raise ValueError(f"{path} names {len(names)} files, but {preview(absent)} are not there")
    files = sorted({file for files in found.values() for file in files})
    return _containers(path, path.parent, files, whole=not braces)


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _expand(name: str) -> Iterator[str]:
    """Expand braces to names: `{000..099}`, `{train,val}`."""
    found = _BRACES.search(name)
    if found is None:
        yield name
        return
    first, last, choices = found.groups()
    if choices is None:
        low, high = sorted((int(first), int(last)))
        if high - low >= MAX_NAMED_FILES:
            raise ValueError(
                f"{found.group()} must name fewer than {MAX_NAMED_FILES} files, but names "
                f"{high - low + 1}"
            )
        padded = any(len(each) > 1 and each[0] == "0" for each in (first, last))
        width = max(len(first), len(last)) if padded else 0
        each_choice: Iterable[str] = (f"{number:0{width}d}" for number in range(low, high + 1))
    else:
        each_choice = choices.split(",")
    for choice in each_choice:
        yield from _expand(name[: found.start()] + choice + name[found.end() :])


def _containers(
    path: Path, root: Path, files: Sequence[Path], *, whole: bool = False
) -> DetectedSource:
    """Check files of one format; `whole`: all parts of a set, where their names count them."""
    kinds = sorted({CONTAINERS.get(file.suffix.lower(), file.suffix) for file in files})
    if len(kinds) != 1 or kinds[0] not in CONTAINERS.values():
        raise ValueError(
            f"{path} must hold Parquet, tar, zip or safetensors files of one kind, "
            f"but holds {', '.join(kinds) or 'nothing'}"
        )
    names = [file.name for file in files]
    starts = {name.partition("-")[0] for name in names}
    splits = [name for name in SPLITS if name in starts]
    if len(splits) > 1:
        raise ValueError(
            f"{path} holds several splits ({', '.join(splits)}); give a pattern, such "
            f"as {root / splits[0]}-*"
        )
    if whole:
        absent = [*_absent_parts(names), *_absent_shards(names)]
        if absent:
            raise ValueError(
                f"{path} is incomplete: of the parts that its names count, "
                f"{preview(absent)} are missing (to take some of them, name them: "
                f"NAME-{{00000..00004}}...)"
            )
    extra = (STATISTICS,) if (root / STATISTICS).is_file() else ()
    return DetectedSource(kinds[0], root, names, extra if kinds[0] == "safetensors" else ())


def _absent_parts(names: Iterable[str]) -> list[str]:
    """List files that are missing from sets like `train-00001-of-00003.parquet`."""
    sets: dict[tuple[str, str], list[re.Match[str]]] = defaultdict(list)
    for found in filter(None, map(_PART.fullmatch, names)):
        sets[found["before"], found["parts"]].append(found)
    absent = []
    for (before, parts), members in sets.items():
        numbers, ends = {int(each["number"]) for each in members}, {e["after"] for e in members}
        count, width = min(int(parts), MAX_NAMED_FILES), len(members[0]["number"])
        after = next((each for each in ends if each[0] == "."), "")  # not a hash of each part
        start = 0 if 0 in numbers or count not in numbers else 1  # some count from 1
        absent += [
            f"{before}{number:0{width}d}-of-{parts}{after}"
            for number in range(start, start + count)
            if number not in numbers
        ]
    return absent


def _absent_shards(names: Iterable[str]) -> list[str]:
    """List missing shards of LightningDiT: both numbers of a name count from 0."""
    ranks: dict[int, set[int]] = defaultdict(set)
    for found in filter(None, map(_SHARD.fullmatch, names)):
        ranks[int(found["rank"])].add(int(found["shard"]))
    absent = []
    for rank in range(min(max(ranks, default=-1), MAX_NAMED_FILES) + 1):
        shards = ranks.get(rank, set())
        absent += [
            f"latents_rank{rank:02d}_shard{shard:03d}.safetensors"
            for shard in range(min(max(shards, default=0), MAX_NAMED_FILES) + 1)
            if shard not in shards
        ]
    return absent


def hint(path: Path) -> str:
    """Name a source just below or above a folder without one, for a message; else empty."""
    if not path.is_dir():
        return ""
    for folder in sorted(each for each in path.iterdir() if each.is_dir()):
        try:
            held = not is_hidden(folder.name) and detect(folder).format != "folder"
        except ValueError as error:
            return f"; below it, {error}"
        except OSError:  # no right to list it
            continue
        if held:
            return f"; is it {folder} that was meant?"
    for folder in (path.parent, path.parent.parent):
        if (folder / MAPPING).is_file() and any(folder.glob("*/*.npy")):
            return f"; is it {folder} that was meant?"
    return ""


ONE_ROW_PER_FILE = ("folder", "npy")
"""Formats with a file for each row."""
SELF_LABELLED = ("parquet", "safetensors")
"""Formats that store labels beside the rows."""
