"""What the benchmarks run on: models of several sizes with lively weights, and random data."""

from __future__ import annotations

import torch
from torch import Tensor

from ig_core.config import ModelConfig, model_config
from ig_core.transformer import DiffusionTransformer

DIGITS = ModelConfig(
    depth=4,
    width=64,
    num_heads=4,
    patch_size=2,
    input_size=8,
    in_channels=1,
    num_classes=10,
    aux_layer=2,
)
"""A model of the size used for 8 x 8 digits."""


def architecture(name: str) -> ModelConfig:
    """A published model by name, or "digits"."""
    return DIGITS if name == "digits" else model_config(name)


@torch.no_grad()
def enliven(model: DiffusionTransformer, seed: int = 0) -> None:
    """Draw anew the weights that start at zero, so that every layer has a say in the result."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.any():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.05 * draw)


def lively_model(config: ModelConfig, device: torch.device) -> DiffusionTransformer:
    """A model for sampling whose heads and modulations are not zero."""
    model = DiffusionTransformer(config)
    enliven(model)
    return model.to(device).eval().requires_grad_(requires_grad=False)


class RandomData:
    """Normal data in memory (the `Dataset` of `ig_core.training.loop`)."""

    def __init__(self, config: ModelConfig, length: int = 512, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (length, config.in_channels, config.input_size, config.input_size)
        self.x = torch.randn(shape, generator=generator)
        self.y = torch.randint(config.num_classes, (length,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows `index` (B,)."""
        return self.x[index], self.y[index]
