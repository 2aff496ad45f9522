"""Arrays in .npz files, one at a time and in pieces; nothing in them is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """Header of an array file."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (of the whole array if it has no dimension)."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .npz file.

    Raises:
        ValueError: If it is missing, no zip file, or damaged at the place that is read in `with`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


def names(archive: zipfile.ZipFile) -> set[str]:
    """Return the names of the arrays."""
    return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def has_arrays(path: Path, wanted: set[str]) -> bool:
    """Check whether a file holds all of these arrays.

    Raises:
        ValueError: If it is no .npz file.
    """
    with open_npz(path) as archive:
        return wanted <= names(archive)


@contextmanager
def open_array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Header, BinaryIO]]:
    """Open an array: its header, and a stream of its data.

    Raises:
        ValueError: If there is no such array, it holds Python objects, or is stored by columns.
    """
    where = f"{archive.filename}: array {name!r}"
    if name not in names(archive):
        known = ", ".join(sorted(names(archive))) or "none"
        raise ValueError(f"{where} is missing; the file holds {known}")
    try:
        opened = archive.open(f"{name}.npy")
    except RuntimeError as error:  # encrypted
        raise ValueError(f"{where} cannot be read: {error}") from error
    with opened as stream:
        try:
            shape, by_columns, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{where} has no readable header: {error}") from error
        if dtype.hasobject:
            raise ValueError(f"{where} holds pickled Python objects, which are never loaded")
        if by_columns and len(shape) > 1:
            raise ValueError(
                f"{where} is stored by columns, but rows must follow one another: "
                f"save np.ascontiguousarray(array)"
            )
        yield Header(shape, dtype), stream  # type: ignore[misc]


def read_rows(header: Header, stream: BinaryIO, count: int, where: str) -> NDArray[np.generic]:
    """Read the next `count` rows of an array.

    Raises:
        ValueError: If the data end before.
    """
    wanted = count * header.row_bytes
    data = stream.read(wanted)
    if len(data) < wanted:
        raise ValueError(f"{where} ends early: {wanted - len(data)} bytes are missing")
    return np.frombuffer(bytearray(data), header.dtype).reshape(count, *header.shape[1:])


def read_array(
    archive: zipfile.ZipFile, name: str, shape: Sequence[int | None]
) -> NDArray[np.generic]:
    """Read a whole array whose shape is given; None stands for any size.

    Raises:
        ValueError: As `open_array`, or if the array has another shape than expected.
    """
    where = f"{archive.filename}: array {name!r}"
    with open_array(archive, name) as (header, stream):
        fits = len(header.shape) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, header.shape, strict=False)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{where} must have shape ({wanted}), but has {header.shape}")
        return read_rows(header, stream, header.shape[0], where)
