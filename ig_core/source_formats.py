"""How each format of training data is recognised and listed; see `ig_core.sources`."""

from __future__ import annotations

import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
"""Suffixes of images, in lower case."""
MAPPING, CLASSES, STATISTICS = "dataset.json", "classes.json", "latents_stats.pt"
CONTAINERS = {".parquet": "parquet", ".tar": "tar", ".zip": "zip", ".safetensors": "safetensors"}
SPLITS = ("train", "validation", "val", "test")


class Row(NamedTuple):
    """One image or latent."""

    name: str
    """What it is called in messages."""
    file: str
    """The file that holds it, relative to the root."""
    offset: int
    """Where: its first byte in a tar, its row in Parquet and safetensors, else 0."""
    size: int
    """Bytes, or -1 where the format knows."""
    label: int
    """Class."""


class Found(NamedTuple):
    """What lies at a path."""

    format: str
    root: Path
    files: list[str]
    extra: tuple[str, ...] = ()


def detect(path: Path) -> Found:
    """Recognise a source.

    Raises:
        ValueError: there is nothing, or nothing known, or several formats or splits at once.
    """
    if "*" in path.name:
        return _containers(path, path.parent, sorted(path.parent.glob(path.name)))
    if path.is_file():
        return _containers(path, path.parent, [path])
    if not path.is_dir():
        raise ValueError(f"data.path must be a folder, a file or a pattern, but nothing is at "
                         f"{str(path)!r}")  # fmt: skip
    held = sorted(file for file in path.iterdir() if file.suffix.lower() in CONTAINERS)
    if held:
        return _containers(path, path, held)
    for root in (path, path / "vae-sd"):
        if (root / MAPPING).is_file() and next(root.glob("*/*.npy"), None) is not None:
            return Found("npy", root, [], (MAPPING,))
    extra = tuple(name for name in (MAPPING, CLASSES) if (path / name).is_file())
    return Found("folder", path, [], extra)


def _containers(path: Path, root: Path, files: Sequence[Path]) -> Found:
    kinds = sorted({CONTAINERS.get(file.suffix.lower(), file.suffix) for file in files})
    if len(kinds) != 1 or kinds[0] not in CONTAINERS.values():
        raise ValueError(f"{path} must hold Parquet, tar, zip or safetensors files of one kind, "
                         f"but holds {', '.join(kinds) or 'nothing'}")  # fmt: skip
    starts = {file.name.partition("-")[0] for file in files}
    splits = [name for name in SPLITS if name in starts]
    if len(splits) > 1:
        raise ValueError(f"{path} holds several splits ({', '.join(splits)}); give a pattern, such "
                         f"as {root / splits[0]}-*")  # fmt: skip
    extra = (STATISTICS,) if (root / STATISTICS).is_file() else ()
    names = [file.name for file in files]
    return Found(kinds[0], root, names, extra if kinds[0] == "safetensors" else ())


