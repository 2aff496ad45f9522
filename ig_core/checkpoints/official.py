"""Published checkpoints in and out: SiT+IG, LightningDiT+IG, and both without auxiliary head.

The published names differ from ours in the heads alone. LightningDiT and the original SiT run time
the other way (t = 1 is data, v = data - noise); it is turned round once, here, in the weights: the
features of 1 - t are a reflection of those of t, which the first layer of the time MLP absorbs, and
the heads change sign. (`v(x, t) = -net(x, 1 - t)`.) SiT+IG and REPA run time as we do.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ig_core.checkpoints.weight_names import Weights, find_weights
from ig_core.config import SettingError
from ig_core.files.tensors import preview_problems, read_file, shape_mismatches
from ig_core.layers import TIME_FEATURES
from ig_core.transformer import DiffusionTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ig_core.config import ModelConfig


ANCHORS = ("x_embedder.proj.weight", "final_layer.linear.weight")
"""Published names that tell a network of the family."""
HEADS = {"final_layer.": "final_head.", "final_layer_xr.": "aux_head."}
"""Published prefix -> ours."""
_LEFT_OUT = ("projectors.",)
"""REPA's projection to another network's features: used in training alone."""
_ROPE = {"feat_rope.freqs_cos": "rope_cos", "feat_rope.freqs_sin": "rope_sin"}
"""Tables that LightningDiT stores and that we compute; they must agree."""
_HEAD_LINEAR = ("final_head.linear.weight", "final_head.linear.bias")
_TIME_WEIGHT = "t_embedder.mlp.0.weight"


def load_official(
    source: str | Path | Mapping[str, Any], config: ModelConfig, time_reversed: bool | None = None
) -> DiffusionTransformer:
    """Read a published checkpoint as a DiffusionTransformer.

    The auxiliary layer is no part of these files: `config.aux_layer` must be what the checkpoint
    was trained with. Nor is what the network predicts: a DiT (noise, t up to 1000) has the names
    and shapes of the original SiT, but is no velocity model.

    Args:
        source: File (`.pt`, `.pth`, `.safetensors`) or what it holds: a state dict, or nested dicts
            with one under `ema` (taken first), `model`, `state_dict`, ...; what wrappers add to
            names (`module.`, `_orig_mod.`) is dropped (`ig_core.checkpoints.weight_names`).
        config: Architecture; `aux_layer=None` for a checkpoint without auxiliary head.
        time_reversed: t = 1 is data in the file. None: true for LightningDiT, and for a
            SiT whose final layer is twice as wide (the original SiT's, which also learnt a
            variance; the velocity is the first half).

    Returns:
        The model in evaluation mode; the position table is the file's.

    Raises:
        ValueError: If the file cannot be read, holds a class that is not in `ALLOWED_CLASSES`, or
            holds averaged weights under other names; or if tensors do not fit the architecture,
            all of which the message names.
    """
    name = str(source) if isinstance(source, str | Path) else "the state dict"
    held = read_file(Path(source)) if isinstance(source, str | Path) else source
    model = DiffusionTransformer.uninitialised(config)
    tensors = weights_in(held, name).tensors
    strange = [key for key, value in tensors.items() if not is_weight(value)]
    if strange:
        raise ValueError(
            f"{name} must hold tensors of finite numbers by name, but these are none: "
            f"{', '.join(map(_published_name, strange[:5]))}"
        )
    tensors, doubled = _fitting(tensors, model, name)
    if time_reversed is None:
        time_reversed = doubled or config.backbone == "lightningdit"
    converted = {key: value.detach().float() for key, value in tensors.items() if key not in _ROPE}
    if time_reversed:
        converted = _reverse_time(converted, config)
    model.load_state_dict(converted)
    return model.eval()


def check_official(path: Path, config: ModelConfig) -> None:
    """Compare the names and shapes in a file with an architecture; its values are not read.

    Raises:
        ValueError: If `load_official` would refuse the file, whatever its values are.
    """
    tensors = weights_in(read_file(path), str(path)).tensors
    _fitting(tensors, DiffusionTransformer.uninitialised(config), str(path))


def save_official(model: DiffusionTransformer) -> dict[str, Tensor]:
    """Return the state dict of a model in the published form: names and, for LightningDiT, time.

    SiT goes in and out bit for bit, LightningDiT to rounding.
    """
    tensors = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    if model.config.backbone == "lightningdit":
        tensors = _reverse_time(tensors, model.config)
    if model.config.rope:
        tensors |= {key: getattr(model, ours).cpu().clone() for key, ours in _ROPE.items()}
    return {_published_name(key): value for key, value in tensors.items()}


def weights_in(held: Any, name: str) -> Weights:  # noqa: ANN401
    """Find the weights of a SiT or LightningDiT in the contents of a file, under our names.

    Args:
        held: What the file holds.
        name: What it is called in messages.

    Raises:
        ValueError: As `ig_core.checkpoints.weight_names.find_weights`.
    """
    found = find_weights(held, ANCHORS, name, "SiT or LightningDiT")
    taken = [key for key in found.tensors if key.startswith(tuple(HEADS.values()))]
    if taken:
        raise ValueError(
            f"{name} must hold each tensor once, under its published name, but got {taken[0]} too"
        )
    return found._replace(tensors={our_name(key): each for key, each in found.tensors.items()})


def is_weight(value: object) -> bool:
    """Check for a plain tensor of finite floating-point numbers."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
        and bool(value.float().isfinite().all())
    )


