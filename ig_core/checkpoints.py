"""Checkpoints: safetensors and JSON, never pickle. Loading executes nothing from a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ig_core.config import ModelConfig, OptimConfig
from ig_core.optim import make_optimizer
from ig_core.training import TrainState
from ig_core.transformer import DiffusionTransformer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = "igdit-checkpoint-1"


def save_checkpoint(state: TrainState, directory: str | Path) -> None:
    """Write model, EMA, optimizer, step and loss history into `directory`.

    Files: `state.json`, `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` (tensors
    named PARAMETER/MOMENT) and `history.safetensors`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = [name for name, _ in state.model.named_parameters()]
    moments = {
        f"{names[index]}/{key}": value
        for index, entry in state.optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    tensors = {
        "model": state.model.state_dict(),
        "ema": state.ema | {"pos_embed": state.model.pos_embed},
        "optimizer": moments,
        "history": {"history": state.history},
    }
    for name, content in tensors.items():
        packed = {key: value.detach().cpu().contiguous() for key, value in content.items()}
        save_file(packed, directory / f"{name}.safetensors")
    header = {
        "format": FORMAT,
        "step": state.step,
        "model": dataclasses.asdict(state.model.config),
        "optim": dataclasses.asdict(state.optim),
    }
    (directory / "state.json").write_text(json.dumps(header, indent=2) + "\n")


def load_checkpoint(directory: str | Path, device: torch.device | str = "cpu") -> TrainState:
    """Read what `save_checkpoint` wrote; training it further equals never having stopped.

    Raises:
        ValueError: a file is missing or damaged, or a tensor does not fit the model.
    """
    directory = Path(directory)
    header = _read_header(directory)
    optim = OptimConfig(**_tuples(header["optim"]))
    model = DiffusionTransformer(ModelConfig(**header["model"]))
    _fill(model, _read_tensors(directory / "model.safetensors"), directory)
    model.to(device)
    names = [name for name, _ in model.named_parameters()]
    ema = _read_tensors(directory / "ema.safetensors")
    optimizer = make_optimizer(model, optim)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _read_tensors(directory / "optimizer.safetensors").items():
        name, _, moment = key.rpartition("/")
        if name not in names:
            raise ValueError(f"{directory}: optimizer state of unknown parameter {name!r}")
        state.setdefault(names.index(name), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return TrainState(
        model=model,
        optim=optim,
        ema={name: ema[name].to(device) for name in names},
        optimizer=optimizer,
        step=header["step"],
        history=_read_tensors(directory / "history.safetensors")["history"],
    )


def load_ema(directory: str | Path, device: torch.device | str = "cpu") -> DiffusionTransformer:
    """The model with the averaged weights, ready to sample from.

    Raises:
        ValueError: a file is missing or damaged, or a tensor does not fit the model.
    """
    directory = Path(directory)
    model = DiffusionTransformer(ModelConfig(**_read_header(directory)["model"]))
    _fill(model, _read_tensors(directory / "ema.safetensors"), directory)
    return model.to(device).eval().requires_grad_(False)


def load_history(directory: str | Path) -> Tensor:
    """Loss history of a checkpoint: one row of `training.HISTORY_COLUMNS` for each step."""
    return _read_tensors(Path(directory) / "history.safetensors")["history"]


def _read_header(directory: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads((directory / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is not a checkpoint: state.json: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{directory}: format must be {FORMAT!r}, but got "
                         f"{header.get('format')!r}")  # fmt: skip
    return header


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _fill(model: DiffusionTransformer, tensors: dict[str, Tensor], source: Path) -> None:
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit the model: {error}") from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; the configurations have no lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
