"""Shards of latents: written once, read through memory maps."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray


STATM = Path("/proc/self/statm")
"""Linux: pages of this process, the third number those of mapped files."""


class ShardWriter:
    """Writes a shard a piece at a time; rows wait in files without a name, not in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        """Start an empty shard; rows wait in `folder`, or where temporary files usually are."""
        self._folder = folder
        self._index: list[NDArray[np.int64]] = []
        self._label: list[NDArray[np.int64]] = []
        self._columns: dict[str, IO[bytes]] = {}
        self._form: tuple[tuple[int, ...], str] | None = None

    def add(self, index: Any, label: Any, latent: Any, mirror: Any = None) -> None:  # noqa: ANN401
        """Append rows: index and label (B,), latent and mirror (B, D, H, W) uint8 or float32.

        Raises:
            ValueError: If rows differ from the first in shape, type, or in having mirrored ones.
        """
        rows = {"latent": latent} if mirror is None else {"latent": latent, "mirror": mirror}
        if self._form is None:
            self._form = latent.shape[1:], str(latent.dtype)
            for name in rows:  # open until the shard is written
                self._columns[name] = TemporaryFile(dir=self._folder)  # noqa: SIM115
        forms = {(values.shape[1:], str(values.dtype)) for values in rows.values()}
        if forms != {self._form} or rows.keys() != self._columns.keys():
            raise ValueError(f"rows of a shard must be alike: {self._form} and {forms}")
        self._index.append(np.asarray(index, np.int64))
        self._label.append(np.asarray(label, np.int64))
        for name, values in rows.items():
            self._columns[name].write(np.ascontiguousarray(values).data)

    def write(self, path: Path) -> None:
        """Write the file; ValueError if there is nothing to write."""
        if self._form is None:
            raise ValueError("a shard must hold at least one row")
        shape, dtype = self._form
        columns = {
            "index": pa.array(np.concatenate(self._index)),
            "label": pa.array(np.concatenate(self._label)),
        }
        width = math.prod(shape) * np.dtype(dtype).itemsize
        for name, file in self._columns.items():
            file.flush()
            held = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(width), len(columns["index"]), [None, held]
            )
        batch = pa.record_batch(columns)
        batch = batch.replace_schema_metadata({"shape": json.dumps(shape), "dtype": dtype})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        for file in self._columns.values():
            file.close()


class Shard:
    """One file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._buffer = pa.py_buffer(self.map)
            batch = pa.ipc.open_file(self._buffer).get_batch(0)
            about = batch.schema.metadata
            self.shape = tuple(json.loads(about[b"shape"]))
            self.dtype = np.dtype(about[b"dtype"].decode())
            self.index = batch["index"].to_numpy()
            self.label = batch["label"].to_numpy()
            self.latent = self._view(batch["latent"])
            self.mirror = self._view(batch["mirror"]) if "mirror" in batch.schema.names else None
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ValueError(f"{path} is not a shard of latents: {error}") from error
        self._start = self._buffer.address
        if hasattr(mmap, "MADV_RANDOM"):
            self.map.madvise(mmap.MADV_RANDOM)

    def __len__(self) -> int:
        return len(self.label)

    def _view(self, column: pa.Array) -> NDArray[Any]:
        flat = np.frombuffer(column.buffers()[1], self.dtype)
        return flat.reshape(len(column), *self.shape)

    def announce(self, row: int, column: NDArray[Any]) -> None:
        """Tell the system that a row will be read."""
        width = column.strides[0]
        place = column.ctypes.data - self._start + row * width
        page = place - place % mmap.PAGESIZE
        self.map.madvise(mmap.MADV_WILLNEED, page, place + width - page)

    def release(self) -> None:
        """Give pages that were read back to the system."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


def mapped_bytes() -> int:
    """Return the bytes of files that are mapped into this process; 0 where that is unknown."""
    try:
        return int(STATM.read_text(encoding="utf-8").split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0
