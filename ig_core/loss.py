"""The training objective of Internal Guidance: flow matching on the final and the auxiliary head.

    L = |v_f - v*|^2 + lambda |v_a - v|^2 + mu (1 - cos(v_f, v*))            (means over the batch)

    v  = dx_t/dt, the velocity of the path at x_t       v_f, v_a: predictions of the two heads
    v* = v + w (v_f - v_a of the EMA weights)           IG paper, section 4.3; w = 0: v* = v

lambda is `aux_weight`, mu `cosine_weight` (LightningDiT, over the channels), w `target_guidance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ig_core.path import interpolate

if TYPE_CHECKING:
    from collections.abc import Callable

    from ig_core.config import LossConfig
    from ig_core.transformer import Velocities

    Model = Callable[[Tensor, Tensor, Tensor], Velocities]
    """(x_t (B, C, H, W), t (B,), y (B,)) -> velocities of both heads."""


class LossTerms(NamedTuple):
    """Scalars; `total = final + aux_weight * aux + cosine_weight * cosine`."""

    total: Tensor
    final: Tensor
    aux: Tensor
    cosine: Tensor


def ig_loss(
    model: Model,
    x: Tensor,
    y: Tensor,
    t: Tensor,
    noise: Tensor,
    config: LossConfig,
    ema_model: Model | None = None,
) -> LossTerms:
    """Compute the loss L, as defined at the top of this file, and its terms.

    The gradient of the auxiliary term flows into the trunk; nothing is detached. The randomness is
    the caller's: t, noise, and labels out of `drop_labels`.

    Args:
        model: Velocity model.
        x: Data, (B, C, H, W).
        y: Labels, (B,) int64.
        t: Times in [0, 1], (B,).
        noise: Standard normal, same shape as x.
        config: Path and weights of the terms.
        ema_model: The model with averaged weights; called if `config.target_guidance` is on.

    Returns:
        Means over the batch, float32; aux is 0 for a model without the head, cosine if it is off.

    Raises:
        ValueError: If `config.target_guidance` is on and `ema_model` is None or lacks the head.
    """
    x_t, target = interpolate(config.path, x, noise, t)
    velocities = model(x_t, t, y)
    final_target = target
    if config.target_guidance:
        final_target = target + config.target_guidance * _guidance_direction(ema_model, x_t, t, y)
    prediction, zero = velocities.final.float(), target.new_zeros(())
    final = (prediction - final_target).square().mean()
    aux = zero if velocities.aux is None else (velocities.aux.float() - target).square().mean()
    cosine = zero
    if config.cosine_weight:
        cosine = (1 - F.cosine_similarity(prediction, final_target, dim=1)).mean()
    total = final + config.aux_weight * aux + config.cosine_weight * cosine
    return LossTerms(total, final, aux, cosine)


@torch.no_grad()
def _guidance_direction(ema_model: Model | None, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Compute v_f - v_a of the averaged weights, without gradient (IG paper, section 4.3)."""
    velocities = None if ema_model is None else ema_model(x_t, t, y)
    if velocities is None or velocities.aux is None:
        raise ValueError(
            "target_guidance must be 0 without averaged weights that have an auxiliary head"
        )
    return (velocities.final - velocities.aux).float()


def drop_labels(y: Tensor, draw: Tensor, probability: float, null_label: int) -> Tensor:
    """Replace labels by the null label where a uniform draw (B,) is below the probability."""
    return torch.where(draw < probability, null_label, y)