def read_mapping(text: str | bytes, where: str) -> dict[str, int]:
    """Labels by file name from ADM's and EDM2's `dataset.json`: {"labels": [[name, label], ...]}.

    Raises:
        ValueError: it is no such file, or has no labels.
    """
    try:
        pairs = json.loads(text)["labels"]
        return {str(name).replace("\\", "/"): int(label) for name, label in pairs}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} must hold {{\"labels\": [[name, label], ...]}}, but has no "
                         f"labels: {error!r}") from error  # fmt: skip


def _label(labels: dict[str, int], name: str, where: str) -> int:
    if name not in labels:
        raise ValueError(f"{where} has no label for {name}")
    return labels[name]


def walk(root: Path, suffixes: set[str]) -> list[tuple[str, int]]:
    """Files below a folder with one of the suffixes, and their sizes; links to folders followed."""
    found = []
    for folder, below, names in os.walk(root, followlinks=True):
        below.sort()
        within = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in names:
            if os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122 - a million times
                relative = name if within == "." else f"{within}/{name}"
                found.append((relative, os.stat(os.path.join(folder, name)).st_size))  # noqa: PTH116, PTH118
    return found


def _list_folder(root: Path, files: Sequence[str]) -> list[Row]:  # noqa: ARG001
    """Images below class folders; `dataset.json` or `classes.json` beside them give labels."""
    found = walk(root, IMAGES)
    if (root / MAPPING).is_file():
        labels = read_mapping((root / MAPPING).read_bytes(), str(root / MAPPING))
        return [Row(name, name, 0, size, _label(labels, name, MAPPING)) for name, size in found]
    loose = next((name for name, _ in found if "/" not in name), None)
    if loose is not None:
        raise ValueError(f"{root / loose} lies in no class folder, and there is no {MAPPING}")
    if (root / CLASSES).is_file():
        classes = {str(k): int(v) for k, v in json.loads((root / CLASSES).read_bytes()).items()}
    else:
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        classes = {name: number for number, name in enumerate(folders)}
    return [Row(name, name, 0, size, _label(classes, name.partition("/")[0], CLASSES))
            for name, size in found]  # fmt: skip


def _list_parquet(root: Path, files: Sequence[str]) -> list[Row]:
    rows = []
    for file in files:
        table = pq.ParquetFile(root / file)
        names = table.schema_arrow.names
        if "image" not in names or "label" not in names:
            raise ValueError(f"{root / file} must have columns image and label, but has "
                             f"{', '.join(names)}")  # fmt: skip
        labels = table.read(columns=["label"])["label"].to_pylist()
        rows += [Row(f"{file}[{number}]", file, number, -1, -1 if label is None else int(label))
                 for number, label in enumerate(labels)]  # fmt: skip
    return rows


def _list_tar(root: Path, files: Sequence[str]) -> list[Row]:
    rows = []
    for file in files:
        images: dict[str, tarfile.TarInfo] = {}
        labels: dict[str, int] = {}
        with tarfile.open(root / file, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                key, suffix = f"{folder}/{key}", f".{suffix.lower()}"
                if suffix in IMAGES:
                    images[key] = member
                elif suffix == ".cls":
                    stream = archive.extractfile(member)
                    labels[key] = _whole_number(b"" if stream is None else stream.read(32),
                                                f"{root / file}: {member.name}")  # fmt: skip
        where = f"{root / file} (.cls files)"
        rows += [Row(f"{file}/{member.name}", file, member.offset_data, member.size,
                     _label(labels, key, where)) for key, member in images.items()]  # fmt: skip
    return rows


def _whole_number(text: bytes, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{where} must hold a whole number, but holds {text!r}") from None


def _list_zip(root: Path, files: Sequence[str]) -> list[Row]:
    rows = []
    for file in files:
        try:
            with zipfile.ZipFile(root / file) as archive:
                infos = [info for info in archive.infolist()
                         if Path(info.filename).suffix.lower() in IMAGES]  # fmt: skip
                where = f"{root / file}: {MAPPING}"
                if MAPPING not in archive.namelist():
                    raise ValueError(f"{where} is missing; without it there are no labels")
                labels = read_mapping(archive.read(MAPPING), where)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{root / file} is not a readable zip file: {error}") from error
        rows += [Row(info.filename, file, 0, info.file_size,
                     _label(labels, info.filename, where)) for info in infos]  # fmt: skip
    return rows


def _list_npy(root: Path, files: Sequence[str]) -> list[Row]:  # noqa: ARG001
    labels = read_mapping((root / MAPPING).read_bytes(), str(root / MAPPING))
    return [Row(name, name, 0, size, _label(labels, name, MAPPING))
            for name, size in walk(root, {".npy"})]  # fmt: skip


def _list_safetensors(root: Path, files: Sequence[str]) -> list[Row]:
    from safetensors import SafetensorError, safe_open

    rows = []
    for file in files:
        try:
            with safe_open(root / file, framework="numpy") as archive:
                if not {"latents", "labels"} <= set(archive.keys()):
                    raise ValueError(f"{root / file} must hold latents and labels, but holds "
                                     f"{', '.join(archive.keys())}")  # fmt: skip
                labels = archive.get_tensor("labels").tolist()
                count = archive.get_slice("latents").get_shape()[0]
        except (SafetensorError, struct.error) as error:
            raise ValueError(f"{root / file} is not a safetensors file: {error}") from error
        if len(labels) != count:
            raise ValueError(f"{root / file} holds {count} latents, but {len(labels)} labels")
        rows += [Row(f"{file}[{number}]", file, number, -1, int(label))
                 for number, label in enumerate(labels)]  # fmt: skip
    return rows


LISTERS: dict[str, Callable[[Path, Sequence[str]], list[Row]]] = {
    "folder": _list_folder,
    "parquet": _list_parquet,
    "tar": _list_tar,
    "zip": _list_zip,
    "npy": _list_npy,
    "safetensors": _list_safetensors,
}
"""Format -> what lists its rows."""
