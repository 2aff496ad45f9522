"""Rows of a listed source: the bytes of an image, or a latent as another program made it."""

from __future__ import annotations

import functools
import zipfile
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ig_core.data.sources.formats import STATISTICS
from ig_core.data.sources.listing import image_type
from ig_core.files.encoded_images import (
    MAX_IMAGE_BYTES,
    bounded,
    read_image_file,
    read_zip_member,
    too_large,
)
from ig_core.files.tensors import open_tensors, read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ig_core.data.sources.formats import Row
    from ig_core.data.sources.listing import Listing
    from ig_core.files.encoded_images import Encoded

MAX_PARQUET_ROWS = 16
"""Largest number of rows of a Parquet file in memory at once; fewer where rows are large."""
PARQUET_BUFFER_BYTES = 2**20
"""Bytes of a Parquet file that are read at once."""


def image_files(listing: Listing, start: int, stop: int) -> Iterator[tuple[Row, Encoded]]:
    """Read the image files of rows, in order; a fault stands for a file that cannot be read.

    Raises:
        ValueError: If an archive is missing, or a Parquet file has no image bytes.
    """
    rows = listing.rows(start, stop)
    for file, group in groupby(rows, key=lambda row: row.file):
        path, members = listing.root / file, list(group)
        yield from zip(members, _READERS[listing.format](path, members), strict=True)


def _read_loose(path: Path, rows: Sequence[Row]) -> Iterator[Encoded]:
    for _ in rows:
        yield read_image_file(path)


def _read_tar(path: Path, rows: Sequence[Row]) -> Iterator[Encoded]:
    with path.open("rb") as file:
        for row in rows:
            fault = too_large(row.size)
            if fault is not None:
                yield fault
                continue
            file.seek(row.offset)
            data = file.read(row.size)
            yield data if len(data) == row.size else "is cut short"


