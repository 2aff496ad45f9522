"""Recognise a published checkpoint by the shapes of its tensors: family, size, head, time.

Nothing of it is loaded as a model, and no code in it is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ig_core.checkpoints.official import first_half, is_weight, mismatches, weights_in
from ig_core.config import MODELS, ModelConfig
from ig_core.files.tensors import read_file
from ig_core.transformer import DiffusionTransformer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ig_core.checkpoints.weight_names import Weights

TRAINING_ONLY = "projectors."
"""REPA's projection to another network's features."""
SHAPE = ("backbone", "depth", "width", "patch_size", "in_channels")
"""Fields by which the shapes of a checkpoint tell its preset."""


@dataclass(frozen=True)
class CheckpointFacts:
    """Description of a file of published weights."""

    name: str
    """Preset that the file fits (`ig_core.config.MODELS`), or the family with its sizes."""
    config: ModelConfig | None
    """Architecture to read it with, or None; `aux_layer` is the preset's: no file tells it."""
    preset: str | None
    """Name in MODELS, if it is one."""
    parameters: int
    """Parameters of the weights that are sampled."""
    weights: str
    """Averaged (ema), as trained (model), or a bare state dict, of which nobody can tell."""
    has_head: bool
    """True if the file has IG's auxiliary head."""
    time_reversed: bool
    """t = 1 is data in the file; it is turned round when it is read."""
    holds: tuple[str, ...]
    """Top-level entries of the file."""
    length: dict[str, int]
    """Epoch and steps, where the file tells them."""
    assumed: Mapping[str, str]
    """Field of `config` that the file does not tell -> where its value comes from."""
    notes: tuple[str, ...]
    """Remarks for a person."""
    problems: tuple[str, ...]
    """Obstacles to reading it as a model; empty: it can be sampled."""


def inspect_checkpoint(path: Path) -> CheckpointFacts:
    """Recognise a file of published weights.

    Raises:
        ValueError: If the file cannot be read, or holds no weights of a diffusion transformer.
    """
    held = read_file(path)
    found = weights_in(held, str(path))
    tensors, place = found.tensors, found.place
    problems: list[str] = []
    notes: list[str] = []
    assumed: dict[str, str] = {}
    config, preset = _architecture(tensors, assumed, notes, problems)
    doubled, fitting = False, None
    if config is not None:
        used = {k: v for k, v in tensors.items() if not k.startswith(TRAINING_ONLY)}
        halved, doubled = first_half(used, config)
        problems += mismatches(halved, DiffusionTransformer.uninitialised(config))
        fitting = config
    notes += _remarks(found, held, doubled=doubled)
    bad = [key for key, value in tensors.items() if not is_weight(value)]
    problems += [f"{key} holds NaN, infinity or no floating-point numbers" for key in bad[:5]]
    family = "LightningDiT" if _is_lightningdit(tensors) else "SiT"
    return CheckpointFacts(
        name=preset or f"{family}, no published size",
        config=fitting,
        preset=preset,
        parameters=sum(
            value.numel()
            for key, value in tensors.items()
            if key != "pos_embed" and not key.startswith(("feat_rope.", TRAINING_ONLY))
        ),
        weights=_describe_weights(found),
        has_head=any(key.startswith("aux_head.") for key in tensors),
        time_reversed=doubled or family == "LightningDiT",
        holds=tuple(sorted(map(str, held))) if place else (),
        length=_length(held) if place else {},
        assumed=assumed,
        notes=tuple(notes),
        problems=tuple(problems),
    )


def _describe_weights(weights: Weights) -> str:
    """Describe weights: averaged or as trained, and their place in the file."""
    if weights.averaged is not None:
        return f"{'averaged' if weights.averaged else 'as trained'} ({weights.place})"
    where = weights.place or "a bare state dict"
    return f"{where}: whether averaged is not said"


def _is_lightningdit(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("feat_rope.") or ".mlp.w12." in key for key in tensors)


