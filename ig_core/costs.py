"""Parameters, memory and arithmetic of an architecture, counted from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ig_core.config import Guidance, ModelConfig, OptimConfig, SamplerConfig

TIME_FEATURES = 256
FLOAT32_BYTES = 4
"""Bytes of a number in a checkpoint."""
TRAINING_TO_FORWARD_FLOPS = 3
"""Arithmetic of a training step over that of the forward pass: one forward, two for the gradients
with respect to activations and weights."""


def _matrices(model: ModelConfig) -> tuple[int, int]:
    """Count the weights of a block that every token meets, and those that an image meets once."""
    width, hidden = model.width, model.mlp_width
    mlp = (3 if model.swiglu else 2) * width * hidden
    return 4 * width * width + mlp, (6 if model.adaln_shift else 4) * width * width


def parameter_count(model: ModelConfig) -> int:
    """Count parameters, with biases and norms, without the position table."""
    width, hidden = model.width, model.mlp_width
    token, image = _matrices(model)
    biases = 4 * width + (2 * hidden if model.swiglu else hidden) + width
    biases += (6 if model.adaln_shift else 4) * width
    norms = 2 * width if model.rms_norm else 0
    if model.qk_norm:
        norms += 2 * model.head_dim * (1 if model.rms_norm else 2)
    patch = model.patch_size**2 * model.in_channels
    head = 2 * width * width + 2 * width + patch * width + patch + (width if model.rms_norm else 0)
    embeddings = (patch * width + width) + (TIME_FEATURES * width + width) + (width + 1) * width
    embeddings += (model.num_classes + 1) * width
    heads = 1 if model.aux_layer is None else 2
    return model.depth * (token + image + biases + norms) + heads * head + embeddings


def forward_flops(model: ModelConfig) -> int:
    """Count the floating-point operations of one evaluation for one image, both heads.

    A multiplication and an addition are two. Activations, norms and softmax are left out: they are
    a few in a thousand.
    """
    tokens, width = model.grid_size**2, model.width
    token, image = _matrices(model)
    attention = 2 * tokens * tokens * width  # scores, and the values that they weigh
    patch = model.patch_size**2 * model.in_channels
    heads = 1 if model.aux_layer is None else 2
    outer = (1 + heads) * tokens * patch * width + heads * 2 * width * width
    outer += TIME_FEATURES * width + width * width
    return 2 * (model.depth * (tokens * token + image + attention) + outer)


def training_flops(model: ModelConfig) -> int:
    """Count the floating-point operations of a training step for one image."""
    return TRAINING_TO_FORWARD_FLOPS * forward_flops(model)


def sampling_flops(model: ModelConfig, sampler: SamplerConfig, guidance: Guidance) -> int:
    """Count the floating-point operations of sampling one image.

    Classifier-free guidance evaluates twice.

    Internal guidance costs nothing besides: both heads come from one evaluation.
    """
    count = sampler.num_steps
    times = [1 - number / count for number in range(count)]
    shifted = [sampler.shift * t / (1 + (sampler.shift - 1) * t) for t in times]
    stages = 2 if sampler.method == "heun" else 1
    doubled = sum(guidance.at(t)[1] != 1 for t in shifted)
    return stages * (count + doubled) * forward_flops(model)


def checkpoint_bytes(model: ModelConfig, optim: OptimConfig) -> int:
    """Return the bytes of a checkpoint with weights, their average and moments."""
    moments = 1 if optim.optimizer == "muon" else 2  # Muon keeps one of each matrix
    return (2 + moments) * FLOAT32_BYTES * parameter_count(model)
