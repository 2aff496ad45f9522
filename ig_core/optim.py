"""Optimizer, learning-rate warm-up and the moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from ig_core.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, in the order of `named_parameters`."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of step `step` (0-based): linear warm-up, then constant."""
    return config.lr * min(1.0, (step + 1) / max(config.warmup_steps, 1))


@torch.no_grad()
def ema_update(ema: Iterable[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """Ema <- decay ema + (1 - decay) parameters, in place, one kernel for all tensors."""
    torch._foreach_lerp_(list(ema), list(parameters), 1 - decay)
