"""Checkpoints: safetensors and JSON, never pickle. Loading executes nothing from a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ig_core.config import ModelConfig, OptimConfig
from ig_core.files.tensors import require_shapes
from ig_core.precision import loss_scaler
from ig_core.training.optim import make_optimizers
from ig_core.training.parts import whole
from ig_core.training.state import HISTORY_COLUMNS, TrainState
from ig_core.transformer import DiffusionTransformer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


FORMAT = "igdit-checkpoint-1"
HEADER_FILE = "state.json"
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
HISTORY_FILE = "history.safetensors"
TRAINING_FILES = frozenset({MODEL_FILE, EMA_FILE, OPTIMIZER_FILE, HISTORY_FILE})
"""Tensors of a checkpoint that can be trained on; one to sample with has EMA_FILE alone."""


class PackedCheckpoint(NamedTuple):
    """A checkpoint in memory: whole tensors on the CPU."""

    tensors: dict[str, dict[str, Tensor]]
    """File -> name -> tensor."""
    header: dict[str, Any]

    def write(self, directory: str | Path) -> None:
        """Write the files that `save_checkpoint` describes."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.tensors.items():
            save_file(content, directory / name)
        (directory / HEADER_FILE).write_text(
            json.dumps(self.header, indent=2) + "\n", encoding="utf-8"
        )


def save_checkpoint(state: TrainState, directory: str | Path) -> None:
    """Write model, EMA, optimizer, step and loss history into `directory`.

    Files: `state.json`, `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` (tensors
    named PARAMETER/MOMENT) and `history.safetensors`. They do not tell whether the state was
    sharded; if it is, call `pack_checkpoint` on every worker instead, and write on one.
    """
    pack_checkpoint(state).write(directory)


def save_weights(
    model: DiffusionTransformer, directory: str | Path, source: dict[str, str]
) -> None:
    """Write a model that was trained elsewhere, for `load_ema`; it cannot be trained further.

    Files: `state.json` and `ema.safetensors`.

    Args:
        model: The weights to sample from.
        directory: Where to; made if it is not there.
        source: What the weights come from; kept in `state.json` under `imported`.
    """
    header = {
        "format": FORMAT,
        "step": 0,
        "model": dataclasses.asdict(model.config),
        "imported": source,
    }
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    PackedCheckpoint({EMA_FILE: tensors}, header).write(directory)


def pack_checkpoint(state: TrainState, *, keep: bool = True) -> PackedCheckpoint:
    """Copy a state to the CPU, whole; it may be trained on while the copy is written.

    Where it is sharded, every worker must call this.

    Args:
        state: The state.
        keep: False on a worker that only gives its parts: what it gets holds no tensors.
    """
    names: dict[Tensor, str] = {p: name for name, p in state.model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": value
        for optimizer in state.optimizers
        for parameter, entry in optimizer.state.items()
        for key, value in entry.items()
    }
    tensors = {
        MODEL_FILE: state.model.state_dict(),
        EMA_FILE: state.ema | {"pos_embed": state.model.pos_embed},
        OPTIMIZER_FILE: moments,
        HISTORY_FILE: {"history": state.history},
    }
    packed: dict[str, dict[str, Tensor]] = {}
    for name, content in tensors.items():
        packed[name] = {}
        for key, value in content.items():
            entire = whole(value.detach())
            if keep:
                packed[name][key] = entire.to("cpu", copy=True).contiguous()
    header = {
        "format": FORMAT,
        "step": state.step,
        "model": dataclasses.asdict(state.model.config),
        "optim": dataclasses.asdict(state.optim),
        "loss_scaler": state.scaler.state_dict(),
    }
    return PackedCheckpoint(packed, header)


def load_checkpoint(directory: str | Path, device: torch.device | str = "cpu") -> TrainState:
    """Read what `save_checkpoint` wrote; training it further equals never having stopped.

    Raises:
        ValueError: If a file is missing or damaged, or a tensor does not fit the model.
    """
    directory = Path(directory)
    header = read_header(directory)
    if "imported" in header:
        raise ValueError(
            f"{directory} holds weights that were trained elsewhere, without the "
            f"state of an optimizer: they cannot be trained on"
        )
    model = _read_model(directory, header, MODEL_FILE)
    _, optim, step = read_settings(directory)
    model.to(device)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    ema = _read_tensors(directory / EMA_FILE, shapes | {"pos_embed": model.pos_embed.shape})
    optimizers = make_optimizers(model, optim)
    _load_moments(model, optimizers, directory / OPTIMIZER_FILE, started=step > 0)
    scaler = loss_scaler(optim.precision, model.pos_embed.device)
    if scaler.is_enabled():
        _parse(directory, lambda: scaler.load_state_dict(_loss_scale(header["loss_scaler"])))
    return TrainState(
        model=model,
        optim=optim,
        ema={name: ema[name].to(device) for name in shapes},
        optimizers=optimizers,
        scaler=scaler,
        step=step,
        history=load_history(directory),
    )


