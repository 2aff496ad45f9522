"""List the rows of training data, each with its name, place and label.

Images: a folder with a subfolder for each class, Parquet files with encoded images (the layout of
Hugging Face: a struct of bytes and path, and a label), WebDataset tars (`KEY.jpg`, and `KEY.cls` or
`KEY.json`), or a zip of ADM and EDM2 (`dataset.json`). Latents: a folder of .npy files as SiT and
REPA prepare them, or safetensors shards of LightningDiT. Listing reads names, headers and labels
alone; tars are read by the standard library, which gives the place of each member, so that any row
can be read by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ig_core.data.sources.formats import CLASSES, MAPPING, ONE_ROW_PER_FILE, DetectedSource, Row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ig_core.data.sources.labels import Labels


FULL_DIGEST_BYTES = 2**28
"""Largest source in bytes that is read whole to identify it."""
PROBE_COUNT, PROBE_BYTES = 2048, 4096
"""Places of a larger source that are read, and bytes at each."""
SMALL_ARCHIVE_BYTES = 2**20
"""Size below which an archive of a larger source is read whole too."""


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
        """True if the rows are latents instead of encoded images."""
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
        """Return rows `start` to `stop`."""
        part = self.table.slice(start, stop - start).to_pylist()
        return [Row(**row) for row in part]


def read_listing(path: Path, root: Path) -> Listing:
    """Read a listing that `write` wrote, of a source that lies at `root` now."""
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


def identify(listing: Listing) -> str:
    """Compute the identity of a source by its content: 64 hexadecimal digits.

    Names, labels and places of all rows, sizes of all files and, up to 256 MiB, all their bytes. Of
    more, 2,048 blocks of 4 KiB at even distances, and all of what is small: statistics, and
    archives below 1 MiB. A set that was made otherwise differs there; an edit of a few bytes in a
    larger file (or in a file of one row) that leaves every size as it was is not seen.

    Raises:
        ValueError: If a file cannot be read.
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
        if sum(sizes) <= FULL_DIGEST_BYTES:
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
    """List files of a large source that are read whole: statistics, small archives."""
    small = (
        ()
        if listing.format in ONE_ROW_PER_FILE
        else (
            name
            for name, size in zip(listing.files, sizes, strict=False)
            if size < SMALL_ARCHIVE_BYTES
        )
    )
    # All that a mapping says are labels, which are read.
    return [*small, *(name for name in listing.extra if name not in (MAPPING, CLASSES))]


def _sizes(listing: Listing) -> list[int]:
    """Return the bytes of `files` and `extra`; those of one file a row are in the listing."""
    loose = listing.format in ONE_ROW_PER_FILE
    sizes: list[int] = listing.table["size"].to_pylist() if loose else []
    asked = listing.extra if loose else (*listing.files, *listing.extra)
    return sizes + [(listing.root / name).stat().st_size for name in asked]


def _add_file(digest: Any, path: Path) -> None:  # noqa: ANN401
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)


def _add_probes(digest: Any, root: Path, names: Sequence[str], sizes: Sequence[int]) -> None:  # noqa: ANN401
    ends = np.cumsum(np.asarray(sizes, np.int64))
    for place in np.linspace(0, int(ends[-1]) - 1, PROBE_COUNT).astype(np.int64):
        number = int(np.searchsorted(ends, place, side="right"))
        with (root / names[number]).open("rb") as file:
            file.seek(int(place - ends[number] + sizes[number]))
            digest.update(file.read(PROBE_BYTES))


IMAGES = {
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".tga",
    ".dds",
    ".psd",
    ".svg",
}
"""Suffixes of images, in lower case; one that cannot be decoded becomes a faulty image."""


@dataclass
class ListingContext:
    """Input of a lister, and its record of files that it passes over."""

    found: DetectedSource
    num_classes: int
    labels: Labels | None
    """Labels that the experiment gives; None: those that lie with the data."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Suffix, name or hidden folder -> how many are neither images nor labels."""


def labelled(files: Sequence[tuple[str, int]], labels: Labels, suffixes: set[str]) -> list[Row]:
    """Make rows of files (name, bytes) that hold one image or latent each."""
    rows = [Row(name, name, 0, size, labels.of(name)) for name, size in files]
    labels.check({name for name, _ in files}, suffixes)
    return rows


def image_type(schema: pa.Schema, path: Path) -> pa.DataType:
    """Return the type of the bytes in column image: the column itself, or its field `bytes`.

    Raises:
        ValueError: If the column has another type.
    """
    kind = held = schema.field("image").type
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        held = kind.field("bytes").type if "bytes" in names else kind
    if not (
        pa.types.is_binary(held)
        or pa.types.is_large_binary(held)
        or pa.types.is_fixed_size_binary(held)
    ):
        raise ValueError(
            f"{path}: column image must hold bytes, or a struct with bytes, but holds {kind}"
        )
    return held
