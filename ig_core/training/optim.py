"""Optimizers, learning-rate warm-up and the moving average of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import AdamW, Muon

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from ig_core.config import OptimConfig


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Make AdamW for all parameters, or Muon for the matrices and AdamW for the rest.

    Muon is torch's. Its update is scaled as in LightningDiT's recipe, by
    `0.2 sqrt(max(rows, columns)) sqrt(max(1, rows / columns))`; torch has the first factor, a
    learning rate for each aspect ratio makes the second. Departures from that recipe: the patch
    embedding, a convolution, is AdamW's (torch's Muon takes matrices only), and the position table
    is a buffer and does not decay.
    """
    parameters = list(model.parameters())
    if config.optimizer == "adamw":
        return [
            AdamW(
                parameters,
                lr=config.lr,
                betas=config.betas,
                weight_decay=config.weight_decay,
                fused=True,
            )
        ]
    by_shape: defaultdict[float, list[Tensor]] = defaultdict(list)
    for matrix in (p for p in parameters if p.dim() == 2):
        by_shape[math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))].append(matrix)
    groups: list[dict[str, Any]] = [
        # The decay is lr x weight_decay, and must not depend on the shape.
        {"params": matrices, "lr_factor": factor, "weight_decay": config.weight_decay / factor}
        for factor, matrices in by_shape.items()
    ]
    rest = [p for p in parameters if p.dim() != 2]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(groups, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True),
    ]
    set_learning_rate(optimizers, config.lr)
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every parameter group the rate, times the factor of its shape if it has one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of step `step` (0-based): linear warm-up, then constant."""
    return config.lr * min(1.0, (step + 1) / max(config.warmup_steps, 1))


@torch.no_grad()
def ema_update(ema: Iterable[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """Set ema to decay ema + (1 - decay) parameters, in place, one kernel for all tensors."""
    torch._foreach_lerp_(list(ema), list(parameters), 1 - decay)