def read_settings(directory: Path) -> tuple[ModelConfig, OptimConfig, int]:
    """Read model, optimizer and step of a checkpoint; raise ValueError if they cannot be read."""
    header = read_header(directory)
    return (
        _parse(directory, lambda: ModelConfig(**header["model"])),
        _parse(directory, lambda: OptimConfig(**_tuples(header["optim"]))),
        _parse(directory, lambda: int(header["step"])),
    )


MOMENTS: dict[type[torch.optim.Optimizer], dict[str, torch.Size | None]] = {
    torch.optim.AdamW: {"step": torch.Size(()), "exp_avg": None, "exp_avg_sq": None},
    torch.optim.Muon: {"momentum_buffer": None},
}
"""Optimizer -> its state of each parameter by name, with its shape (None: the parameter's)."""


def _load_moments(
    model: DiffusionTransformer,
    optimizers: list[torch.optim.Optimizer],
    path: Path,
    *,
    started: bool,
) -> None:
    found = _read_tensors(path, moment_shapes(model, optimizers) if started else {})
    if not started:
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        moments = MOMENTS[type(optimizer)]
        state = {
            number: {moment: found[f"{names[parameter]}/{moment}"] for moment in moments}
            for number, parameter in enumerate(_owned(optimizer))
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def moment_shapes(
    model: DiffusionTransformer, optimizers: list[torch.optim.Optimizer]
) -> dict[str, torch.Size]:
    """Return the shapes of the optimizers' state after a first step, by PARAMETER/MOMENT."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{moment}": parameter.shape if shape is None else shape
        for optimizer in optimizers
        for parameter in _owned(optimizer)
        for moment, shape in MOMENTS[type(optimizer)].items()
    }


def _owned(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def load_ema(directory: str | Path, device: torch.device | str = "cpu") -> DiffusionTransformer:
    """Load the model with the averaged weights, ready to sample from.

    Raises:
        ValueError: If a file is missing or damaged, or a tensor does not fit the model.
    """
    directory = Path(directory)
    model = _read_model(directory, read_header(directory), EMA_FILE)
    return model.to(device).eval().requires_grad_(False)


def load_history(directory: str | Path) -> Tensor:
    """Load the loss history of a checkpoint: a row of `training.HISTORY_COLUMNS` for each step."""
    path = Path(directory) / HISTORY_FILE
    history = _read_tensors(path).get("history")
    if history is None or history.dim() != 2 or history.shape[1] != len(HISTORY_COLUMNS):
        raise ValueError(f"{path} holds no history of {len(HISTORY_COLUMNS)} columns")
    return history


def read_header(directory: Path) -> dict[str, Any]:
    """Read `state.json` of a checkpoint.

    Raises:
        ValueError: If it is missing, damaged or of another format.
    """
    path = directory / HEADER_FILE
    try:
        header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint header: {error}") from error
    found = header.get("format") if isinstance(header, dict) else header
    if found != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, but got {found!r}")
    return header


def _parse(directory: Path, build: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{directory / HEADER_FILE} is no checkpoint header: {error!r}") from error


def _read_model(directory: Path, header: dict[str, Any], name: str) -> DiffusionTransformer:
    config = _parse(directory, lambda: ModelConfig(**header["model"]))
    # The file is compared before memory is allocated for a model that may not fit it.
    tensors = _read_tensors(directory / name, DiffusionTransformer.shapes(config))
    model = DiffusionTransformer.uninitialised(config)
    model.load_state_dict(tensors)
    return model


def _read_tensors(path: Path, shapes: dict[str, torch.Size] | None = None) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if shapes is not None:
        require_shapes(path, {name: value.shape for name, value in tensors.items()}, shapes)
    return tensors


def _loss_scale(values: dict[str, Any]) -> dict[str, Any]:
    """Check that the saved loss scale is positive and finite."""
    scale = values["scale"]
    if not 0 < scale < float("inf"):
        raise ValueError(f"loss_scaler.scale must be positive, but got {scale!r}")
    return values


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Turn lists into tuples: JSON has no tuples, configurations have no lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
