"""Files of codecs, judged before any work: names, shapes and settings. Nothing is executed.

Tensors are mapped, so that nothing of them is read until it is used.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ig_core.checkpoints.weight_names import find_weights
from ig_core.codecs.autoencoder import DECODING, expected_shapes, settings_of
from ig_core.codecs.ldm_names import diffusers_settings, diffusers_weights
from ig_core.config import SettingError
from ig_core.files.tensors import preview_problems, read_file, shape_mismatches

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

SD_SCALE = 0.18215
"""Factor that gives latents of the sd-vae unit variance, roughly (Rombach et al. 2022)."""
SD_CONFIG, SD_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SHAPES = {"sd-vae": (4, 8), "va-vae": (32, 16)}
"""Codec -> channels of its latents, pixels along one side of a cell."""
ANCHORS = ("encoder.conv_in.weight", "decoder.conv_out.weight")
"""Names of tensors that every autoencoder has, diffusers' or latent diffusion's."""
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention in files that older versions of diffusers wrote, the published among them."""


class CodecFile(NamedTuple):
    """An autoencoder as its file describes it."""

    settings: dict[str, Any]
    """Arguments of diffusers' AutoencoderKL."""
    weights: dict[str, Tensor]
    """Under diffusers' names, mapped from the file; every one that is needed, and no other."""

    @property
    def encoder_digest(self) -> str:
        """SHA-256 (64 digits) of all that the moments depend on, without the decoder."""
        settings = {k: v for k, v in sorted(self.settings.items()) if k not in DECODING}
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, value in sorted(self.weights.items()):
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(f"{name} {tuple(value.shape)}\0".encode())
                digest.update(value.detach().float().numpy().tobytes())
        return digest.hexdigest()


def codec_parts(name: str, path: Path) -> list[Path]:
    """Return the files that a codec is read from.

    Raises:
        ValueError: If a file is missing.
    """
    if name == "va-vae":
        if not path.is_file():
            message = f"path must be the checkpoint file of the va-vae, but got {str(path)!r}"
            if path.is_dir():
                raise SettingError(f"{message}, a folder as the sd-vae's", codec="sd-vae")
            raise SettingError(message, path="")
        return [path]
    for part in (SD_CONFIG, SD_WEIGHTS):
        if not (path / part).is_file():
            hint = "is a file" if path.is_file() else f"has no {part}"
            raise SettingError(
                f"path must be a folder with {SD_CONFIG} and {SD_WEIGHTS} "
                f"(diffusers' AutoencoderKL), but {str(path)!r} {hint}",
                path="",
            )
    return [path / SD_CONFIG, path / SD_WEIGHTS]


def open_codec(name: str, path: Path) -> CodecFile:
    """Map a codec's weights and compare their names and shapes with its architecture's.

    An sd-vae of another scale (that of SDXL, say, which has the same shape) is refused: a model
    that was trained at 0.18215 makes samples that it cannot decode.

    Args:
        name: sd-vae or va-vae.
        path: Folder of diffusers' AutoencoderKL (sd-vae); checkpoint file (va-vae).

    Raises:
        ValueError: If a file is missing, cannot be read or is that of another autoencoder; or if a
            tensor is missing, unexpected or of another shape, which the message names.
    """
    parts = codec_parts(name, path)
    tensors = autoencoder_weights(parts[-1])
    if name == "sd-vae":
        _refuse_ldm(tensors, parts[-1])
        settings = _read_settings(parts[0])
        weights = {
            re.sub(
                r"(attentions\.\d+)\.(query|key|value|proj_attn)\.",
                lambda found: f"{found[1]}.{_FORMER[found[2]]}.",
                key,
            ): value
            for key, value in tensors.items()
        }
    else:
        _refuse_diffusers(tensors, path)
        tensors = {k: v for k, v in tensors.items() if k.startswith(_PARTS)}
        try:
            settings = settings_of(diffusers_settings(tensors))
        except ValueError as error:
            raise ValueError(f"{path} is no va-vae: {error}") from error
        weights = diffusers_weights(tensors)
    shape = settings["latent_channels"], 2 ** (len(settings["block_out_channels"]) - 1)
    if shape != SHAPES[name]:
        channels, factor = SHAPES[name]
        raise ValueError(
            f"{path} must be the {name} ({channels} channels, {factor} pixels a cell),"
            f" but has {shape[0]} channels and {shape[1]} pixels a cell"
        )
    found = {key: tuple(value.shape) for key, value in weights.items()}
    problems = shape_mismatches(found, expected_shapes(settings))
    problems += [
        f"{key} holds {value.dtype}"
        for key, value in weights.items()
        if not value.is_floating_point()
    ]
    if problems:
        raise ValueError(f"{path} does not fit the {name}: {preview_problems(problems)}")
    return CodecFile(settings, weights)


def autoencoder_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an autoencoder by their names; other contents of the file are left out.

    Raises:
        ValueError: As `ig_core.checkpoints.weight_names.find_weights`.
    """
    held: Any = read_file(path)
    return find_weights(held, ANCHORS, str(path), "codec's autoencoder", strict=False).tensors


class DiffusersConfig(NamedTuple):
    """Contents of the `config.json` of a model of diffusers."""

    kind: str
    """Class of diffusers: AutoencoderKL, UNet2DModel, ..."""
    channels: int | None
    """Channels of the latents, where the file tells them."""
    factor: int | None
    """Pixels along one side of a cell, where the file tells them."""
    scale: float | None
    """Factor on the latents, where the file tells it."""
    values: dict[str, Any]
    """Content of the file."""


def read_config(path: Path) -> DiffusersConfig:
    """Read the `config.json` of a model of diffusers.

    Raises:
        ValueError: If the file cannot be read, or does not describe such a model.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        blocks, scale = values.get("block_out_channels", [None]), values.get("scaling_factor")
        return DiffusersConfig(
            kind=values["_class_name"],
            channels=values.get("latent_channels"),
            factor=2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else None,
            scale=None if scale is None else float(scale),
            values=values,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise ValueError(
            f"{path} does not describe a model of diffusers: {type(error).__name__} {error}"
        ) from error


def _read_settings(path: Path) -> dict[str, Any]:
    """Read and check the settings of the sd-vae."""
    config = read_config(path)
    scale = SD_SCALE if config.scale is None else config.scale
    if config.kind != "AutoencoderKL" or scale != SD_SCALE:
        raise ValueError(
            f"{path.parent} must be an AutoencoderKL with scaling_factor {SD_SCALE}, "
            f"but is {config.kind} with {scale}"
        )
    try:
        return settings_of(config.values)
    except ValueError as error:
        raise ValueError(f"{path} is no configuration of an AutoencoderKL: {error}") from error


def is_diffusers(names: Iterable[str]) -> bool:
    """Check for weights of an AutoencoderKL under diffusers' names."""
    return any(name.startswith("encoder.down_blocks.") for name in names)


def _refuse_diffusers(names: Iterable[str], path: Path) -> None:
    if is_diffusers(names):
        raise SettingError(
            f"{path} must be the va-vae under latent diffusion's names, but these are weights of "
            f"diffusers' AutoencoderKL: their folder may be the sd-vae",
            codec="sd-vae",
        )


def _refuse_ldm(names: Iterable[str], path: Path) -> None:
    if any(name.startswith("encoder.down.") for name in names):
        raise SettingError(
            f"{path} must be an AutoencoderKL under diffusers' names, but these are weights of "
            f"latent diffusion's code: the file may be the va-vae, others are to be converted "
            f"first",
            codec="va-vae",
        )
