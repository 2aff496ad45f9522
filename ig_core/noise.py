"""Random numbers with an address: the same everywhere, in any order, at any batch size.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps a 128-bit
counter and a 64-bit key to 128 random bits. The key is derived from (seed, purpose); the counter
is (block, step, index), so number k of sample `index` at `step` never depends on who asks, nor on
what was drawn before. Torch integer operations: the same bits on CPU and GPU.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Apply ten rounds of Philox4x32.

    Args:
        counter: Four words, int64 tensors with values in [0, 2^32), of one shape.
        key: Two words in [0, 2^32).

    Returns:
        Four words of random bits, int64 with values in [0, 2^32), same shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 multiplication wraps modulo 2^64, so both halves of the product are exact.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


@dataclass(frozen=True)
class AddressedNoise:
    """A family of random numbers for one (seed, purpose), addressed by sample index and step."""

    seed: int
    purpose: str
    key: tuple[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.seed}/{self.purpose}".encode()).digest()
        words = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))
        object.__setattr__(self, "key", words)

    def bits(self, index: Tensor, count: int, step: int = 0) -> Tensor:
        """Draw random 32-bit words.

        Args:
            index: Sample indices, (B,) int64, non-negative.
            count: Words per sample.
            step: Second coordinate of the address, in [0, 2^32).

        Returns:
            (B, count) int64 with values in [0, 2^32).
        """
        blocks = -(-count // 4)
        block = torch.arange(blocks, device=index.device).expand(len(index), blocks)
        low, high = (index & _MASK)[:, None].expand_as(block), (index >> 32)[:, None]
        words = philox((block, torch.full_like(block, step), low, high.expand_as(block)), self.key)
        return torch.stack(words, dim=2).flatten(1)[:, :count]

    def uniform(self, index: Tensor, shape: tuple[int, ...] = (), step: int = 0) -> Tensor:
        """Draw uniform numbers on [0, 1), float32, (B, *shape), multiples of 2^-24."""
        words = self.bits(index, math.prod(shape), step)
        return ((words >> 8).float() * 2.0**-24).view(len(index), *shape)

    def normal(self, index: Tensor, shape: tuple[int, ...] = (), step: int = 0) -> Tensor:
        """Draw standard normal numbers, float32, (B, *shape); Box-Muller in float64."""
        count = math.prod(shape)
        words = self.bits(index, 2 * -(-count // 2), step).double()
        radius = torch.sqrt(-2 * torch.log((words[:, 0::2] + 1) * 2.0**-32))
        angle = words[:, 1::2] * (2 * math.pi * 2.0**-32)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
        return pairs.flatten(1)[:, :count].float().view(len(index), *shape)
