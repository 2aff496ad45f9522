"""State of a training: model, averages, optimizers and history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from ig_core.precision import loss_scaler
from ig_core.training.optim import make_optimizers
from ig_core.training.parts import is_sharded
from ig_core.transformer import DiffusionTransformer, Velocities

if TYPE_CHECKING:
    from ig_core.config import ModelConfig, OptimConfig


HISTORY_COLUMNS = ("total", "final", "aux", "grad_norm")
"""Columns of a step; grad_norm is NaN where fp16 overflowed and the step was skipped."""


@dataclass
class TrainState:
    """State of a training; a checkpoint holds exactly this."""

    model: DiffusionTransformer
    optim: OptimConfig
    ema: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    """Loss scale of fp16; does nothing in other precisions."""
    step: int = 0
    history: Tensor = field(default_factory=lambda: torch.zeros(0, len(HISTORY_COLUMNS)))
    """One row of HISTORY_COLUMNS for each step taken, float32 on the CPU."""

    @classmethod
    def new(
        cls, model: ModelConfig, optim: OptimConfig, seed: int, device: torch.device | str = "cpu"
    ) -> TrainState:
        """Make the untrained state; the weights are a function of the seed."""
        network = DiffusionTransformer(model)
        network.initialise(seed)
        network.to(device)
        ema = {name: p.detach().clone() for name, p in network.named_parameters()}
        scaler = loss_scaler(optim.precision, network.pos_embed.device)
        return cls(network, optim, ema, make_optimizers(network, optim), scaler)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.model.pos_embed.device

    def ema_model(self, x: Tensor, t: Tensor, y: Tensor) -> Velocities:
        """Run the model with the averaged weights; raise ValueError if they are sharded."""
        if is_sharded(self.model):
            raise ValueError("target_guidance must be 0 where the state is sharded")
        velocities: Velocities = functional_call(self.model, self.ema, (x, t, y))
        return velocities
