"""Latents in memory-mapped Arrow shards, and as training data.

A shard is one uncompressed Arrow file with one record batch: `index` and `label` int64, `latent`
and, if there are mirrored images, `mirror` as binary of fixed size; the shape and type are in the
schema's metadata. A row is read where it lies in the mapped file, without a copy before the one
into the batch. Rows hold the moments of the encoder's posterior, mean then standard deviation
(2C channels), or samples of it or pixels (C channels).
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ig_core.config import SettingError
from ig_core.data.shards import Shard, mapped_bytes
from ig_core.noise import AddressedNoise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ig_core.data.normalisation import Normalisation


MAPPED_BYTES_LIMIT = 2**30
"""Mapped bytes, beyond those at the start, above which pages are given back: they stay in the
system's cache, but no longer count as memory of this process. (The system maps up to 2 MiB around
each row that is read.)"""
READAHEAD_BYTES = 2**13
"""Bytes of a row from which reads are announced to the system: a disk then reads rows at once, and
no more than them."""


class LatentDataset:
    """Shards as training data (the `DrawnDataset` of `ig_core.training.batches`)."""

    def __init__(
        self, paths: Sequence[Path], normalisation: Normalisation, *, flip: bool = False
    ) -> None:
        """Map the shards; nothing but their heads and labels is read.

        Args:
            paths: Shards, in the order of their rows.
            normalisation: As many channels as the model learns.
            flip: Mirror at random.

        Raises:
            ValueError: If a file is not a shard, shapes differ, mirrored latents are missing, or
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
                raise SettingError(
                    f"flip must be off: {path} holds no mirrored latents", flip="off"
                )
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
        self._ahead = hasattr(mmap, "MADV_WILLNEED") and first.latent.strides[0] >= READAHEAD_BYTES
        self._labels = torch.from_numpy(np.concatenate([shard.label for shard in self.shards]))
        self._at_start = mapped_bytes()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, index: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Read stored rows (B, D, H, W) as they are, on the CPU, and labels (B,)."""
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
        if mapped_bytes() - self._at_start >= MAPPED_BYTES_LIMIT:
            for shard in self.shards:
                shard.release()

    def draw(self, rows: Tensor, positions: Tensor, seed: int) -> Tensor:
        """Draw the model's data (B, C, H, W) float32 from stored rows, on their device.

        The posterior is sampled, mean + std * noise, with noise addressed by (seed, position).
        """
        if rows.dtype == torch.uint8:
            rows = rows.float() / 127.5 - 1
        if self.moments:
            mean, std = rows.chunk(2, dim=1)
            noise = AddressedNoise(seed, "train/posterior").normal(positions, tuple(mean.shape[1:]))
            rows = mean + std * noise
        return self.normalisation.apply(rows)
