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
from ig_core.files.tensors import listed, read_file, shape_misfits

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
"""Names that tell an autoencoder, diffusers' or latent diffusion's."""
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
        """SHA-256 of all that the moments depend on, and of nothing that decodes: 64 digits."""
        settings = {k: v for k, v in sorted(self.settings.items()) if k not in DECODING}
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, value in sorted(self.weights.items()):
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(f"{name} {tuple(value.shape)}\0".encode())
                digest.update(value.detach().float().numpy().tobytes())
        return digest.hexdigest()


def codec_parts(name: str, path: Path) -> list[Path]:
    """The files that a codec is read from.

    Raises:
        ValueError: they are not there.
    """
    if name == "va-vae":
        if not path.is_file():
            hint = " (a folder of diffusers is --data.codec sd-vae)" if path.is_dir() else ""
            raise ValueError(
                f"data.codec_path must be the checkpoint file of the va-vae, but got "
                f"{str(path)!r}{hint}"
            )
        return [path]
    for part in (SD_CONFIG, SD_WEIGHTS):
        if not (path / part).is_file():
            hint = "is a file" if path.is_file() else f"has no {part}"
            raise ValueError(
                f"data.codec_path must be a folder with {SD_CONFIG} and {SD_WEIGHTS} "
                f"(diffusers' AutoencoderKL), but {str(path)!r} {hint}"
            )
    return [path / SD_CONFIG, path / SD_WEIGHTS]


def open_codec(name: str, path: Path) -> CodecFile:
    """Map a codec's weights and compare their names and shapes with its architecture's.

    An sd-vae of another scale (that of SDXL, say, which has the same shape) is refused: samples
    that were learnt at 0.18215 mean nothing to it.

    Args:
        name: sd-vae or va-vae.
        path: Folder of diffusers' AutoencoderKL (sd-vae); checkpoint file (va-vae).

    Raises:
        ValueError: the files are not there, cannot be read, are those of another autoencoder, or
            lack a tensor, hold one more, or one of another shape; the message names them.
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
    problems = shape_misfits(found, expected_shapes(settings))
    problems += [
        f"{key} holds {value.dtype}"
        for key, value in weights.items()
        if not value.is_floating_point()
    ]
    if problems:
        raise ValueError(f"{path} does not fit the {name}: {listed(problems)}")
    return CodecFile(settings, weights)


def autoencoder_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of an autoencoder in a file by their names; what lies beside them is left out.

    Raises:
        ValueError: see `ig_core.checkpoints.weight_names.find_weights`.
    """
    held: Any = read_file(path)
    return find_weights(held, ANCHORS, str(path), "codec's autoencoder", strict=False).tensors


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        kind, scale = config.get("_class_name"), float(config.get("scaling_factor", SD_SCALE))
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is no configuration: {error}") from error
    if kind != "AutoencoderKL" or scale != SD_SCALE:
        raise ValueError(
            f"{path.parent} must be an AutoencoderKL with scaling_factor {SD_SCALE}, "
            f"but is {kind} with {scale}"
        )
    try:
        return settings_of(config)
    except ValueError as error:
        raise ValueError(f"{path} is no configuration of an AutoencoderKL: {error}") from error


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether weights are an AutoencoderKL's under diffusers' names."""
    return any(name.startswith("encoder.down_blocks.") for name in names)


def _refuse_diffusers(names: Iterable[str], path: Path) -> None:
    if is_diffusers(names):
        raise ValueError(
            f"{path} must be the va-vae under latent diffusion's names, but these are "
            f"weights of diffusers' AutoencoderKL: --data.codec sd-vae takes their "
            f"folder"
        )


def _refuse_ldm(names: Iterable[str], path: Path) -> None:
    if any(name.startswith("encoder.down.") for name in names):
        raise ValueError(
            f"{path} must be an AutoencoderKL under diffusers' names, but these are "
            f"weights of latent diffusion's code: of the va-vae --data.codec va-vae "
            f"takes the file, others are to be converted first"
        )
