"""Every scientific knob, as frozen values. Importing this module loads no torch.

A configuration is valid or does not exist: `__post_init__` raises `ValueError` naming the field,
the value it got and what was expected.
"""

from __future__ import annotations

import re
import types
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Interval = tuple[float, float]
PathType = Literal["linear", "cosine"]
Precision = Literal["float32", "bf16", "fp16"]
"""Autocast of attention and MLP; all else is float32 (see `ig_core.layers`)."""


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
        """Label for "no class"."""
        return self.num_classes


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Flow matching on both heads (IG paper, training objective)."""

    path: PathType = "linear"
    """Interpolation between data (t=0) and noise (t=1)."""
    time_distribution: Literal["uniform", "lognormal", "logit_normal"] = "uniform"
    """Distribution of the training time t."""
    aux_weight: float = 0.5
    """Weight of the auxiliary head's loss."""
    cosine_weight: float = 0.0
    """Weight of 1 - cos(v_final, v) over channels (LightningDiT uses 1)."""
    label_dropout: float = 0.1
    """Probability that a label is replaced by the null label."""
    target_guidance: float = 0.0
    """Guidance in the training target (IG paper, section 4.3): the final head learns
    v + target_guidance (v_final - v_aux), the move taken from the averaged weights; 0 is off."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("aux_weight", "cosine_weight", "target_guidance"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, gradient clipping, precision and the moving average of the weights."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for matrices, AdamW for the rest (LightningDiT's recipe); it rounds to bfloat16,
    so that another number of workers or micro-batches changes an update by some per cent."""
    lr: float = 1e-4
    """Learning rate after warm-up; constant from then on."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moment decays."""
    weight_decay: float = 0.0
    """Decoupled weight decay; with muon that of the matrices alone."""
    momentum: float = 0.95
    """Muon's (Nesterov) momentum."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly to lr."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    ema_decay: float = 0.9999
    """Decay of the weight average that is sampled."""
    precision: Precision = "float32"
    """Autocast of the step; fp16 scales the loss and skips a step whose gradient overflows."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", self.lr, "positive")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "both in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        require(self.grad_clip > 0, "grad_clip", self.grad_clip, "positive")
        for name in ("ema_decay", "momentum"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        require(
            self.precision != "fp16" or self.optimizer != "muon",
            "precision",
            self.precision,
            "float32 or bf16 with muon (of its two optimizers one might skip a step alone)",
        )

    def canonical(self) -> OptimConfig:
        """Reset fields that the optimizer does not read to their defaults."""
        return self if self.optimizer == "muon" else replace(self, momentum=OptimConfig.momentum)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and randomness of a training run, or the published checkpoint that stands for it."""

    steps: int
    """Optimizer steps; a longer run continues a shorter one of otherwise equal settings."""
    batch_size: int
    """Images per step over all workers: constant, whatever their number."""
    checkpoint_every: int
    """Steps between published checkpoints."""
    seed: int = 0
    """Seed of weights, data order, times, noise and label dropout."""
    from_checkpoint: str | None = None
    """Published checkpoint (SiT, LightningDiT, REPA, with or without IG; .pt or .safetensors) that
    is sampled instead of training. Nothing else of a training then counts: not its length, seed or
    optimizer; the FID curve is this one point, at step 0."""
    checkpoint_sha256: str | None = None
    """SHA-256 of that file; a run fills it in, and an experiment that has it takes no other."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "in 0..2^63 - 1")
        require(
            self.checkpoint_sha256 is None or self.imported,
            "checkpoint_sha256",
            self.checkpoint_sha256,
            "None without from_checkpoint",
        )

    @property
    def imported(self) -> bool:
        """True if a published checkpoint stands for the training."""
        return self.from_checkpoint is not None

    @property
    def last_step(self) -> int:
        """Step of the checkpoint that is judged; 0 for one that was not trained here."""
        return 0 if self.imported else self.steps

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps at which a checkpoint is published; the last step is always one of them."""
        if self.imported:
            return (0,)
        every = range(self.checkpoint_every, self.steps, self.checkpoint_every)
        return (*every, self.steps)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Scales and intervals of guidance; a scale of 1 is off. Intervals of t include both ends."""

    ig_scale: float = 1.0
    """Internal guidance: v_aux + ig_scale (v_final - v_aux)."""
    ig_interval: Interval = (0.0, 1.0)
    """Times at which internal guidance acts."""
    cfg_scale: float = 1.0
    """Classifier-free guidance: v_null + cfg_scale (v_label - v_null), after internal guidance."""
    cfg_interval: Interval = (0.0, 1.0)
    """Times at which classifier-free guidance acts."""
    auto_scale: float = 1.0
    """Autoguidance: v_weak + auto_scale (v - v_weak) with a second, weaker checkpoint."""
    auto_interval: Interval = (0.0, 1.0)
    """Times at which autoguidance acts."""

    def __post_init__(self) -> None:
        check_fields(self)
        for kind in ("ig", "cfg", "auto"):
            require_interval(f"{kind}_interval", getattr(self, f"{kind}_interval"))

    def at(self, t: float) -> tuple[float, float, float]:
        """Return the scales (ig, cfg, auto) that act at time t: 1 outside their interval."""
        scale = {
            kind: getattr(self, f"{kind}_scale") if low <= t <= high else 1.0
            for kind in ("ig", "cfg", "auto")
            for low, high in (getattr(self, f"{kind}_interval"),)
        }
        return scale["ig"], scale["cfg"], scale["auto"]

    def canonical(self) -> Guidance:
        """Reset the intervals of kinds of guidance that are off to their defaults.

        Two guidances that give the same samples compare equal in canonical form.
        """
        off = {
            f"{kind}_interval": (0.0, 1.0)
            for kind in ("ig", "cfg", "auto")
            if getattr(self, f"{kind}_scale") == 1.0
        }
        return replace(self, **off)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Integration of the probability-flow ODE or its SDE from t=1 (noise) to t=0 (data)."""

    method: Literal["euler", "heun", "dopri5", "sde"] = "heun"
    """Euler, Heun or adaptive dopri5 for the ODE; Euler-Maruyama for the SDE."""
    num_steps: int
    """Number of intervals of the time grid (dopri5 chooses its own steps)."""
    shift: float = 1.0
    """t -> shift t / (1 + (shift - 1) t); above 1 puts more steps near the noise."""
    last_step: float = 0.04
    """SDE only: time from which one step without noise leads to t=0."""
    path: PathType = "linear"
    """Path the model was trained on."""
    state_dtype: Literal["float32", "float64"] = "float32"
    """Precision of the sampler's state; the network always sees float32."""
    precision: Precision = "float32"
    """Autocast of the network; in bf16 and fp16 an image depends, by rounding, on its batch."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        require(self.shift > 0, "shift", self.shift, "positive")
        require(0 < self.last_step < 1, "last_step", self.last_step, "in (0, 1)")

    def canonical(self) -> SamplerConfig:
        """Reset fields that the method does not read to their defaults."""
        return self if self.method == "sde" else replace(self, last_step=SamplerConfig.last_step)


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
        ValueError: If the name is not in `MODELS`, or an override makes the architecture invalid.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, but got {name!r}")
    return ModelConfig(**(MODELS[name] | overrides))


class SettingError(ValueError):
    """Raised where data or a file contradict a setting.

    `settings` has the names of the settings as the raising function calls them, each with the value
    that would fit ("" if none is known). Callers that call them otherwise can say what mends it.
    """

    def __init__(self, message: str, **settings: str) -> None:
        super().__init__(message)
        self.settings = settings


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError naming the field, the value it got and what was expected."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, but got {value!r}")


def require_file_name(name: str, value: str) -> None:
    """Raise ValueError unless a text can name a file or folder without leaving its parent.

    Letters and digits of any language, space, and . _ - + = ( ) @ , are taken.
    """
    plain = re.fullmatch(r"\w[\w .+=(),@-]*", value) is not None and value == value.strip()
    expected = "a file name (letters, digits, spaces and ._-+=(),@ after a letter or digit)"
    require(plain and len(value.encode()) <= 120, name, value, expected)


def require_interval(name: str, value: tuple[float, float]) -> None:
    """Raise ValueError unless it is an interval of times."""
    low, high = value
    require(0.0 <= low <= high <= 1.0, name, value, "(low, high) with 0 <= low <= high <= 1")


def check_fields(config: object) -> None:
    """Check every field: its type, choices among those named, finite numbers.

    Raises:
        ValueError: If a field is not as its annotation says.
    """
    for name, kind in get_type_hints(type(config)).items():
        _check(name, getattr(config, name), kind)


def _check(name: str, value: Any, kind: Any) -> None:  # noqa: ANN401
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        require(value in inner, name, value, f"one of {', '.join(map(str, inner))}")
    elif origin in (Union, types.UnionType):
        if value is not None:
            _check(name, value, next(a for a in inner if a is not type(None)))
    elif origin is tuple:
        require(isinstance(value, tuple), name, value, "a tuple")
        if inner[-1] is not Ellipsis:
            require(len(value) == len(inner), name, value, f"a tuple of {len(inner)}")
        for item in value:
            _check(name, item, inner[0])
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number and abs(value) < float("inf"), name, value, "a finite number")
    elif kind is int:
        require(type(value) is int, name, value, "a whole number")
    elif kind is bool or kind is str:
        require(type(value) is kind, name, value, f"of type {kind.__name__}")


MAX_SIZES = {
    "depth": 1000,
    "width": 100_000,
    "num_heads": 10_000,
    "patch_size": 10_000,
    "input_size": 10_000,
    "in_channels": 10_000,
    "num_classes": 10_000_000,
}
"""Sizes of a model beyond which it is a mistake, or a file that is damaged."""


def require_sizes(config: Any) -> None:  # noqa: ANN401
    """Raise ValueError unless each of a model's sizes is at least 1 and not absurd."""
    for name, most in MAX_SIZES.items():
        value = getattr(config, name)
        require(value >= 1, name, value, "at least 1")
        require(value <= most, name, value, f"at most {most:,}")
