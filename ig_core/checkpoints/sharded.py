"""Load a checkpoint in parts: each worker reads its rows, and no one ever holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from ig_core.checkpoints.own import (
    EMA_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    load_history,
    moment_shapes,
    read_settings,
)
from ig_core.files.tensors import open_tensors, read_header, require_shapes
from ig_core.precision import loss_scaler
from ig_core.training.optim import make_optimizers
from ig_core.training.parts import local
from ig_core.training.sharding import require_shardable, shard_model
from ig_core.training.state import TrainState
from ig_core.transformer import DiffusionTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


def load_sharded(
    directory: str | Path,
    device: torch.device | str = "cpu",
    prepare: Callable[[DiffusionTransformer], object] = lambda _: None,
) -> TrainState:
    """Load a checkpoint and shard it without a whole copy on any worker.

    Args:
        directory: Where `save_checkpoint` wrote.
        device: Where this worker's part goes.
        prepare: Called with the model before it is sharded; it has no memory yet.

    Raises:
        ValueError: If a file is missing or damaged, a tensor does not fit the model, or the state
            cannot be sharded.
    """
    directory = Path(directory)
    config, optim, step = read_settings(directory)
    scaler = loss_scaler(optim.precision, torch.device(device))
    require_shardable(optim, scaler)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    shapes = DiffusionTransformer.shapes(config)
    # Compared with the file before memory is allocated for a model that may not fit it.
    file = TensorFile(directory / MODEL_FILE, shapes)
    model = DiffusionTransformer.outline(config)
    prepare(model)
    shard_model(model, torch.device(device))
    model.allocate(device)
    for name, target in model.state_dict().items():
        file.fill(name, target, rank, size)
    parameters = dict(model.named_parameters())
    ema = {name: torch.empty_like(p.detach()) for name, p in parameters.items()}
    file = TensorFile(directory / EMA_FILE, shapes)
    for name, target in ema.items():
        file.fill(name, target, rank, size)
    optimizers = make_optimizers(model, optim)
    wanted = moment_shapes(model, optimizers) if step else {}
    file = TensorFile(directory / OPTIMIZER_FILE, wanted)
    for name, shape in wanted.items():
        owner, _, moment = name.rpartition("/")
        parameter = parameters[owner]
        if shape == parameter.shape:
            value = torch.empty_like(parameter.detach())
            file.fill(name, value, rank, size)
        else:  # the step of Adam, a scalar
            value = file.whole(name).to(device)
        optimizers[0].state[parameter][moment] = value
    return TrainState(
        model=model,
        optim=optim,
        ema=ema,
        optimizers=optimizers,
        scaler=scaler,
        step=step,
        history=load_history(directory),
    )


class TensorFile:
    """A safetensors file whose tensors are copied one at a time.

    The file is mapped again for each: else all tensors that were read would count as memory of
    this process until it ends.
    """

    def __init__(self, path: Path, shapes: Mapping[str, torch.Size]) -> None:
        """Read the header.

        Raises:
            ValueError: If it cannot be read, or the file holds other tensors than these.
        """
        self.path = path
        require_shapes(path, {name: each.shape for name, each in read_header(path).items()}, shapes)

    def whole(self, name: str) -> Tensor:
        """Copy all of a tensor."""
        with open_tensors(self.path) as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, rank: int, world_size: int) -> None:
        """Copy a tensor into an allocated one; of a sharded one only the rows of this worker."""
        mine = local(target)
        if not mine.numel():
            return
        with open_tensors(self.path) as file:
            if mine.shape == target.shape:
                mine.copy_(file.get_tensor(name))
            else:
                # Rows are dealt as by torch.chunk: as many to each, fewer to the last ones.
                start = rank * -(-target.shape[0] // world_size)
                mine.copy_(file.get_slice(name)[start : start + mine.shape[0]])