def our_name(key: str) -> str:
    """Return our name of a tensor that has a published one."""
    for published, ours in HEADS.items():
        if key.startswith(published):
            return ours + key.removeprefix(published)
    return key


def _published_name(key: str) -> str:
    for published, ours in HEADS.items():
        if key.startswith(ours):
            return published + key.removeprefix(ours)
    return key


def first_half(tensors: dict[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], bool]:
    """Drop the variance half of a final layer that is twice as wide; tell whether it was."""
    width = config.patch_size**2 * config.in_channels
    if any(key not in tensors or tensors[key].shape[:1] != (2 * width,) for key in _HEAD_LINEAR):
        return tensors, False
    # Outputs are ordered (row in patch, column in patch, channel), channels innermost.
    halves = {
        key: tensors[key].unflatten(0, (-1, 2, config.in_channels))[:, 0].flatten(0, 1)
        for key in _HEAD_LINEAR
    }
    return {**tensors, **halves}, True


def mismatches(tensors: Mapping[str, Tensor], model: DiffusionTransformer) -> list[str]:
    """List mismatches between tensors under our names and a model: names, shapes, tables."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tables = {key: getattr(model, ours) for key, ours in _ROPE.items()} if model.config.rope else {}
    # Not every exporter stores them; where one does, they must equal ours.
    wanted |= {key: tuple(value.shape) for key, value in tables.items() if key in tensors}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = shape_mismatches(
        *(
            {_published_name(key): shape for key, shape in shapes.items()}
            for shapes in (found, wanted)
        )
    )
    return problems + [
        f"{key} holds other angles than a 2-d rotary embedding of base 10000"
        for key, table in tables.items()
        if found.get(key) == tuple(table.shape)
        and not torch.allclose(tensors[key].float(), table, atol=1e-4)
    ]


def _fitting(
    tensors: dict[str, Tensor], model: DiffusionTransformer, name: str
) -> tuple[dict[str, Tensor], bool]:
    """Return the tensors that are read of a file, and whether its final layer is twice as wide.

    Names and shapes are compared with the model's; one message says all that does not fit.
    """
    used = {key: value for key, value in tensors.items() if not key.startswith(_LEFT_OUT)}
    used, doubled = first_half(used, model.config)
    problems = mismatches(used, model)
    if problems:
        has_head = any(key.startswith("aux_head.") for key in used)
        message = f"{name} does not fit the model: {preview_problems(problems)}"
        if has_head == (model.aux_head is not None):
            raise ValueError(message)
        raise SettingError(
            f"{message}; it has {'an' if has_head else 'no'} auxiliary head, but aux_layer is "
            f"{model.config.aux_layer}",
            aux_layer="" if has_head else "None",
        )
    return used, doubled


def _reverse_time(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Turn a network for (t, v) into the one for (1 - t, -v); twice gives the first again."""
    half = TIME_FEATURES // 2
    exponent = torch.arange(half, dtype=torch.float32) / half
    # The frequencies exactly as the time embedding rounds them.
    angle = (config.time_scale * torch.exp(-math.log(10000) * exponent)).double()
    cos, sin = angle.cos(), angle.sin()
    of_cos, of_sin = tensors[_TIME_WEIGHT].double().split(half, dim=1)
    reflected = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1)
    signs = {
        key: -value
        for key, value in tensors.items()
        if key.startswith(("final_head.linear.", "aux_head.linear."))
    }
    return {**tensors, **signs, _TIME_WEIGHT: reflected.to(tensors[_TIME_WEIGHT].dtype)}
