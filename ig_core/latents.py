"""Latents in memory-mapped Arrow shards, and as training data.

A shard is one uncompressed Arrow file with one record batch: `index` and `label` int64, `latent`
and, if there are mirrored images, `mirror` as binary of fixed size; the shape and type are in the
schema's metadata. A row is read where it lies in the mapped file, without a copy before the one
into the batch. Rows hold the moments of the encoder's posterior, mean then standard deviation
(2C channels), or samples of it or pixels (C channels).
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ig_core.noise import AddressedNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RELEASE = 2**30
"""Bytes of mapped files, beyond those at the start, above which their pages are given back: they
stay in the system's cache, but no longer count as memory of this process. (The system maps up to
2 MiB around each row that is read.)"""
STATM = Path("/proc/self/statm")
"""Linux: pages of this process, the third number those of mapped files."""
AHEAD = 2**13
"""Bytes of a row from which the system is told what will be read: a disk then reads rows at once,
and no more than them."""


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
            ValueError: rows differ from the first in shape, type, or in having mirrored ones.
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
    """Bytes of files that are mapped into this process at the moment; 0 where it cannot be told."""
    try:
        return int(STATM.read_text(encoding="utf-8").split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0


@dataclass(frozen=True)
class Normalisation:
    """Between a codec's latents and what the model learns: z = (latent - shift) * factor."""

    shift: tuple[float, ...]
    """Of each channel."""
    factor: tuple[float, ...]
    """Of each channel."""

    @classmethod
    def uniform(cls, channels: int, factor: float) -> Normalisation:
        """The same factor for every channel, and no shift."""
        return cls((0.0,) * channels, (factor,) * channels)

    def apply(self, latent: Tensor) -> Tensor:
        """To what the model learns, (B, C, H, W) float32."""
        shift, factor = (self._like(values, latent) for values in (self.shift, self.factor))
        return (latent - shift) * factor

    def invert(self, z: Tensor) -> Tensor:
        """Back to the codec's latents, (B, C, H, W) float32."""
        shift, factor = (self._like(values, z) for values in (self.shift, self.factor))
        return z / factor + shift

    @staticmethod
    def _like(values: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=x.device)[:, None, None]


class LatentDataset:
    """Shards as training data (the `DrawnDataset` of `ig_core.batches`)."""

    def __init__(
        self, paths: Sequence[Path], normalisation: Normalisation, *, flip: bool = False
    ) -> None:
        """Map the shards; nothing but their heads and labels is read.

        Args:
            paths: Shards, in the order of their rows.
            normalisation: As many channels as the model learns.
            flip: Whether to mirror at random.

        Raises:
            ValueError: a file is no shard, shapes differ, there is no mirrored latent to take, or
                the channels are neither C nor 2C.
        """
        self.shards = [Shard(path) for path in paths]
        self.normalisation, self.flip = normalisation, flip
        first = self.shards[0]
        channels = len(normalisation.shift)
        for path, shard in zip(paths, self.shards, strict=True):
            if (shard.shape, shard.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"{path} holds {shard.dtype} {shard.shape}, but {paths[0]} holds "
                    f"{first.dtype} {first.shape}"
                )
            if flip and shard.mirror is None and shard.dtype != np.uint8:
                raise ValueError(f"data.flip must be off: {path} holds no mirrored latents")
        self.moments = first.shape[0] == 2 * channels
        if not self.moments and first.shape[0] != channels:
            raise ValueError(
                f"{paths[0]} must hold {channels} or {2 * channels} channels, but "
                f"holds {first.shape[0]}"
            )
        sizes = [len(shard) for shard in self.shards]
        self._ends = np.cumsum(sizes)
        self._begins = self._ends - sizes
        plain = [shard.latent for shard in self.shards]
        turned = [s.latent if s.mirror is None else s.mirror for s in self.shards]
        self._columns = (plain, turned)
        self._ahead = hasattr(mmap, "MADV_WILLNEED") and first.latent.strides[0] >= AHEAD
        self._labels = torch.from_numpy(np.concatenate([shard.label for shard in self.shards]))
        self._at_start = mapped_bytes()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, index: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Stored rows (B, D, H, W) as they are, on the CPU, and labels (B,)."""
        order = index.numpy()
        mirrored = np.zeros(len(order), bool)
        if self.flip:
            word = AddressedNoise(seed, "train/flip").bits(positions, 1)[:, 0]
            mirrored = (word & 1).bool().numpy()
        shards = np.searchsorted(self._ends, order, side="right")
        places = list(
            zip(
                shards.tolist(),
                (order - self._begins[shards]).tolist(),
                mirrored.tolist(),
                strict=True,
            )
        )
        if self._ahead:
            for shard, row, turned in places:
                self.shards[shard].announce(row, self._columns[turned][shard])
        first = self.shards[0]
        found = np.empty((len(order), *first.shape), first.dtype)
        # Row by row: one copy each, where indexing by arrays would make two.
        for number, (shard, row, turned) in enumerate(places):
            found[number] = self._columns[turned][shard][row]
        if first.mirror is None and self.flip:
            found[mirrored] = found[mirrored][..., ::-1]
        self._release()
        return torch.from_numpy(found), self._labels[index]

    def _release(self) -> None:
        if mapped_bytes() - self._at_start >= RELEASE:
            for shard in self.shards:
                shard.release()

    def draw(self, rows: Tensor, positions: Tensor, seed: int) -> Tensor:
        """What the model learns of stored rows, (B, C, H, W) float32, wherever they are.

        The posterior is sampled, mean + std * noise, with noise addressed by (seed, position).
        """
        if rows.dtype == torch.uint8:
            rows = rows.float() / 127.5 - 1
        if self.moments:
            mean, std = rows.chunk(2, dim=1)
            noise = AddressedNoise(seed, "train/posterior").normal(positions, tuple(mean.shape[1:]))
            rows = mean + std * noise
        return self.normalisation.apply(rows)


@dataclass
class ChannelSums:
    """Sums over latents, from which each channel's mean and standard deviation follow."""

    count: int
    """Numbers in a channel."""
    total: Tensor
    """(C,) float64"""
    square: Tensor
    """(C,) float64"""

    @classmethod
    def of(cls, rows: Tensor, channels: int) -> ChannelSums:
        """Sums of rows (B, C or 2C, H, W); of moments those of what would be drawn from them."""
        rows = rows.double()
        mean = rows[:, :channels]
        square = mean.square()
        if rows.shape[1] == 2 * channels:
            square = square + rows[:, channels:].square()
        count = mean.numel() // channels
        return cls(count, mean.sum(dim=(0, 2, 3)), square.sum(dim=(0, 2, 3)))

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(
            self.count + other.count, self.total + other.total, self.square + other.square
        )

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,) float64."""
        return self.total / self.count

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel, (C,) float64."""
        return (self.square / self.count - self.mean.square()).clamp(min=0).sqrt()
