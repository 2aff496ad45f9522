"""One diffusion transformer for SiT and LightningDiT, with the auxiliary head of IG.

             SiT                               LightningDiT                      ModelConfig
latents      SD-VAE, 4 x 32 x 32               VA-VAE, 32 x 16 x 16              in_channels
patches      2, 4 or 8                         1 or 2                            patch_size
positions    sin-cos table on the tokens       and rotary queries and keys       rope
norms        LayerNorm without gain            RMSNorm with gain                 rms_norm
MLP          GELU, 4 times the width           SwiGLU, 2/3 of that               swiglu
t in files   1 is noise (the first SiT: data)  1 is data (turned when read)      -
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ig_core.layers import (
    Block,
    LabelEmbed,
    PatchEmbed,
    TimeEmbed,
    VelocityHead,
    rope_tables,
    sincos_table,
)

if TYPE_CHECKING:
    from ig_core.config import ModelConfig


class Velocities(NamedTuple):
    """Predictions of dx_t/dt by the final and the auxiliary head, each (B, C, H, W)."""

    final: Tensor
    aux: Tensor | None


def _tables(config: ModelConfig) -> dict[str, Tensor]:
    """Compute the buffers by name: the position table, and those of the rotary embedding."""
    tables = {"pos_embed": sincos_table(config.width, config.grid_size)}
    if config.rope:
        cos, sin = rope_tables(config.head_dim, config.grid_size)
        tables |= {"rope_cos": cos, "rope_sin": sin}
    return tables


class DiffusionTransformer(nn.Module):
    """Velocity model v(x_t, t, y); t = 0 is data, t = 1 is noise.

    Blocks condition on time and label by adaLN-Zero (Peebles and Xie 2023). The auxiliary head
    reads the tokens after block `config.aux_layer`, has the structure of the final head and the
    same conditioning, and its gradient reaches the trunk (IG paper, method section).
    """

    activation_checkpointing = False
    """Recompute each block in the backward pass instead of keeping its activations: memory of one
    block and of the tokens between blocks, for a third more work. Changes no result."""

    pos_embed: Tensor
    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimeEmbed(config)
        self.y_embedder = LabelEmbed(config)
        for name, table in _tables(config).items():
            self.register_buffer(name, table, persistent=name == "pos_embed")
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_head = VelocityHead(config)
        self.aux_head = None if config.aux_layer is None else VelocityHead(config)
        if not self.pos_embed.is_meta:
            self.initialise()

    @classmethod
    def shapes(cls, config: ModelConfig) -> dict[str, torch.Size]:
        """Return the shapes of the model's state by name, without allocating it."""
        with torch.device("meta"):
            return {name: value.shape for name, value in cls(config).state_dict().items()}

    @classmethod
    def uninitialised(cls, config: ModelConfig) -> DiffusionTransformer:
        """Build a model on the CPU whose tables are set and whose weights are to be loaded."""
        model = cls.outline(config)
        model.allocate("cpu")
        return model

    @classmethod
    def outline(cls, config: ModelConfig) -> DiffusionTransformer:
        """Build a model without memory, on torch's meta device."""
        with torch.device("meta"):
            return cls(config)

    def allocate(self, device: torch.device | str) -> None:
        """Give an outline memory on a device: tables are set, weights are undefined."""
        self.to_empty(device=device)
        for name, table in _tables(self.config).items():
            setattr(self, name, table.to(device))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Velocities:
        """Predict with both heads.

        Args:
            x: Noisy latents, (B, C, H, W).
            t: Times in [0, 1], (B,).
            y: Labels, (B,) int64; `config.null_label` means no class.

        Returns:
            Velocities of the final head and of the auxiliary one (None without that head).
        """
        return self._run(x, t, y, with_aux=self.aux_head is not None)

    def final_velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict with the final head alone, (B, C, H, W), where the auxiliary one is not read."""
        return self._run(x, t, y, with_aux=False).final

    def compile_blocks(self) -> None:
        """Compile every block with `torch.compile`, in place; equal blocks share one compilation.

        Names of parameters stay. Results change by rounding; the first passes take a minute.
        """
        # Fusing reductions of mixed order leaves parts of the modulation's gradient unwritten in
        # torch 2.10 to 2.13 (pytorch issue 193061).
        options = {"triton.mix_order_reduction": False}
        for block in self.blocks:
            block.compile(options=options)

    def _run(self, x: Tensor, t: Tensor, y: Tensor, *, with_aux: bool) -> Velocities:
        tokens = self.x_embedder(x) + self.pos_embed  # (B, T, D)
        condition = nn.functional.silu(self.t_embedder(t) + self.y_embedder(y))  # (B, D)
        rope = (self.rope_cos, self.rope_sin) if self.config.rope else None
        aux = None
        for number, block in enumerate(self.blocks, start=1):
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, condition, rope, use_reentrant=False)
            else:
                tokens = block(tokens, condition, rope)
            if with_aux and number == self.config.aux_layer and self.aux_head is not None:
                aux = self._to_image(self.aux_head(tokens, condition))
        return Velocities(self._to_image(self.final_head(tokens, condition)), aux)

    def _to_image(self, patches: Tensor) -> Tensor:
        grid, side = self.config.grid_size, self.config.patch_size
        split = patches.unflatten(2, (side, side, -1)).unflatten(1, (grid, grid))
        # (B, row, column, row in patch, column in patch, C) -> (B, C, H, W)
        return split.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def initialise(self, seed: int = 0) -> None:
        """Draw the weights from a seed (SiT's scheme): a function of the seed alone.

        Xavier-uniform linear layers; embeddings and time MLP normal with `embedding_std`; every
        modulation and both heads zero, so that the model starts as v = 0.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Conv2d):
                flat = module.weight.data.view(module.weight.shape[0], -1)
                nn.init.xavier_uniform_(flat, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        std = self.config.embedding_std
        for weight in (self.y_embedder.embedding_table.weight, *self.t_embedder.weights):
            nn.init.normal_(weight, std=std, generator=generator)
        heads = [head for head in (self.final_head, self.aux_head) if head is not None]
        for owner in [*self.blocks, *heads]:
            nn.init.zeros_(owner.adaLN_modulation["1"].weight)
        for head in heads:
            nn.init.zeros_(head.linear.weight)