def _architecture(
    tensors: Mapping[str, Tensor], assumed: dict[str, str], notes: list[str], problems: list[str]
) -> tuple[ModelConfig | None, str | None]:
    """Derive the architecture and the name of its preset from shapes."""
    try:
        found = _sizes(tensors)
        preset = next(
            (
                name
                for name, values in MODELS.items()
                if all(values[key] == found[key] for key in SHAPE)
            ),
            None,
        )
        heads = MODELS[preset]["num_heads"] if preset else _heads(tensors, found, assumed)
        head = any(key.startswith("aux_head.") for key in tensors)
        layer = MODELS[preset]["aux_layer"] if preset else max(1, found["depth"] // 3)
        config = ModelConfig(**found, num_heads=heads, aux_layer=layer if head else None)
    except (ValueError, KeyError, IndexError) as error:
        problems.append(f"its shapes are those of no architecture here: {error}")
        return None, None
    if head:
        how = "the paper's for this size" if preset else "a guess: no published size"
        assumed["aux_layer"] = (
            f"the file does not tell which block the auxiliary head reads; {layer} is {how}"
        )
    usual = replace(config, mlp_ratio=4.0)
    if preset and usual != ModelConfig(**MODELS[preset] | {"aux_layer": config.aux_layer}):
        notes.append(f"it is a {preset} by its sizes, with other blocks: {_blocks(config)}")
        preset = None
    return config, preset


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Derive the fields of `ModelConfig` that shapes and names tell."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    blocks = {int(m[1]) for key in tensors if (m := re.match(r"blocks\.(\d+)\.", key))}
    grid = math.isqrt(tensors["pos_embed"].shape[1])
    light = _is_lightningdit(tensors)
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    hidden = tensors["blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight"].shape[1]
    ratio = (1.5 if swiglu else 1.0) * hidden / width
    return {
        "backbone": "lightningdit" if light else "sit",
        "depth": max(blocks) + 1,
        "width": width,
        "patch_size": patch,
        "input_size": grid * patch,
        "in_channels": channels,
        "num_classes": tensors["y_embedder.embedding_table.weight"].shape[0] - 1,
        "mlp_ratio": round(ratio, 1) if abs(ratio - round(ratio, 1)) < 0.02 else ratio,
        # The tables are not stored by every exporter; SwiGLU never came without them.
        "rope": light,
        "rms_norm": "blocks.0.norm1.weight" in tensors,
        "swiglu": swiglu,
        "qk_norm": any(".attn.q_norm." in key for key in tensors),
        "adaln_shift": tensors["blocks.0.adaLN_modulation.1.weight"].shape[0] == 6 * width,
    }


def _heads(tensors: Mapping[str, Tensor], sizes: dict[str, Any], assumed: dict[str, str]) -> int:
    """Derive the number of attention heads, which only some tensors tell; else guess it."""
    width = int(sizes["width"])
    for key in ("blocks.0.attn.q_norm.weight", "feat_rope.freqs_cos"):
        if key in tensors:
            return width // int(tensors[key].shape[-1])
    heads = max(1, width // 64)
    assumed["num_heads"] = (
        f"the number of attention heads cannot be read from it; {heads} is a guess from its width"
    )
    return heads


def _blocks(config: ModelConfig) -> str:
    names = (
        "rope",
        "rms_norm",
        "swiglu",
        "qk_norm",
        "adaln_shift",
        "mlp_ratio",
        "input_size",
        "num_classes",
    )
    return ", ".join(f"{name}={getattr(config, name)}" for name in names)


def _remarks(found: Weights, held: Any, *, doubled: bool) -> list[str]:  # noqa: ANN401
    """List remarks for a person."""
    notes, tensors = [], found.tensors
    if found.averaged is False:
        notes.append("there are no averaged weights: samples of these are usually worse")
    if found.averaged and not found.beside:
        notes.append("there are no weights as trained, only their average")
    if doubled:
        notes.append(
            "its final layer is twice as wide, as the original SiT's, which learnt a "
            "variance too: the velocity is the first half. A DiT has the same names "
            "and shapes but predicts noise: it is no velocity model"
        )
    if any(key.startswith(TRAINING_ONLY) for key in tensors):
        notes.append("REPA's projectors are in it; they are left out")
    if _is_lightningdit(tensors) and not any(key.startswith("feat_rope.") for key in tensors):
        notes.append("its rotary tables are not stored; they are computed")
    if isinstance(held, Mapping) and "opt" in held:
        notes.append(
            "the state of its optimizer is in the published form, which is not read: the "
            "checkpoint can be sampled, not trained further"
        )
    return notes


def _length(held: Mapping[str, Any]) -> dict[str, int]:
    names = ("epoch", "steps", "step", "train_steps", "global_step")
    return {name: int(held[name]) for name in names if isinstance(held.get(name), int)}
