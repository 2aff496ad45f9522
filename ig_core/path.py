"""The path between data (t=0) and noise (t=1), and what follows from it.

`x_t = alpha(t) x + sigma(t) e` with e standard normal. Linear: alpha = 1 - t, sigma = t.
Cosine: alpha = cos(pi t / 2), sigma = sin(pi t / 2). (SiT, Ma et al. 2024, section 2.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ig_core.config import LossConfig, PathType


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives, each broadcastable to (B, C, H, W)."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def coefficients(path: PathType, t: Tensor) -> Coefficients:
    """Evaluate the path at times t (any shape)."""
    if path == "linear":
        one = torch.ones_like(t)
        return Coefficients(1 - t, t, -one, one)
    quarter = math.pi / 2
    cos, sin = torch.cos(quarter * t), torch.sin(quarter * t)
    return Coefficients(cos, sin, -quarter * sin, quarter * cos)


def interpolate(path: PathType, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the point on the path and its velocity.

    Args:
        path: "linear" or "cosine".
        x: Data, (B, C, H, W).
        noise: Standard normal, same shape.
        t: Times in [0, 1], (B,).

    Returns:
        x_t and the regression target dx_t/dt (linear: e - x), each (B, C, H, W).
    """
    c = coefficients(path, t.view(-1, *[1] * (x.dim() - 1)))
    return c.alpha * x + c.sigma * noise, c.d_alpha * x + c.d_sigma * noise


def score(path: PathType, x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """Compute the score of the marginal at t > 0 from v; linear: -(x + (1 - t) v) / t.

    From E[e | x_t] = -sigma score, and v = alpha' E[x | x_t] + sigma' E[e | x_t].
    """
    c = coefficients(path, torch.tensor(t, dtype=x.dtype, device=x.device))
    ratio = c.alpha / c.d_alpha
    return (ratio * velocity - x) / (c.sigma * (c.sigma - ratio * c.d_sigma))


def training_time(draw: Tensor, config: LossConfig) -> Tensor:
    """Turn a draw into a training time.

    Args:
        draw: Uniform on [0, 1) for "uniform", standard normal otherwise, (B,).
        config: Chooses distribution and path.

    Returns:
        t, (B,): the draw itself; its logistic function ("logit_normal"); or the time at which
        sigma/alpha equals exp(draw) ("lognormal", EDM's distribution of noise levels).
    """
    if config.time_distribution == "uniform":
        return draw
    # Float64 inside: in float32 the vectorised and the single function differ in the last bit, and
    # a time would depend on the size of its batch.
    wide = draw.double()
    if config.time_distribution == "logit_normal" or config.path == "linear":
        return torch.sigmoid(wide).to(draw.dtype)
    return ((2 / math.pi) * torch.atan(wide.exp())).to(draw.dtype)