@functools.lru_cache(maxsize=1)
def _open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip and keep the last one: a directory of a million names takes seconds to read."""
    return zipfile.ZipFile(path)


def _read_zip(path: Path, rows: Sequence[Row]) -> Iterator[Encoded]:
    archive = _open_zip(path)
    for row in rows:
        try:
            yield read_zip_member(archive, row.name)
        except ValueError as error:
            yield str(error)


def _read_parquet(path: Path, rows: Sequence[Row]) -> Iterator[Encoded]:
    """Read row group by row group, the smallest unit of Parquet, a few rows at a time."""
    file = pq.ParquetFile(path, buffer_size=PARQUET_BUFFER_BYTES)
    image_type(file.schema_arrow, path)
    first, waiting = 0, list(rows)
    for number in range(file.num_row_groups):
        after = first + file.metadata.row_group(number).num_rows
        mine = [row.offset - first for row in waiting if row.offset < after]
        if mine:
            yield from _read_row_group(file, number, mine)
            waiting = waiting[len(mine) :]
        first = after


def _read_row_group(file: pq.ParquetFile, number: int, wanted: Sequence[int]) -> Iterator[Encoded]:
    """Read images of one row group by ascending places; after damage only faults follow."""
    first, done = 0, 0
    at_once = _rows_at_once(file.metadata.row_group(number))
    try:
        for batch in file.iter_batches(at_once, row_groups=[number], columns=["image"]):
            column, after = batch.column(0), first + len(batch)
            while done < len(wanted) and wanted[done] < after:
                value = column[wanted[done] - first].as_py()
                done += 1  # before the image is given away: nothing is given twice
                data = value.get("bytes") if isinstance(value, dict) else value
                yield "holds no image" if data is None else bounded(data)
            first = after
            if done == len(wanted):
                return
    except (OSError, pa.ArrowException) as error:
        fault = f"cannot be read: {error}"
    else:
        fault = "is missing"
    for _ in wanted[done:]:
        yield fault


def _rows_at_once(group: pq.RowGroupMetaData) -> int:
    """Count the rows that together expand to about what one image may take, by their mean.

    Parquet expands rows before their sizes are known.
    """
    columns = [group.column(i) for i in range(group.num_columns)]
    expanded = sum(column.total_uncompressed_size for column in columns)
    mean = max(expanded // max(group.num_rows, 1), 1)
    return min(max(MAX_IMAGE_BYTES // mean, 1), MAX_PARQUET_ROWS)


_READERS = {
    "folder": _read_loose,
    "zip": _read_zip,
    "tar": _read_tar,
    "parquet": _read_parquet,
}


class LatentRows(NamedTuple):
    """Latents as another program stored them."""

    latent: NDArray[np.float32]
    """(N, D, H, W); D is 2C for moments, mean then standard deviation, and C for samples."""
    mirror: NDArray[np.float32] | None
    """Those of the mirrored images, if they are there."""
    label: NDArray[np.int64]
    """(N,)"""


def latent_depth(form: str, channels: int) -> int:
    """Return the channels of stored rows: .npy files hold moments, safetensors samples of them."""
    return 2 * channels if form == "npy" else channels


def latent_rows(listing: Listing, start: int, stop: int) -> LatentRows:
    """Read the latents of rows.

    Raises:
        ValueError: If a latent cannot be read, is not finite, or has another shape than the first.
    """
    rows = listing.rows(start, stop)
    labels = np.asarray([row.label for row in rows], np.int64)
    if listing.format == "npy":
        latent = np.stack(_alike([_read_npy(listing.root / row.file) for row in rows], rows))
        return LatentRows(_finite(latent, rows), None, labels)
    pieces, mirrors = [], []
    for file, group in groupby(rows, key=lambda row: row.file):
        places = [row.offset for row in group]
        span = slice(places[0], places[-1] + 1)
        with open_tensors(listing.root / file) as archive:
            pieces.append(archive.get_slice("latents")[span])
            if "latents_flip" in archive.keys():  # noqa: SIM118 - not a dictionary
                mirrors.append(archive.get_slice("latents_flip")[span])
    if mirrors and len(mirrors) != len(pieces):
        raise ValueError(f"{listing.root} holds mirrored latents in some of its files only")
    latent = _finite(torch.cat(pieces).float().numpy(), rows)
    mirror = _finite(torch.cat(mirrors).float().numpy(), rows) if mirrors else None
    return LatentRows(latent, mirror, labels)


def _read_npy(path: Path) -> NDArray[np.float32]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file: {error}") from error
    if array.ndim == 4 and len(array) == 1:  # as one program of the family saves them
        array = array[0]
    if array.ndim != 3 or array.dtype.kind != "f":
        raise ValueError(f"{path} must be float (2C, H, W), but is {array.dtype} {array.shape}")
    return array.astype(np.float32)


def _alike(arrays: list[NDArray[np.float32]], rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    for array, row in zip(arrays, rows, strict=True):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{row.name} has shape {array.shape}, but {rows[0].name} has {arrays[0].shape}"
            )
    return arrays


def _finite(array: NDArray[np.floating], rows: Sequence[Row]) -> NDArray[np.float32]:
    bad = ~np.isfinite(array).all(axis=(1, 2, 3))
    if bad.any():
        raise ValueError(f"the latent {rows[int(bad.argmax())].name} is not finite")
    return np.ascontiguousarray(array, np.float32)


def read_normalisation(folder: Path, channels: int) -> tuple[Tensor, Tensor]:
    """Read mean and standard deviation (C,) float64 from LightningDiT's `latents_stats.pt`.

    Raises:
        ValueError: If the file is missing, is not such a file, or has other channels.
    """
    path = folder / STATISTICS
    if not path.is_file():
        raise ValueError(
            f"latents of the va-vae are normalised by {STATISTICS}, which is missing in {folder}"
        )
    mean, std = read_statistics(path)
    problem = statistics_problem(mean, std, channels)
    if problem is not None:
        raise ValueError(f"{path} {problem}")
    return mean.double().flatten(), std.double().flatten()


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Read mean and standard deviation from a file such as LightningDiT's `latents_stats.pt`.

    Nothing in the file is executed.

    Raises:
        ValueError: If the file cannot be read, or holds no such tensors of floating-point numbers.
    """
    try:
        found = read_file(path)
        mean, std = (found[name] for name in ("mean", "std"))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} must hold mean and std, two tensors: {error}") from error
    for name, value in (("mean", mean), ("std", std)):
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or not value.is_floating_point()
            or not value.numel()
        ):
            what = (
                f"{value.dtype} {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else f"{value!r:.80}"
            )
            raise ValueError(
                f"{path} must hold mean and std, two tensors: {name} must be a tensor of "
                f"floating-point numbers, but is {what}"
            )
    return mean, std


def statistics_problem(mean: Tensor, std: Tensor, channels: int) -> str | None:
    """Return why statistics cannot normalise latents of so many channels; None if they can."""
    expected = f"must hold a finite mean and a positive std of {channels} channels, but"
    if not mean.numel() == std.numel() == channels:
        return f"{expected} they have shapes {tuple(mean.shape)} and {tuple(std.shape)}"
    mean, std = mean.double().flatten(), std.double().flatten()
    bad = ~(mean.isfinite() & std.isfinite() & (std > 0))
    if not bool(bad.any()):
        return None
    first = int(bad.int().argmax())
    return (
        f"{expected} those of {int(bad.sum())} are not so, the first of them channel {first}: "
        f"{float(mean[first])} and {float(std[first])}"
    )
