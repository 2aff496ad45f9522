"""Where training data come from: a list of rows, each with its name, place and label.

Images: a folder with a subfolder for each class, Parquet files with encoded images (the layout of
Hugging Face: a struct of bytes and path, and a label), WebDataset tars (`KEY.jpg`, and `KEY.cls` or
`KEY.json`), or a zip of ADM and EDM2 (`dataset.json`). Latents: a folder of .npy files as SiT and
REPA prepare them, or safetensors shards of LightningDiT. Listing reads names, headers and labels
alone; tars are read by the standard library, which gives the place of each member, so that any row
can be read by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ig_core.data.sources.formats import CLASSES, LABELLED, LOOSE, MAPPING, Row, detect, hint
from ig_core.data.sources.images import Search, list_folder, list_parquet, list_zip
from ig_core.data.sources.labels import NoLabels, read_labels
from ig_core.data.sources.latents import list_npy, list_safetensors
from ig_core.data.sources.tars import list_tar

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path


logger = logging.getLogger(__name__)
WHOLE = 2**28
"""Bytes up to which all of a source is read to identify it."""
PROBES, PROBE = 2048, 4096
"""Places in a larger one that are read, and bytes at each."""
SMALL = 2**20
"""Bytes below which an archive is read whole in any case."""
LISTERS: dict[str, Callable[[Search], list[Row]]] = {
    "folder": list_folder,
    "parquet": list_parquet,
    "tar": list_tar,
    "zip": list_zip,
    "npy": list_npy,
    "safetensors": list_safetensors,
}
"""Format -> what lists its rows."""


@dataclass(frozen=True)
class Listing:
    """The rows of a source, in the order of their names."""

    root: Path
    """Folder that the files' names start from."""
    format: str
    """folder, parquet, tar, zip, npy or safetensors."""
    table: pa.Table
    """Columns name, file, offset, size, label: see `Row`."""
    files: tuple[str, ...]
    """Files that hold the rows."""
    extra: tuple[str, ...] = ()
    """Other files that belong to it."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Suffix, name or hidden folder -> how many lie there that are neither."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def has_latents(self) -> bool:
        """Whether the rows are latents instead of encoded images."""
        return self.format in ("npy", "safetensors")

    def write(self, path: Path) -> None:
        """Write it as a Parquet file, for `read_listing`."""
        about = {
            "format": self.format,
            "files": self.files,
            "extra": self.extra,
            "ignored": self.ignored,
        }
        table = self.table.replace_schema_metadata({"listing": json.dumps(about)})
        pq.write_table(table, path)

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows `start` to `stop`."""
        part = self.table.slice(start, stop - start).to_pylist()
        return [Row(**row) for row in part]


def read_listing(path: Path, root: Path) -> Listing:
    """A listing that was written, of a source that lies at `root` now."""
    table = pq.read_table(path)
    about: dict[str, Any] = json.loads(table.schema.metadata[b"listing"])
    return Listing(
        root,
        about["format"],
        table,
        tuple(about["files"]),
        tuple(about["extra"]),
        about.get("ignored", {}),
    )


def list_images(path: Path) -> Listing:
    """List images whose labels do not matter: as `list_source`, but each is given label 0.

    Raises:
        ValueError: nothing there has one of the formats of images, or something is missing.
    """
    found = detect(path)._replace(extra=())
    if found.format in ("npy", "safetensors"):
        raise ValueError(f"{path} must hold images, but holds {found.format}")
    return _list(path, Search(found, 1, NoLabels()))


def list_source(path: Path, num_classes: int, labels: Path | None = None) -> Listing:
    """List what lies at a path.

    Args:
        path: A folder, a file, or a pattern in the last part of the name (`train-*.parquet`,
            `set-{000..099}.tar`).
        num_classes: Labels must be below; class folders that no mapping labels must be as many.
        labels: A JSON file {folder or file: label}, instead of those that lie with the data.

    Raises:
        ValueError: nothing there has one of the formats, something of it is missing, or a row lacks
            a label in 0..num_classes - 1.
    """
    found = detect(path)
    if labels is not None:
        if found.format in LABELLED:
            raise ValueError(
                f"data.classes must be left out: {path} holds {found.format}, which "
                f"has labels of its own"
            )
        found = found._replace(extra=())
    return _list(path, Search(found, num_classes, None if labels is None else read_labels(labels)))


