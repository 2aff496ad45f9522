"""Architectures as frozen values, and the published ones by name. Loads no torch.

Part of `ig_core.config`, which gives all of it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ig_core.validation import check_fields, require, require_sizes


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a diffusion transformer; one class serves SiT and LightningDiT."""

    backbone: Literal["sit", "lightningdit"] = "sit"
    """Family: names the checkpoint layout and the preset it came from."""
    depth: int
    """Number of transformer blocks."""
    width: int
    """Channels of a token."""
    num_heads: int
    """Attention heads; must divide width."""
    patch_size: int
    """Side of the square patch that becomes one token, in latent pixels."""
    input_size: int
    """Side of the square latent (or image), in pixels."""
    in_channels: int
    """Channels of the latent (or image)."""
    num_classes: int
    """Number of labels; the null label of classifier-free guidance is num_classes."""
    aux_layer: int | None
    """The auxiliary head reads the tokens after this block (1-based, 1..depth-1); None: no head."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over width (SwiGLU uses two thirds of it)."""
    rope: bool = False
    """Rotary position embedding on queries and keys."""
    rms_norm: bool = False
    """RMSNorm with a gain instead of LayerNorm without one."""
    swiglu: bool = False
    """SwiGLU MLP instead of GELU."""
    qk_norm: bool = False
    """Normalise queries and keys of each head."""
    adaln_shift: bool = True
    """Blocks are modulated by shift, scale and gate; False leaves the shift out."""
    time_scale: float = 1.0
    """Factor on t before its sinusoidal embedding; 1 for the published models."""
    embedding_std: float = 0.02
    """Standard deviation of the initial label and time embeddings; 0.02 for published models."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_sizes(self)
        require(
            self.width % self.num_heads == 0,
            "width",
            self.width,
            f"a multiple of num_heads={self.num_heads}",
        )
        require(
            self.width % 4 == 0, "width", self.width, "a multiple of 4 (2-d sin-cos position table)"
        )
        require(
            self.input_size % self.patch_size == 0,
            "input_size",
            self.input_size,
            f"a multiple of patch_size={self.patch_size}",
        )
        if self.rope:
            require(
                self.head_dim % 4 == 0,
                "width / num_heads",
                self.head_dim,
                "a multiple of 4 with rope (two axes of rotated pairs)",
            )
        if self.aux_layer is not None:
            require(
                1 <= self.aux_layer <= self.depth - 1,
                "aux_layer",
                self.aux_layer,
                f"None or in 1..{self.depth - 1} (depth - 1)",
            )
        for name in ("mlp_ratio", "time_scale", "embedding_std"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require(self.mlp_ratio <= 1000, "mlp_ratio", self.mlp_ratio, "at most 1000")
        require(
            self.mlp_width >= 1,
            "mlp_ratio",
            self.mlp_ratio,
            f"enough for one hidden unit at width={self.width}",
        )

    @property
    def mlp_width(self) -> int:
        """Hidden units of the MLP."""
        hidden = int(self.width * self.mlp_ratio)
        return int(2 / 3 * hidden) if self.swiglu else hidden

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image."""
        return self.input_size // self.patch_size

    @property
    def null_label(self) -> int:
        """Label that stands for "no class"."""
        return self.num_classes


def _presets() -> dict[str, dict[str, Any]]:
    sizes = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
    light = {key: sizes[key] for key in ("B", "L", "XL")}
    light |= {"1p0B": (24, 1536, 24), "1p6B": (28, 1792, 28)}
    sit_latents = {"backbone": "sit", "input_size": 32, "in_channels": 4, "num_classes": 1000}
    vavae_latents = {
        "backbone": "lightningdit",
        "input_size": 16,
        "in_channels": 32,
        "num_classes": 1000,
        "rope": True,
        "rms_norm": True,
        "swiglu": True,
    }
    shape = ("depth", "width", "num_heads")
    return {
        f"SiT-{size}/{patch}": {
            **sit_latents,
            **dict(zip(shape, dims, strict=True)),
            "patch_size": patch,
            "aux_layer": 4 if size in "SB" else 8,
        }
        for size, dims in sizes.items()
        for patch in (2, 4, 8)
    } | {
        f"LightningDiT-{size}/{patch}": {
            **vavae_latents,
            **dict(zip(shape, dims, strict=True)),
            "patch_size": patch,
            "aux_layer": 4 if size == "B" else 8,
        }
        for size, dims in light.items()
        for patch in (1, 2)
    }


MODELS: dict[str, dict[str, Any]] = _presets()
"""Published architectures by name (SiT, Ma et al. 2024; LightningDiT, Yao et al. 2025), with the
auxiliary layer of the IG paper: 4 for S and B, 8 for L and XL."""


def model_config(name: str, **overrides: Any) -> ModelConfig:  # noqa: ANN401
    """Build the named architecture, e.g. `model_config("SiT-XL/2", aux_layer=None)`.

    Raises:
        ValueError: the name is not in `MODELS`, or an override makes the architecture invalid.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, but got {name!r}")
    return ModelConfig(**(MODELS[name] | overrides))
