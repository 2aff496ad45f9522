"""Training and sampling as plain research scripts do them: what the benchmarks compare with.

This is a re-creation of habits that are common in scripts for diffusion transformers, written for
this comparison. It is nobody's code, and no one script has all of the habits. The mathematics is
that of `ig_core`, and every benchmark asserts so before it measures. What is usual about it:

- Attention is written out, softmax(q k^T / sqrt(d)) v, and so keeps its T x T matrices.
- A training step draws times and drops labels in a Python loop over the batch, uses AdamW as its
  constructor gives it, moves the weight average in a Python loop over the parameters, and reads
  the loss off the device at each step.
- Sampling keeps its state in float64 and casts the batch to float32 and back at each call of the
  network; evaluates the auxiliary head also at times at which it has no weight; evaluates the null
  labels, if classifier-free guidance is on at all, also outside its interval; integrates each
  guidance by itself; and turns images to uint8 one at a time.

Weights, layers and precision (autocast) are those of the model given, so that only these habits
differ.
"""

from __future__ import annotations

import copy
import random
from itertools import pairwise
from types import MethodType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ig_core.layers import Attention, in_float32, rotate
from ig_core.path import interpolate
from ig_core.precision import autocast
from ig_core.sampling import time_grid
from ig_core.training.batches import Batch

if TYPE_CHECKING:
    from ig_core.config import Guidance, LossConfig, OptimConfig, SamplerConfig
    from ig_core.transformer import DiffusionTransformer


def with_plain_attention(model: DiffusionTransformer) -> DiffusionTransformer:
    """A copy of the model, with equal weights, whose attention is written out."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, Attention):
            module.forward = MethodType(_plain_attention, module)  # type: ignore[method-assign]
    return plain


def _plain_attention(
    self: Attention, x: Tensor, rope: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if self.qk_norm:
        q, k = in_float32(self.q_norm, q), in_float32(self.k_norm, k)
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return self.proj((weights @ v).transpose(1, 2).flatten(2))


class UsualTraining:
    """A training by plain steps."""

    def __init__(
        self, model: DiffusionTransformer, loss: LossConfig, optim: OptimConfig, seed: int = 0
    ) -> None:
        self.model = with_plain_attention(model).train()
        self.loss, self.optim = loss, optim
        self.ema = copy.deepcopy(self.model).requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0)
        self.device = model.pos_embed.device
        self._random = random.Random(seed)

    def step(self, x: Tensor, y: Tensor) -> float:
        """Train on data (B, C, H, W) with labels (B,); returns the loss."""
        return self.update(self.draw(x, y))

    def draw(self, x: Tensor, y: Tensor) -> Batch:
        """Times, noise and dropped labels, one image after the other where scripts do so."""
        labels, times = y.clone(), []
        for image in range(len(y)):
            if self._random.random() < self.loss.label_dropout:
                labels[image] = self.model.config.null_label
            times.append(self._random.random())
        x, labels = x.to(self.device), labels.to(self.device)
        return Batch(x, labels, torch.tensor(times).to(self.device), torch.randn_like(x))

    def update(self, batch: Batch) -> float:
        """One optimizer step on a batch; returns the loss."""
        x_t, target = interpolate(self.loss.path, batch.x, batch.noise, batch.t)
        with autocast(self.optim.precision, self.device):
            final, aux = self.model(x_t, batch.t, batch.y)
        total = ((final - target) ** 2).flatten(1).mean(dim=1).mean()
        if aux is not None:
            aux_loss = ((aux - target) ** 2).flatten(1).mean(dim=1).mean()
            total = total + self.loss.aux_weight * aux_loss
        self.optimizer.zero_grad()
        total.backward()
        clip_grad_norm_(self.model.parameters(), self.optim.grad_clip)
        self.optimizer.step()
        self._average()
        return total.item()

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.optim.ema_decay
        for mean, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            mean.mul_(decay).add_(parameter, alpha=1 - decay)


@torch.no_grad()
def usual_sample(
    model: DiffusionTransformer, y: Tensor, guidance: Guidance, x: Tensor, config: SamplerConfig
) -> Tensor:
    """Integrate with Euler or Heun, (B, C, H, W) float64; the model's attention as given."""
    if config.method not in ("euler", "heun"):
        raise ValueError(f"method must be euler or heun, but got {config.method!r}")
    times = time_grid(config)
    x = x.double()
    for t, t_next in pairwise(times):
        v = _usual_velocity(model, y, guidance, x, t)
        if config.method == "heun":
            ahead = _usual_velocity(model, y, guidance, x + (t_next - t) * v, t_next)
            v = 0.5 * v + 0.5 * ahead
        x = x + (t_next - t) * v
    return x


def _usual_velocity(
    model: DiffusionTransformer, y: Tensor, guidance: Guidance, x: Tensor, t: float
) -> Tensor:
    low, high = guidance.ig_interval
    ig = guidance.ig_scale if low <= t <= high else 1.0
    low, high = guidance.cfg_interval
    cfg = guidance.cfg_scale if low <= t <= high else 1.0
    labels = y
    if guidance.cfg_scale != 1:
        x = torch.cat([x, x], dim=0)
        labels = torch.cat([y, torch.full_like(y, model.config.null_label)], dim=0)
    times = torch.ones(len(x), dtype=torch.float64, device=x.device) * t
    final, aux = model(x.to(torch.float32), times.to(torch.float32), labels)
    v = final.to(torch.float64)
    if aux is not None:
        weak = aux.to(torch.float64)
        v = weak + ig * (v - weak)
    if guidance.cfg_scale != 1:
        with_label, without = v.chunk(2, dim=0)
        v = without + cfg * (with_label - without)
    return v


def usual_images(samples: Tensor) -> np.ndarray:
    """Samples (B, C, H, W) in [-1, 1] as uint8, one image after the other."""
    images = []
    for sample in samples:
        pixels = ((torch.clamp(sample, -1, 1) + 1) * 127.5).round()
        images.append(pixels.to(torch.uint8).cpu().numpy())
    return np.stack(images)
