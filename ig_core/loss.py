"""The training objective of Internal Guidance: flow matching on the final and auxiliary head."""

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
    averaged: Model | None = None,
) -> LossTerms:
    """Both heads regress the velocity of the path (IG paper, training objective).

    The gradient of the auxiliary term flows into the trunk; nothing is detached. The randomness is
    the caller's: t, noise, and labels that `drop_labels` has been through.

    Args:
        model: Velocity model.
        x: Data, (B, C, H, W).
        y: Labels, (B,) int64.
        t: Times in [0, 1], (B,).
        noise: Standard normal, same shape as x.
        config: Path and weights of the terms.
        averaged: The model with averaged weights; read if `config.target_guidance` is on.

    Returns:
        Means over the batch, float32; aux is 0 for a model without the head, cosine if it is off.

    Raises:
        ValueError: `config.target_guidance` is on and `averaged` is missing or has no such head.
    """
    x_t, target = interpolate(config.path, x, noise, t)
    velocities = model(x_t, t, y)
    final_target = target
    if config.target_guidance:
        final_target = target + config.target_guidance * _lead(averaged, x_t, t, y)
    prediction, zero = velocities.final.float(), target.new_zeros(())
    final = (prediction - final_target).square().mean()
    aux = zero if velocities.aux is None else (velocities.aux.float() - target).square().mean()
    cosine = zero
    if config.cosine_weight:
        cosine = (1 - F.cosine_similarity(prediction, final_target, dim=1)).mean()
    total = final + config.aux_weight * aux + config.cosine_weight * cosine
    return LossTerms(total, final, aux, cosine)


@torch.no_grad()
def _lead(averaged: Model | None, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """v_final - v_aux of the averaged weights, a constant (IG paper, section 4.3)."""
    ahead = None if averaged is None else averaged(x_t, t, y)
    if ahead is None or ahead.aux is None:
        raise ValueError(
            "target_guidance must be 0 without averaged weights that have an auxiliary head"
        )
    return (ahead.final - ahead.aux).float()


def drop_labels(y: Tensor, draw: Tensor, probability: float, null_label: int) -> Tensor:
    """Replace labels by the null label where a uniform draw (B,) is below the probability."""
    return torch.where(draw < probability, null_label, y)
