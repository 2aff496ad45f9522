"""Samplers: from noise at t=1 to data at t=0, given a velocity function and a time grid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ig_core.path import score
from ig_core.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Callable

    from ig_core.config import PathType, SamplerConfig
    from ig_core.guidance import Velocity

    NoiseFn = Callable[[int, Tensor], Tensor]
    """(step, x) -> standard normal of x's shape, dtype and device."""


class NonFiniteSampleError(RuntimeError):
    """A sample came out NaN or infinite: the network overflowed or is damaged."""


def time_grid(config: SamplerConfig) -> list[float]:
    """`num_steps + 1` times from 1 down to 0.

    ODE: equal intervals, then `t -> shift t / (1 + (shift - 1) t)`. SDE: `num_steps` equally
    spaced times from 1 to `last_step`, shifted, then 0 (SiT's grid).
    """
    n = config.num_steps
    if config.method == "sde":
        span = 1 - config.last_step
        raw = [1.0, *(config.last_step + span * k / (n - 1) for k in range(n - 2, -1, -1)), 0.0]
    else:
        raw = [k / n for k in range(n, -1, -1)]
    # This form of the shift gives exactly 1 at t=1, which intervals that end at 1 must hold.
    return [config.shift * t / (config.shift * t + (1 - t)) for t in raw]


@torch.no_grad()
def sample(
    velocity: Velocity, x: Tensor, config: SamplerConfig, noise_fn: NoiseFn | None = None
) -> Tensor:
    """Integrate the velocity field from t=1 to t=0.

    Args:
        velocity: Field dx/dt, called with float32 x (B, C, H, W) and a float t.
        x: Standard normal noise, (B, C, H, W).
        config: Method, grid and precision.
        noise_fn: SDE only: standard normal noise for each step.

    Returns:
        Samples at t=0, float32, (B, C, H, W).

    Raises:
        ValueError: the SDE is asked for without `noise_fn`.
        NonFiniteSampleError: a sample is NaN or infinite.
    """
    state, field = x.to(getattr(torch, config.state_dtype)), field_of(velocity, config)
    times = time_grid(config)
    if config.method == "dopri5":
        return finite(dopri5(field, state, times).float(), config)
    for step in range(config.num_steps):
        state = advance(field, state, times, step, config, noise_fn)
    return finite(state.float(), config)


def finite(samples: Tensor, config: SamplerConfig) -> Tensor:
    """The samples; NonFiniteSampleError if one of them is NaN or infinite."""
    if not samples.isfinite().all():
        raise NonFiniteSampleError(
            f"samples must be finite, but some are not (sampler precision "
            f"{config.precision!r}; float32 and bf16 overflow later than "
            f"fp16)"
        )
    return samples


def field_of(velocity: Velocity, config: SamplerConfig) -> Velocity:
    """The velocity as the integrator sees it: in the state's dtype, the network in its own."""

    def field(x: Tensor, t: float) -> Tensor:
        with autocast(config.precision, x.device):
            return velocity(x.float(), t).to(x.dtype)

    return field


def advance(
    field: Velocity,
    x: Tensor,
    times: list[float],
    step: int,
    config: SamplerConfig,
    noise_fn: NoiseFn | None,
) -> Tensor:
    """The state after step `step` of a method with fixed steps."""
    t, t_next = times[step], times[step + 1]
    if config.method == "euler":
        return euler(field, x, t, t_next)
    if config.method == "heun":
        return heun(field, x, t, t_next)
    if noise_fn is None:
        raise ValueError("method 'sde' needs noise_fn, but got None")
    noise = noise_fn(step, x) if t_next > 0 else None
    return euler_maruyama(field, x, t, t_next, config.path, noise)


def euler(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    """First order, one evaluation a step."""
    return x + (t_next - t) * velocity(x, t)


def heun(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    """Second order (explicit trapezoid), two evaluations a step, the last one included."""
    v = velocity(x, t)
    ahead = velocity(x + (t_next - t) * v, t_next)
    return x + (t_next - t) * (v + ahead) / 2


def euler_maruyama(
    velocity: Velocity, x: Tensor, t: float, t_next: float, path: PathType, noise: Tensor | None
) -> Tensor:
    """Reverse SDE with diffusion w(t) = 2t (SiT, section 3); the last step adds no noise.

    dx = (v - w/2 score) dt + sqrt(w) dW.
    """
    v = velocity(x, t)
    x = x + (t_next - t) * (v - t * score(path, x, v, t))
    return x if noise is None else x + math.sqrt(2 * t * (t - t_next)) * noise


def dopri5(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Adaptive Dormand-Prince 5(4) by torchdiffeq (rtol 1e-3, atol 1e-6), one step for a batch."""
    from torchdiffeq import odeint

    ends = torch.tensor([times[0], times[-1]], dtype=torch.float64, device=x.device)
    try:
        path = odeint(
            lambda t, x: velocity(x, float(t)), x, ends, rtol=1e-3, atol=1e-6, method="dopri5"
        )
    except AssertionError as error:  # torchdiffeq's word for NaN
        raise NonFiniteSampleError(f"dopri5 finds no step size: {error}") from error
    return path[-1]
