"""Normalisation of latents: mean and scale of each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Map from a codec's latents to the model's data: z = (latent - shift) * factor."""

    shift: tuple[float, ...]
    """Shift of each channel."""
    factor: tuple[float, ...]
    """Factor of each channel."""

    @classmethod
    def uniform(cls, channels: int, factor: float) -> Normalisation:
        """Make a normalisation of one factor for all channels, without shift."""
        return cls((0.0,) * channels, (factor,) * channels)

    def apply(self, latent: Tensor) -> Tensor:
        """Map latents to the model's data, (B, C, H, W) float32."""
        shift, factor = (self._like(values, latent) for values in (self.shift, self.factor))
        return (latent - shift) * factor

    def invert(self, z: Tensor) -> Tensor:
        """Map the model's data back to the codec's latents, (B, C, H, W) float32."""
        shift, factor = (self._like(values, z) for values in (self.shift, self.factor))
        return z / factor + shift

    @staticmethod
    def _like(values: tuple[float, ...], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=x.device)[:, None, None]


@dataclass
class ChannelSums:
    """Sums over latents, from which each channel's mean and standard deviation follow."""

    count: int
    """Numbers in a channel."""
    total: Tensor
    """(C,) float64"""
    square: Tensor
    """(C,) float64"""

    @classmethod
    def of(cls, rows: Tensor, channels: int) -> ChannelSums:
        """Sum over rows (B, C or 2C, H, W); over moments as over draws from them."""
        rows = rows.double()
        mean = rows[:, :channels]
        square = mean.square()
        if rows.shape[1] == 2 * channels:
            square = square + rows[:, channels:].square()
        count = mean.numel() // channels
        return cls(count, mean.sum(dim=(0, 2, 3)), square.sum(dim=(0, 2, 3)))

    def __add__(self, other: ChannelSums) -> ChannelSums:
        return ChannelSums(
            self.count + other.count, self.total + other.total, self.square + other.square
        )

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,) float64."""
        return self.total / self.count

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel, (C,) float64."""
        return (self.square / self.count - self.mean.square()).clamp(min=0).sqrt()
