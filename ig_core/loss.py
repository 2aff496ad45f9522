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


class LossTerms(NamedTuple):
    """Scalars; `total = final + aux_weight * aux + cosine_weight * cosine`."""

    total: Tensor
    final: Tensor
    aux: Tensor
    cosine: Tensor


def ig_loss(
    model: Callable[[Tensor, Tensor, Tensor], Velocities],
    x: Tensor,
    y: Tensor,
    t: Tensor,
    noise: Tensor,
    config: LossConfig,
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

    Returns:
        Means over the batch, float32; aux is 0 for a model without the head, cosine if it is off.
    """
    x_t, target = interpolate(config.path, x, noise, t)
    velocities = model(x_t, t, y)
    prediction, zero = velocities.final.float(), target.new_zeros(())
    final = (prediction - target).square().mean()
    aux = zero if velocities.aux is None else (velocities.aux.float() - target).square().mean()
    cosine = zero
    if config.cosine_weight:
        cosine = (1 - F.cosine_similarity(prediction, target, dim=1)).mean()
    total = final + config.aux_weight * aux + config.cosine_weight * cosine
    return LossTerms(total, final, aux, cosine)


def drop_labels(y: Tensor, draw: Tensor, probability: float, null_label: int) -> Tensor:
    """Replace labels by the null label where a uniform draw (B,) is below the probability."""
    return torch.where(draw < probability, null_label, y)
