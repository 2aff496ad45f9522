"""The training loop: a function of (configuration, seed), whatever the number of workers.

Image `j` of the global batch of step `n` has position `p = n * batch_size + j`. Its place in the
shuffled data, its time, its noise and whether its label is dropped are all functions of the seed
and `p`. Workers take equal contiguous parts of every batch, so their number decides only who
computes what, and a training that continues from a checkpoint cannot tell that it was interrupted.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, distributed
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from ig_core.loss import drop_labels, ig_loss
from ig_core.noise import AddressedNoise
from ig_core.optim import ema_update, learning_rate, make_optimizers, set_learning_rate
from ig_core.path import training_time
from ig_core.precision import autocast, loss_scaler
from ig_core.transformer import DiffusionTransformer, Velocities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ig_core.config import LossConfig, ModelConfig, OptimConfig, TrainConfig

HISTORY_COLUMNS = ("total", "final", "aux", "grad_norm")
"""Of each step; grad_norm is NaN where fp16 overflowed and the step was skipped."""
SMALLEST_LOSS_SCALE = 2.0**-10
"""Below it the gradients of fp16 are not too large for the format but infinite."""


class Dataset(Protocol):
    """Training data by index."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Data (B, C, H, W) float32 and labels (B,) int64 of the rows `index` (B,)."""


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient norm became NaN or infinite at `step` (1-based)."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or gradient norm of step {step} is not finite")
        self.step = step


@dataclass
class TrainState:
    """All that a training is: a checkpoint holds exactly this."""

    model: DiffusionTransformer
    optim: OptimConfig
    ema: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    """Loss scale of fp16; does nothing in other precisions."""
    step: int = 0
    history: Tensor = field(default_factory=lambda: torch.zeros(0, len(HISTORY_COLUMNS)))
    """One row of HISTORY_COLUMNS for each step taken, float32 on the CPU."""

    @classmethod
    def new(
        cls, model: ModelConfig, optim: OptimConfig, seed: int, device: torch.device | str = "cpu"
    ) -> TrainState:
        """Untrained state; the weights are a function of the seed."""
        network = DiffusionTransformer(model)
        network.initialise(seed)
        network.to(device)
        ema = {name: p.detach().clone() for name, p in network.named_parameters()}
        scaler = loss_scaler(optim.precision, network.pos_embed.device)
        return cls(network, optim, ema, make_optimizers(network, optim), scaler)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.model.pos_embed.device

    def averaged(self, x: Tensor, t: Tensor, y: Tensor) -> Velocities:
        """The model's velocities with the averaged weights."""
        velocities: Velocities = functional_call(self.model, self.ema, (x, t, y))
        return velocities


@dataclass(frozen=True)
class Share:
    """One worker's part of the work: `rank` of `world_size`, at most `micro_batch` at once."""

    rank: int = 0
    world_size: int = 1
    micro_batch: int | None = None

    def check(self, batch_size: int) -> None:
        """Raise ValueError unless the global batch divides evenly among the workers."""
        if batch_size % self.world_size:
            raise ValueError(f"batch_size must be a multiple of the number of workers "
                             f"({self.world_size}), but got {batch_size}")  # fmt: skip

    def positions(self, step: int, batch_size: int) -> list[Tensor]:
        """Positions of this worker's images in step `step` (0-based), one tensor a micro-batch."""
        size = batch_size // self.world_size
        first = step * batch_size + self.rank * size
        return list(torch.arange(first, first + size).split(self.micro_batch or size))


