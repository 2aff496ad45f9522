"""Load a checkpoint in parts: each worker reads its rows, and no one ever holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from ig_core.checkpoints import load_history, moment_shapes, read_settings
from ig_core.optim import make_optimizers
from ig_core.precision import loss_scaler
from ig_core.sharding import require_shardable, shard_model
from ig_core.tensor_files import TensorFile
from ig_core.training import TrainState
from ig_core.transformer import DiffusionTransformer

if TYPE_CHECKING:
    from collections.abc import Callable


def load_sharded(
    directory: str | Path,
    device: torch.device | str = "cpu",
    prepare: Callable[[DiffusionTransformer], object] = lambda _: None,
) -> TrainState:
    """What `load_checkpoint` and then `sharding.shard` give, without a whole copy on any worker.

    Args:
        directory: Where `save_checkpoint` wrote.
        device: Where this worker's part goes.
        prepare: Called with the model before it is sharded; it has no memory yet.

    Raises:
        ValueError: a file is missing or damaged, a tensor does not fit the model, or such a state
            cannot be sharded.
    """
    directory = Path(directory)
    config, optim, step = read_settings(directory)
    scaler = loss_scaler(optim.precision, torch.device(device))
    require_shardable(optim, scaler)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    shapes = DiffusionTransformer.shapes(config)
    # Compared with the file before there is memory for a model that may be none.
    file = TensorFile(directory / "model.safetensors", shapes)
    model = DiffusionTransformer.outline(config)
    prepare(model)
    shard_model(model, torch.device(device))
    model.allocate(device)
    for name, target in model.state_dict().items():
        file.fill(name, target, rank, size)
    parameters = dict(model.named_parameters())
    ema = {name: torch.empty_like(p.detach()) for name, p in parameters.items()}
    file = TensorFile(directory / "ema.safetensors", shapes)
    for name, target in ema.items():
        file.fill(name, target, rank, size)
    optimizers = make_optimizers(model, optim)
    wanted = moment_shapes(model, optimizers) if step else {}
    file = TensorFile(directory / "optimizer.safetensors", wanted)
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