def _list(path: Path, search: Search) -> Listing:
    found, num_classes = search.found, search.num_classes
    try:
        rows = LISTERS[found.format](search)
    except (OSError, KeyError, TypeError, tarfile.TarError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as {found.format}: {type(error).__name__}: {error}"
        ) from error
    if not rows:
        raise ValueError(
            f"{path} holds no images or latents (looked for: {found.format})"
            f"{_ignored(search.ignored)}{hint(path)}"
        )
    if found.format in ("folder", "npy", "zip"):
        rows.sort(key=lambda row: row.name)
    for row in rows:
        if not 0 <= row.label < num_classes:
            raise ValueError(
                f"{path}: the label of {row.name} must be in 0..{num_classes - 1} "
                f"(data.num_classes={num_classes}), but is {row.label}"
            )
    if search.ignored:
        _warn(f"{path}: only images or latents are used{_ignored(search.ignored)}")
    table = pa.table({name: [getattr(row, name) for row in rows] for name in Row._fields})
    files = tuple(row.file for row in rows) if found.format in LOOSE else tuple(found.files)
    return Listing(found.root, found.format, table, files, found.extra, dict(search.ignored))


def _ignored(ignored: Counter[str]) -> str:
    """What was passed over, for a message: at most 5 kinds."""
    kinds = [f"{count} {kind}" for kind, count in ignored.most_common(5)]
    more = ", ..." if len(ignored) > len(kinds) else ""
    return f"; left out: {', '.join(kinds)}{more}" if kinds else ""


@functools.lru_cache(maxsize=64)
def _warn(text: str) -> None:
    """Log it once a process: a study lists its source for every trial."""
    logger.warning("%s", text)


def identify_images(listing: Listing) -> str:
    """`identify`, whatever the labels are."""
    unlabelled = listing.table["label"].combine_chunks().is_null().cast(pa.int64())
    place = listing.table.schema.get_field_index("label")
    table = listing.table.set_column(place, "label", unlabelled)
    return identify(dataclasses.replace(listing, table=table, extra=()))


def identify(listing: Listing) -> str:
    """What tells a source from another, whatever it is called: 64 hexadecimal digits.

    Names, labels and places of all rows, sizes of all files and, up to 256 MiB, all their bytes. Of
    more, 2,048 blocks of 4 KiB at even distances, and all of what is small: statistics, and
    archives below 1 MiB. A set that was made otherwise differs there; an edit of a few bytes in a
    larger file (or in a file of one row) that leaves every size as it was is not seen.

    Raises:
        ValueError: a file cannot be read.
    """
    digest = hashlib.sha256(listing.format.encode())
    for name in ("name", "offset", "size", "label"):
        for value in listing.table[name].to_pylist():
            digest.update(f"{value}\0".encode())
    names = (*listing.files, *listing.extra)
    try:
        sizes = _sizes(listing)
        for name, size in zip(names, sizes, strict=True):
            digest.update(f"{name}\0{size}\0".encode())
        if sum(sizes) <= WHOLE:
            for name, size in zip(names, sizes, strict=True):
                if size:
                    _add_file(digest, listing.root / name)
        else:
            _add_probes(digest, listing.root, names, sizes)
            for name in _read_whole(listing, sizes):
                _add_file(digest, listing.root / name)
    except OSError as error:
        raise ValueError(f"{listing.root} cannot be read: {error}") from error
    return digest.hexdigest()


def _read_whole(listing: Listing, sizes: Sequence[int]) -> list[str]:
    """Files of a large source that probes may miss, and that count: statistics, small archives."""
    small = (
        ()
        if listing.format in LOOSE
        else (name for name, size in zip(listing.files, sizes, strict=False) if size < SMALL)
    )
    # All that a mapping says are labels, which are read.
    return [*small, *(name for name in listing.extra if name not in (MAPPING, CLASSES))]


def _sizes(listing: Listing) -> list[int]:
    """Bytes of `files` and `extra`: of one file a row they were read when it was listed."""
    loose = listing.format in LOOSE
    sizes: list[int] = listing.table["size"].to_pylist() if loose else []
    asked = listing.extra if loose else (*listing.files, *listing.extra)
    return sizes + [(listing.root / name).stat().st_size for name in asked]


def _add_file(digest: Any, path: Path) -> None:  # noqa: ANN401
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)


def _add_probes(digest: Any, root: Path, names: Sequence[str], sizes: Sequence[int]) -> None:  # noqa: ANN401
    ends = np.cumsum(np.asarray(sizes, np.int64))
    for place in np.linspace(0, int(ends[-1]) - 1, PROBES).astype(np.int64):
        number = int(np.searchsorted(ends, place, side="right"))
        with (root / names[number]).open("rb") as file:
            file.seek(int(place - ends[number] + sizes[number]))
            digest.update(file.read(PROBE))
