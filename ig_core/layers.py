"""Building blocks of the transformer: embeddings, attention, MLPs, the block, the velocity head.

Parameter names follow the published SiT and LightningDiT checkpoints. T is the number of tokens,
D the width.

Under autocast attention and MLP run in low precision, their activation functions included. Patch
and time embedding, modulation, norms, rotary embedding, the residual stream and the velocity heads
stay float32: they cost little and their rounding would reach the velocity undamped.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ig_core.config import ModelConfig

NORM_EPS = 1e-6
TIME_FEATURES = 256


def sincos_table(width: int, grid: int) -> Tensor:
    """Compute the fixed 2-d sin-cos position table, (1, grid * grid, width).

    A coordinate p, column or row, has features sin(p w_i), then cos(p w_i), with
    w_i = 10000^(-i / n) for i < n = width / 4; those of the column come first, then the row's.
    """
    omega = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns, rows = axis.repeat(grid, 1), axis.repeat_interleave(grid, dim=0)
    return torch.cat([columns, rows], dim=1).float()[None]


def rope_tables(head_dim: int, grid: int) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of the 2-d rotary embedding, each (grid * grid, head_dim).

    The angles of a coordinate p, row or column, are p w_i with w_i = 10000^(-i / n) for
    i < n = head_dim / 4, each for two neighbouring channels; rows come first.
    """
    omega = 10000 ** -(torch.arange(0, head_dim // 2, 2, dtype=torch.float64) / (head_dim // 2))
    angle = (torch.arange(grid, dtype=torch.float64)[:, None] * omega).repeat_interleave(2, dim=1)
    both = torch.cat([angle.repeat_interleave(grid, dim=0), angle.repeat(grid, 1)], dim=1)
    return both.cos().float(), both.sin().float()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring channel pairs of x (B, heads, T, head_dim) by the tables' angles."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * tables[0] + quarter_turn * tables[1]


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in float32, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """Compute x (1 + scale) + shift for x (B, T, D) and conditioning (B, D)."""
    x = x * (1 + scale[:, None])
    return x if shift is None else x + shift[:, None]


def make_norm(config: ModelConfig) -> nn.Module:
    """Make the norm in front of attention, MLP and head."""
    if config.rms_norm:
        return nn.RMSNorm(config.width, eps=NORM_EPS)
    return nn.LayerNorm(config.width, eps=NORM_EPS, elementwise_affine=False)


class PatchEmbed(nn.Module):
    """Embed an image (B, C, H, W) as tokens (B, T, D), row-major."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.width, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        # Channels innermost, for the whole residual stream: of norms over any other layout torch
        # 2.13 compiles wrong gradients for the CPU.
        return in_float32(self.proj, x).flatten(2).transpose(1, 2).contiguous()


class TimeEmbed(nn.Module):
    """Embed times (B,) as (B, D): sinusoidal features, then an MLP.

    Features are cos(s t w_i), then sin(s t w_i), with w_i = 10000^(-i / n) for
    i < n = TIME_FEATURES / 2; s is `config.time_scale`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = config.time_scale
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )

    @property
    def weights(self) -> list[Tensor]:
        """Matrices of the MLP."""
        return [layer.weight for layer in self.mlp if isinstance(layer, nn.Linear)]

    def forward(self, t: Tensor) -> Tensor:
        half = TIME_FEATURES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angle = (t.float() * self.scale)[:, None] * torch.exp(-math.log(10000) * exponent)
        return in_float32(self.mlp, torch.cat([angle.cos(), angle.sin()], dim=1))


class LabelEmbed(nn.Module):
    """Embed labels (B,) as (B, D); the last row is the null label."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.qk_norm = config.num_heads, config.qk_norm
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm, self.k_norm = self._head_norm(config), self._head_norm(config)
        self.proj = nn.Linear(config.width, config.width)

    @staticmethod
    def _head_norm(config: ModelConfig) -> nn.Module:
        if not config.qk_norm:
            return nn.Identity()
        if config.rms_norm:
            return nn.RMSNorm(config.head_dim, eps=NORM_EPS)
        return nn.LayerNorm(config.head_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.qk_norm:
            q, k = in_float32(self.q_norm, q), in_float32(self.k_norm, k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        # Norm and rotation are float32; the products are autocast's (v's) precision.
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with tanh-approximated GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGlu(nn.Module):
    """Gated MLP (Shazeer 2020), two thirds of the plain MLP's hidden width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w12 = nn.Linear(config.width, 2 * config.mlp_width)
        self.w3 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the conditioning (adaLN-Zero, DiT)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attn = Attention(config)
        self.mlp = SwiGlu(config) if config.swiglu else Mlp(config)
        self.parts = 6 if config.adaln_shift else 4
        # Sequential(SiLU, Linear) in the published code: the index 1 is part of the name.
        self.adaLN_modulation = nn.ModuleDict(
            {"1": nn.Linear(config.width, self.parts * config.width)}
        )

    def forward(self, x: Tensor, condition: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """Transform tokens x (B, T, D).

        `condition` (B, D) is the SiLU of the sum of time and label embedding.
        """
        chunks = in_float32(self.adaLN_modulation["1"], condition).chunk(self.parts, dim=1)
        if self.parts == 6:
            shift1, scale1, gate1, shift2, scale2, gate2 = chunks
        else:
            (scale1, gate1, scale2, gate2), shift1, shift2 = chunks, None, None
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class VelocityHead(nn.Module):
    """Predict patches (B, T, p * p * C) from tokens (B, T, D), as the final or auxiliary head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_final = make_norm(config)
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.ModuleDict({"1": nn.Linear(config.width, 2 * config.width)})

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = in_float32(self.adaLN_modulation["1"], condition).chunk(2, dim=1)
        return in_float32(self.linear, modulate(self.norm_final(x), shift, scale))
