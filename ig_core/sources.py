"""Where training data come from: a list of rows, each with its name, place and label.

Images: a folder with a subfolder for each class, Parquet files with encoded images (the layout of
Hugging Face: a struct of bytes and path, and a label), WebDataset tars (`KEY.jpg`, `KEY.cls`), or a
zip of ADM and EDM2 (`dataset.json`). Latents: a folder of .npy files as SiT and REPA prepare them,
or safetensors shards of LightningDiT. Listing reads names and headers alone; tars are read by the
standard library, which gives the place of each member, so that any row can be read by itself.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ig_core.source_formats import LISTERS, Row, detect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WHOLE = 2**28
"""Bytes up to which all of a source is read to identify it."""
PROBES, PROBE = 2048, 4096
"""Places in a larger one that are read, and bytes at each."""


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

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def has_latents(self) -> bool:
        """Whether the rows are latents instead of encoded images."""
        return self.format in ("npy", "safetensors")

    def write(self, path: Path) -> None:
        """Write it as a Parquet file, for `read_listing`."""
        about = {"format": self.format, "files": list(self.files), "extra": list(self.extra)}
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
    return Listing(root, about["format"], table, tuple(about["files"]), tuple(about["extra"]))


def list_source(path: Path, num_classes: int) -> Listing:
    """List what lies at a path.

    Args:
        path: A folder, a file, or a pattern in the last part of the name (`train-*.parquet`).
        num_classes: Labels must be below.

    Raises:
        ValueError: nothing there has one of the formats, or a row lacks a label in
            0..num_classes - 1.
    """
    found = detect(path)
    try:
        rows = LISTERS[found.format](found.root, found.files)
    except (OSError, KeyError, TypeError, tarfile.TarError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} cannot be read as {found.format}: {error!r}") from error
    if not rows:
        raise ValueError(f"{path} holds no images or latents (looked for: {found.format})")
    if found.format in ("folder", "npy", "zip"):
        rows.sort(key=lambda row: row.name)
    for row in rows:
        if not 0 <= row.label < num_classes:
            raise ValueError(f"{path}: the label of {row.name} must be in 0..{num_classes - 1} "
                             f"(data.num_classes={num_classes}), but is {row.label}")  # fmt: skip
    table = pa.table({name: [getattr(row, name) for row in rows] for name in Row._fields})
    loose = found.format in ("folder", "npy")
    files = tuple(dict.fromkeys(row.file for row in rows)) if loose else tuple(found.files)
    return Listing(found.root, found.format, table, files, found.extra)


def identify(listing: Listing) -> str:
    """What tells a source from another, whatever it is called: 64 hexadecimal digits.

    Names, labels and places of all rows, sizes of all files and, up to 256 MiB, all their bytes. Of
    more, 2,048 blocks of 4 KiB at even distances: a set that was made otherwise differs there; an
    edit of a few bytes that leaves every size as it was is not seen.
    """
    digest = hashlib.sha256(listing.format.encode())
    for name in ("name", "offset", "size", "label"):
        for value in listing.table[name].to_pylist():
            digest.update(f"{value}\0".encode())
    names = (*listing.files, *listing.extra)
    sizes = [(listing.root / name).stat().st_size for name in names]
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\0".encode())
    if sum(sizes) <= WHOLE:
        for name in names:
            digest.update((listing.root / name).read_bytes())
    else:
        _add_probes(digest, listing.root, names, sizes)
    return digest.hexdigest()


def _add_probes(digest: Any, root: Path, names: Sequence[str], sizes: Sequence[int]) -> None:  # noqa: ANN401
    ends = np.cumsum(np.asarray(sizes, np.int64))
    for place in np.linspace(0, int(ends[-1]) - 1, PROBES).astype(np.int64):
        number = int(np.searchsorted(ends, place, side="right"))
        with (root / names[number]).open("rb") as file:
            file.seek(int(place - ends[number] + sizes[number]))
            digest.update(file.read(PROBE))
