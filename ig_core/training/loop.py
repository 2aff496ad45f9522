"""The training loop: a function of (configuration, seed), whatever the number of workers.

Image `j` of the global batch of step `n` has position `p = n * batch_size + j`. Its place in the
shuffled data, its time, its noise and whether its label is dropped are all functions of the seed
and `p`. Workers take contiguous parts of every batch, equal but for one image, so their number
decides only who computes what; a training that continues from a checkpoint, with as many workers
or with others, cannot tell that it was interrupted.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from ig_core.loss import ig_loss
from ig_core.precision import autocast
from ig_core.training.batches import BatchSource, Dataset, DrawnDataset, WorkerShare
from ig_core.training.optim import ema_update, learning_rate, set_learning_rate
from ig_core.training.parts import is_sharded, local, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ig_core.config import LossConfig, TrainConfig
    from ig_core.training.state import TrainState


SMALLEST_LOSS_SCALE = 2.0**-10
"""Loss scale of fp16 below which a gradient that overflows is infinite, not too large."""


class NonFiniteLossError(RuntimeError):
    """Raised where the loss or the gradient norm is NaN or infinite at `step` (1-based)."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or gradient norm of step {step} is not finite")
        self.step = step


def train(
    state: TrainState,
    dataset: Dataset | DrawnDataset,
    loss: LossConfig,
    config: TrainConfig,
    share: WorkerShare | None = None,
    flush_every: int | Callable[[int], bool] = 25,
) -> Iterator[int]:
    """Train from `state.step` to `config.steps`, updating `state` in place.

    With `share.world_size > 1` the default process group must be up; gradients are averaged by
    DistributedDataParallel, or by FSDP where `ig_core.training.sharding` has sharded the state.

    Args:
        state: Where to start from.
        dataset: Training data.
        loss: Objective.
        config: Length, global batch and seed.
        share: This worker's part; everything by default.
        flush_every: Steps after which losses are gathered from the workers and checked; or a
            predicate of the number of steps done, the same on all workers.

    Yields:
        The number of steps done. At a multiple of `flush_every` and at checkpoint steps the
        history is complete, finite and the same on all workers.

    Raises:
        ValueError: If there are more workers than images in a batch.
        NonFiniteLossError: If a loss or gradient norm is not finite; on every worker alike, before
            such a state can be yielded at a checkpoint step.
    """
    share = share or WorkerShare()
    share.check(config.batch_size)
    source = BatchSource(dataset, loss, config.seed, state.model.config.null_label)
    network = _parallel(state, share)
    state.model.train()
    parameters = list(state.model.parameters())
    pending: list[Tensor] = []
    checkpoints = set(config.checkpoint_steps)
    flush_due = flush_every if callable(flush_every) else _multiple_of(flush_every)
    while state.step < config.steps:
        losses = _accumulate(network, source, state, loss, share, config.batch_size)
        norm = _step(state, parameters)
        ema_update(map(local, state.ema.values()), map(local, parameters), state.optim.ema_decay)
        state.step += 1
        pending.append(torch.cat([losses, norm.view(1)]))
        if flush_due(state.step) or state.step in checkpoints:
            _flush(state, pending, share.world_size)
        yield state.step


def _parallel(state: TrainState, share: WorkerShare) -> torch.nn.Module:
    """Wrap the model so that gradients are averaged over the workers."""
    if share.world_size == 1 or is_sharded(state.model):
        return state.model
    # Buckets that stay in registration order: the sum of gradients does not depend on when the
    # process was started, so that a resumed run is the uninterrupted one bit for bit
    # where the same kernels run (the kind of CPU, its threads).
    return DistributedDataParallel(
        state.model, find_unused_parameters=True, forward_sync_buffers=False
    )


@contextmanager
def _gradients_kept_here(network: torch.nn.Module) -> Iterator[None]:
    """Keep the gradients of backward passes on this worker, not averaged yet."""
    if isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)
    else:
        yield


def _multiple_of(number: int) -> Callable[[int], bool]:
    return lambda step: step % number == 0


def _accumulate(
    network: torch.nn.Module,
    source: BatchSource,
    state: TrainState,
    loss: LossConfig,
    share: WorkerShare,
    batch_size: int,
) -> Tensor:
    """Add up the gradient of the mean loss over this worker's images.

    Returns:
        Their loss terms (total, final, aux), weighted by their share of the batch, (3,).
    """
    state.model.zero_grad(set_to_none=True)
    micro_batches = share.positions(state.step, batch_size)
    losses = torch.zeros(3, device=state.device)
    for number, positions in enumerate(micro_batches, start=1):
        with nullcontext() if number == len(micro_batches) else _gradients_kept_here(network):
            # Workers whose micro-batch is empty take part with an image that does not count.
            batch = source.batch(
                positions if len(positions) else micro_batches[0][:1], state.device
            )
            with autocast(state.optim.precision, state.device):
                terms = ig_loss(network, *batch, loss, state.ema_model)
            weight = len(positions) * share.world_size / batch_size
            state.scaler.scale(terms.total * weight).backward()
        losses += weight * torch.stack([terms.total, terms.final, terms.aux]).detach()
    return losses


def _step(state: TrainState, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Clip the gradient and take the step; return the gradient's norm, a float32 scalar."""
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, state.optim.grad_clip)).detach()
    set_learning_rate(state.optimizers, learning_rate(state.step, state.optim))
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.scaler.update()
    return norm.float()


def _flush(state: TrainState, pending: list[Tensor], world_size: int) -> None:
    """Average the pending rows over the workers, check them, append them to the history."""
    rows = torch.stack(pending)
    if world_size > 1:
        # Added in the order of the workers, which an all-reduce does only piece by piece: then the
        # sums do not depend on how many steps are flushed at once.
        every = [torch.empty_like(rows) for _ in range(world_size)]
        distributed.all_gather(every, rows)
        rows = functools.reduce(torch.add, every) / world_size
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
