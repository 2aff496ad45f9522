"""Guide a velocity: extrapolate from a weaker prediction past a stronger one.

Internal Guidance takes the weak prediction from an intermediate layer of the same network,
classifier-free guidance from the null label, autoguidance from a weaker checkpoint. All three are
one formula, applied outside the model and outside the integrator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from ig_core.config import Guidance
    from ig_core.transformer import DiffusionTransformer

    Velocity = Callable[[Tensor, float], Tensor]
    """(x (B, C, H, W), t) -> dx/dt (B, C, H, W)."""


class Scales(NamedTuple):
    """Guidance scales at one time: numbers (1 is off), or one for each row, (B, 1, 1, 1)."""

    ig: float | Tensor
    cfg: float | Tensor
    auto: float | Tensor


def extrapolate(strong: Tensor, weak: Tensor, scale: float | Tensor) -> Tensor:
    """Move from the weak prediction towards the strong one and past it (IG paper, guidance).

    Args:
        strong: Velocity to improve, (B, C, H, W).
        weak: Velocity of the weaker predictor, same shape.
        scale: 1 returns `strong` itself, 0 `weak`; above 1 extrapolates. Or a scale for each row,
            (B, 1, 1, 1).

    Returns:
        weak + scale (strong - weak), (B, C, H, W).
    """
    return strong if _is_off(scale) else torch.lerp(weak, strong, scale)


def guided_velocity(
    model: DiffusionTransformer,
    y: Tensor,
    guidance: Guidance,
    weak_model: DiffusionTransformer | None = None,
) -> Velocity:
    """Return the guided velocity field that a sampler integrates.

    Order: internal guidance on the labelled and on the null velocity, then classifier-free
    guidance between them, then autoguidance against `weak_model` with the labels y. Passes that
    cannot change the result are left out: no null half outside the interval of classifier-free
    guidance, no auxiliary head outside that of internal guidance, no weak model at scale 1.

    Args:
        model: Velocity model.
        y: Labels, (B,) int64.
        guidance: Scales and the intervals of t in which they act, both ends included.
        weak_model: The weaker checkpoint of autoguidance.

    Returns:
        A function of x (B, C, H, W) and t that gives dx/dt.

    Raises:
        ValueError: If internal guidance is on and the model has no auxiliary head, or autoguidance
            is on and `weak_model` is None.
    """
    require_predictors(model, guidance, weak_model)

    def velocity(x: Tensor, t: float) -> Tensor:
        return guided_velocity_at(model, weak_model, x, t, y, Scales(*guidance.at(t)))

    return velocity


def guided_velocity_at(
    model: DiffusionTransformer,
    weak_model: DiffusionTransformer | None,
    x: Tensor,
    t: float,
    y: Tensor,
    scales: Scales,
) -> Tensor:
    """Compute the guided velocity at one time, (B, C, H, W); see `guided_velocity`."""
    if len(x) != len(y):
        raise ValueError(f"y must hold a label for each of {len(x)} samples, but got {len(y)}")
    if _is_off(scales.cfg):
        v = _internally_guided(model, x, t, y, scales.ig)
    else:
        labels = torch.cat([y, torch.full_like(y, model.config.null_label)])
        ig = scales.ig.repeat(2, 1, 1, 1) if torch.is_tensor(scales.ig) else scales.ig
        both = _internally_guided(model, torch.cat([x, x]), t, labels, ig)
        with_label, without = both.chunk(2)
        v = extrapolate(with_label, without, scales.cfg)
    if weak_model is not None and not _is_off(scales.auto):
        v = extrapolate(v, _internally_guided(weak_model, x, t, y, 1.0), scales.auto)
    return v


def require_predictors(
    model: DiffusionTransformer, guidance: Guidance, weak_model: DiffusionTransformer | None
) -> None:
    """Raise ValueError unless there is a weaker prediction for each kind of guidance that is on."""
    if guidance.ig_scale != 1 and getattr(model, "aux_head", model) is None:
        raise ValueError(
            f"ig_scale must be 1 for a model without auxiliary head (aux_layer is "
            f"None), but got {guidance.ig_scale!r}"
        )
    if guidance.auto_scale != 1 and weak_model is None:
        raise ValueError(
            f"auto_scale must be 1 without a weak model, but got {guidance.auto_scale!r}"
        )


def _is_off(scale: float | Tensor) -> bool:
    return not torch.is_tensor(scale) and scale == 1


def _internally_guided(
    model: DiffusionTransformer, x: Tensor, t: float, y: Tensor, scale: float | Tensor
) -> Tensor:
    """Extrapolate from the auxiliary to the final head (IG paper): v = v_aux + s (v_final - v_aux).

    A network of the user's own needs neither `final_velocity` nor an auxiliary head.
    """
    times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
    if _is_off(scale) and hasattr(model, "final_velocity"):
        return model.final_velocity(x, times, y)
    final, aux = model(x, times, y)
    return final if aux is None else extrapolate(final, aux, scale)
