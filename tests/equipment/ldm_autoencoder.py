"""Latent diffusion's autoencoder, written plainly, under the names its checkpoints have.

What `ig_core.codecs.ldm_names` gives to diffusers' blocks must compute the same.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))  # (B, C, N)
        weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.attn_1 = Block(channels, channels), Attention(channels)
        self.block_2 = Block(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Conv(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1 if stride == 1 else 0)


class Level(nn.Module):
    def __init__(self, before, after, count, attended):
        super().__init__()
        self.block = nn.ModuleList(Block(after if n else before, after) for n in range(count))
        self.attn = nn.ModuleList(Attention(after) for _ in range(count if attended else 0))

    def forward(self, x):
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        return x


class Encoder(nn.Module):
    def __init__(self, widths, blocks, channels):
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for number, width in enumerate(widths):
            last = number == len(widths) - 1
            level = Level(widths[max(number - 1, 0)], width, blocks, last)
            if not last:
                level.downsample = Conv(width, 2)
            self.down.append(level)
        self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths, blocks, channels):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for number, width in enumerate(widths):
            last = number == len(widths) - 1
            level = Level(width if last else widths[number + 1], width, blocks + 1, last)
            if number:
                level.upsample = Conv(width, 1)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class LdmAutoencoder(nn.Module):
    """Moments of images, and images of latents."""

    def __init__(self, width=128, multipliers=(1, 1, 2, 2, 4), blocks=2, channels=32):
        super().__init__()
        widths = [width * each for each in multipliers]
        self.encoder = Encoder(widths, blocks, channels)
        self.decoder = Decoder(widths, blocks, channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    @torch.no_grad()
    def encode(self, x):
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return torch.cat([mean, (0.5 * logvar.clamp(-30, 20)).exp()], dim=1)

    @torch.no_grad()
    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))
