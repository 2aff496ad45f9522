"""Integrate a velocity field over a time grid, from noise at t=1 to data at t=0."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ig_core.files.extras import extra
from ig_core.path import score
from ig_core.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Callable

    from ig_core.config import PathType, SamplerConfig
    from ig_core.guidance import Velocity

    NoiseFn = Callable[[int, Tensor], Tensor]
    """(step, x) -> standard normal of x's shape, dtype and device."""


class NonFiniteSampleError(RuntimeError):
    """Raised for NaN or infinite samples: the network overflowed or is damaged."""


def time_grid(config: SamplerConfig) -> list[float]:
    """Return the `num_steps + 1` times of a sampler, from 1 down to 0.

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
        ValueError: If the method is `sde` and `noise_fn` is None.
        NonFiniteSampleError: If a sample is NaN or infinite.
    """
    state, field = x.to(getattr(torch, config.state_dtype)), network_field(velocity, config)
    times = time_grid(config)
    if config.method == "dopri5":
        return require_finite(dopri5(field, state, times).float(), config)
    for number in range(config.num_steps):
        state = step(field, state, times, number, config, noise_fn)
    return require_finite(state.float(), config)


def require_finite(samples: Tensor, config: SamplerConfig) -> Tensor:
    """Return the samples, or raise NonFiniteSampleError if one of them is NaN or infinite."""
    if not samples.isfinite().all():
        raise NonFiniteSampleError(
            f"samples must be finite, but some are not (sampler precision "
            f"{config.precision!r}; float32 and bf16 overflow later than "
            f"fp16)"
        )
    return samples


def network_field(velocity: Velocity, config: SamplerConfig) -> Velocity:
    """Wrap a velocity: the network runs in its own precision, the result has the state's dtype."""

    def field(x: Tensor, t: float) -> Tensor:
        with autocast(config.precision, x.device):
            return velocity(x.float(), t).to(x.dtype)

    return field


def step(
    field: Velocity,
    x: Tensor,
    times: list[float],
    number: int,
    config: SamplerConfig,
    noise_fn: NoiseFn | None,
) -> Tensor:
    """Take step `number` of a method with fixed steps."""
    t, t_next = times[number], times[number + 1]
    if config.method == "euler":
        return euler(field, x, t, t_next)
    if config.method == "heun":
        return heun(field, x, t, t_next)
    if noise_fn is None:
        raise ValueError("method 'sde' needs noise_fn, but got None")
    noise = noise_fn(number, x) if t_next > 0 else None
    return euler_maruyama(field, x, t, t_next, config.path, noise)


def euler(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    """Take an Euler step: first order, one evaluation."""
    return x + (t_next - t) * velocity(x, t)


def heun(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    """Take a Heun step: second order (explicit trapezoid), two evaluations, the last included."""
    v = velocity(x, t)
    v_next = velocity(x + (t_next - t) * v, t_next)
    return x + (t_next - t) * (v + v_next) / 2


def euler_maruyama(
    velocity: Velocity, x: Tensor, t: float, t_next: float, path: PathType, noise: Tensor | None
) -> Tensor:
    """Take an Euler-Maruyama step of the reverse SDE with diffusion w(t) = 2t (SiT, section 3).

    dx = (v - w/2 score) dt + sqrt(w) dW; the last step has `noise=None`.
    """
    v = velocity(x, t)
    x = x + (t_next - t) * (v - t * score(path, x, v, t))
    return x if noise is None else x + math.sqrt(2 * t * (t - t_next)) * noise


def dopri5(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Integrate by torchdiffeq's adaptive Dormand-Prince 5(4), rtol 1e-3, atol 1e-6.

    The batch shares the step size.
    """
    with extra("dopri5"):
        from torchdiffeq import odeint

    ends = torch.tensor([times[0], times[-1]], dtype=torch.float64, device=x.device)
    try:
        path = odeint(
            lambda t, x: velocity(x, float(t)), x, ends, rtol=1e-3, atol=1e-6, method="dopri5"
        )
    except AssertionError as error:  # torchdiffeq asserts on a non-finite step size
        raise NonFiniteSampleError(f"dopri5 finds no step size: {error}") from error
    return path[-1]