class DataOrder:
    """Shuffled passes over the data: every row once an epoch, in an order drawn from the seed."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self._noise = AddressedNoise(seed, "train/order")
        self._epochs: dict[int, Tensor] = {}

    def rows(self, positions: Tensor) -> Tensor:
        """Data rows for positions (B,)."""
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
    """What `ig_loss` takes, on the training device."""

    x: Tensor
    y: Tensor
    t: Tensor
    noise: Tensor


class BatchSource:
    """Batches by position: data and all randomness addressed by (seed, position)."""

    def __init__(self, dataset: Dataset, loss: LossConfig, seed: int, null_label: int) -> None:
        self.dataset, self.loss, self.null_label = dataset, loss, null_label
        self._order = DataOrder(len(dataset), seed)
        self._draws = AddressedNoise(seed, "train/draws")
        self._noise = AddressedNoise(seed, "train/noise")

    def batch(self, positions: Tensor, device: torch.device) -> Batch:
        """Batch for positions (B,)."""
        x, y = self.dataset.batch(self._order.rows(positions))
        positions, x, y = positions.to(device), x.to(device), y.to(device)
        if self.loss.time_distribution == "uniform":
            draw = self._draws.uniform(positions)
        else:
            draw = self._draws.normal(positions)
        dropped = drop_labels(y, self._draws.uniform(positions, step=1), self.loss.label_dropout,
                              self.null_label)  # fmt: skip
        noise = self._noise.normal(positions, tuple(x.shape[1:]))
        return Batch(x, dropped, training_time(draw, self.loss), noise)


def train(
    state: TrainState,
    dataset: Dataset,
    loss: LossConfig,
    config: TrainConfig,
    share: Share | None = None,
    flush_every: int = 25,
) -> Iterator[int]:
    """Train from `state.step` to `config.steps`, updating `state` in place.

    With `share.world_size > 1` the default process group must be up; gradients are averaged by
    DistributedDataParallel.

    Args:
        state: Where to start from.
        dataset: Training data.
        loss: Objective.
        config: Length, global batch and seed.
        share: This worker's part; everything by default.
        flush_every: Steps after which losses are gathered from the workers and checked.

    Yields:
        The number of steps done. At a multiple of `flush_every` and at checkpoint steps the
        history is complete, finite and the same on all workers.

    Raises:
        ValueError: the batch does not divide among the workers.
        NonFiniteLossError: on every worker alike, before such a state can be yielded at a
            checkpoint step.
    """
    share = share or Share()
    share.check(config.batch_size)
    source = BatchSource(dataset, loss, config.seed, state.model.config.null_label)
    # Buckets that stay in registration order: the sum of gradients does not depend on when the
    # process was started, so that a resumed run is the uninterrupted one bit for bit.
    network = (
        DistributedDataParallel(state.model, find_unused_parameters=True)
        if share.world_size > 1
        else state.model
    )
    state.model.train()
    parameters = list(state.model.parameters())
    pending: list[Tensor] = []
    checkpoints = set(config.checkpoint_steps)
    while state.step < config.steps:
        row = _accumulate(network, source, state, loss, share, config.batch_size)
        norm = _step(state, parameters)
        ema_update(state.ema.values(), parameters, state.optim.ema_decay)
        state.step += 1
        pending.append(torch.cat([row, norm.view(1)]))
        if state.step % flush_every == 0 or state.step in checkpoints:
            _flush(state, pending, share.world_size)
        yield state.step


def _accumulate(
    network: torch.nn.Module,
    source: BatchSource,
    state: TrainState,
    loss: LossConfig,
    share: Share,
    batch_size: int,
) -> Tensor:
    """Gradient of the mean loss over this worker's part; returns its (total, final, aux)."""
    state.model.zero_grad(set_to_none=True)
    parts = share.positions(state.step, batch_size)
    row = torch.zeros(3, device=state.device)
    for number, positions in enumerate(parts, start=1):
        wrapped = network if isinstance(network, DistributedDataParallel) else None
        with wrapped.no_sync() if wrapped and number < len(parts) else nullcontext():
            batch = source.batch(positions, state.device)
            with autocast(state.optim.precision, state.device):
                terms = ig_loss(network, *batch, loss, state.averaged)
            weight = len(positions) * share.world_size / batch_size
            state.scaler.scale(terms.total * weight).backward()
        row += weight * torch.stack([terms.total, terms.final, terms.aux]).detach()
    return row


def _step(state: TrainState, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Clip the gradient and take the step; returns the gradient's norm, a float32 scalar."""
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, state.optim.grad_clip).detach().float()
    set_learning_rate(state.optimizers, learning_rate(state.step, state.optim))
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    return norm


def _flush(state: TrainState, pending: list[Tensor], world_size: int) -> None:
    """Average the pending rows over the workers, check them, append them to the history."""
    rows = torch.stack(pending)
    if world_size > 1:
        distributed.all_reduce(rows)
        rows /= world_size
    rows = rows.cpu()
    if state.scaler.is_enabled() and state.scaler.get_scale() >= SMALLEST_LOSS_SCALE:
        rows[:, 3].masked_fill_(~rows[:, 3].isfinite(), torch.nan)
        checked = rows[:, :3]
    else:
        checked = rows
    bad = (~checked.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise NonFiniteLossError(len(state.history) + int(bad[0]) + 1)
    state.history = torch.cat([state.history, rows])
    pending.clear()
