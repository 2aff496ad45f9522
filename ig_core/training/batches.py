"""Batches by position: the images of a worker in a step, and the random numbers drawn for them.

Position `p = n * batch_size + j` is image `j` of the global batch of step `n`. Its place in the
shuffled data, its time, its noise and whether its label is dropped are functions of the seed and
`p` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ig_core.loss import drop_labels
from ig_core.noise import AddressedNoise
from ig_core.path import training_time

if TYPE_CHECKING:
    from ig_core.config import LossConfig


class Dataset(Protocol):
    """Training data by index."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Read data (B, C, H, W) float32 and labels (B,) int64 of the rows `index` (B,)."""


@runtime_checkable
class DrawnDataset(Protocol):
    """Training data that are drawn anew whenever they are seen, by address: (seed, position)."""

    def __len__(self) -> int: ...

    def rows(self, index: Tensor, positions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Read the stored values of rows `index` (B,), on the CPU, and labels (B,) int64."""

    def draw(self, rows: Tensor, positions: Tensor, seed: int) -> Tensor:
        """Draw data (B, C, H, W) float32 from stored values, on the training device."""


@dataclass(frozen=True)
class WorkerShare:
    """One worker's part of the work: `rank` of `world_size`, at most `micro_batch` at once."""

    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None

    def check(self, batch_size: int) -> None:
        """Raise ValueError unless every worker gets at least one image of the global batch."""
        if batch_size < self.world_size:
            raise ValueError(
                f"batch_size must be at least the number of workers "
                f"({self.world_size}), but got {batch_size}"
            )

    def positions(self, step: int, batch_size: int) -> list[Tensor]:
        """Return this worker's positions in step `step` (0-based), a tensor for each micro-batch.

        All workers have as many micro-batches, since sharded parameters are gathered for each of
        them. Where one has an image less than others, its last micro-batch may be empty.
        """
        least, larger = divmod(batch_size, self.world_size)
        size = least + (self.rank < larger)
        first = step * batch_size + self.rank * least + min(self.rank, larger)
        most = least + (larger > 0)
        count = -(-most // (self.micro_batch or most))
        return list(torch.arange(first, first + size).tensor_split(count))


class DataOrder:
    """Shuffled passes over the data: every row once an epoch, in an order drawn from the seed."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self._noise = AddressedNoise(seed, "train/order")
        self._epochs: dict[int, Tensor] = {}

    def rows(self, positions: Tensor) -> Tensor:
        """Look up the data rows of positions (B,)."""
        epochs, offsets = positions // self.length, positions % self.length
        rows = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            rows[chosen] = self._permutation(epoch)[offsets[chosen]]
        return rows

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            high, low = self._noise.bits(torch.arange(self.length), 2, step=epoch).unbind(1)
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs[epoch] = torch.argsort((high >> 1) << 32 | low, stable=True)
        return self._epochs[epoch]


class Batch(NamedTuple):
    """Arguments of `ig_loss`, on the training device."""

    x: Tensor
    y: Tensor
    t: Tensor
    noise: Tensor


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; a GPU copies from pinned memory while this thread goes on."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class BatchSource:
    """Batches by position: data and all randomness addressed by (seed, position)."""

    def __init__(
        self, dataset: Dataset | DrawnDataset, loss: LossConfig, seed: int, null_label: int
    ) -> None:
        self.dataset, self.loss, self.null_label = dataset, loss, null_label
        self._seed = seed
        self._order = DataOrder(len(dataset), seed)
        self._draws = AddressedNoise(seed, "train/draws")
        self._noise = AddressedNoise(seed, "train/noise")

    def batch(self, positions: Tensor, device: torch.device) -> Batch:
        """Make the batch of positions (B,)."""
        rows = self._order.rows(positions)
        if isinstance(self.dataset, DrawnDataset):
            x, y = self.dataset.rows(rows, positions, self._seed)
        else:
            x, y = self.dataset.batch(rows)
        positions, x, y = (_to_device(tensor, device) for tensor in (positions, x, y))
        if isinstance(self.dataset, DrawnDataset):
            x = self.dataset.draw(x, positions, self._seed)
        if self.loss.time_distribution == "uniform":
            draw = self._draws.uniform(positions)
        else:
            draw = self._draws.normal(positions)
        dropped = drop_labels(
            y, self._draws.uniform(positions, step=1), self.loss.label_dropout, self.null_label
        )
        noise = self._noise.normal(positions, tuple(x.shape[1:]))
        return Batch(x, dropped, training_time(draw, self.loss), noise)
