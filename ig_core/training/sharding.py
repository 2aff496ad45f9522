"""FSDP2: parameters, average and optimizer state in parts, for models that do not fit.

Every worker keeps a part of each tensor (its rows). The parameters of one block at a time are
gathered for its passes; gradients are averaged and scattered at once. A step is that of
DistributedDataParallel but for the order of sums, and a checkpoint is the same files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ig_core.training.optim import make_optimizers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ig_core.config import OptimConfig
    from ig_core.training.state import TrainState
    from ig_core.transformer import DiffusionTransformer


def shard(state: TrainState, device: torch.device | str | None = None) -> None:
    """Keep a part of the state on each worker of the default process group, in place.

    Args:
        state: The same whole state on every worker, maybe on the CPU.
        device: Where the parts go; by default where the state is.

    Raises:
        ValueError: If the optimizer needs whole matrices, or the precision a loss scale.
    """
    optim = state.optim
    require_shardable(optim, state.scaler)
    device = state.device if device is None else torch.device(device)
    moments = _moments(state)
    mesh = shard_model(state.model, device)
    parameters = dict(state.model.named_parameters())

    def part(tensor: Tensor, like: Tensor) -> Tensor:
        if tensor.shape != like.shape:  # the step of Adam, a scalar
            return tensor.to(device)
        assert isinstance(like, DTensor)
        return distribute_tensor(
            tensor.detach().to(device), mesh, like.placements, src_data_rank=None
        )

    state.ema = {name: part(tensor, parameters[name]) for name, tensor in state.ema.items()}
    state.optimizers = make_optimizers(state.model, optim)
    for optimizer in state.optimizers:
        for name, entry in moments.items():
            parameter = parameters[name]
            optimizer.state[parameter] = {
                key: part(value, parameter) for key, value in entry.items()
            }


def require_shardable(optim: OptimConfig, scaler: torch.amp.GradScaler) -> None:
    """Raise ValueError if the optimizer needs whole matrices, or the precision a loss scale."""
    if optim.optimizer == "muon":
        raise ValueError(
            "optimizer must be 'adamw' for a sharded state (Muon orthogonalises whole "
            "matrices), but got 'muon'"
        )
    if scaler.is_enabled():
        raise ValueError(
            "precision must be 'float32' or 'bf16' for a sharded state (workers would "
            "disagree on an overflow), but got 'fp16'"
        )


def shard_model(model: DiffusionTransformer, device: torch.device) -> DeviceMesh:
    """Keep a part of every parameter on each worker of the default process group, in place."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return mesh


def _moments(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's state by the names of the parameters."""
    names: dict[Tensor, str] = {p: name for name, p in state.model.named_parameters()}
    return {
        names[parameter]: dict(entry)
        for optimizer in state.optimizers
        for parameter, entry in optimizer.state.items()
    }
