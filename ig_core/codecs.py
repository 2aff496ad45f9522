"""Codecs: images to latents and back, by weights that lie on this machine.

sd-vae is the autoencoder of Stable Diffusion (f8, 4 channels), read by diffusers from a folder.
va-vae is LightningDiT's (f16, 32 channels), an autoencoder of latent diffusion (Rombach et al.
2022) in one checkpoint file; it runs on diffusers' blocks, see `ig_core.ldm_names`. Both give the
moments of the posterior. Nothing is fetched, and nothing in a file is executed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ig_core.images import from_uint8, to_uint8
from ig_core.ldm_names import diffusers_settings, diffusers_weights

if TYPE_CHECKING:
    from pathlib import Path

SD_SCALE = 0.18215
"""Factor that gives latents of the sd-vae unit variance, roughly (Rombach et al. 2022)."""
SD_CONFIG, SD_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class Codec:
    """An autoencoder whose posterior is a diagonal normal distribution."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401
        self._network = network.eval().requires_grad_(False)
        self.channels = int(network.config.latent_channels)
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Moments of the posterior of images.

        Args:
            images: uint8 (B, 3, H, W).

        Returns:
            float32 (B, 2C, H/f, W/f): mean, then standard deviation.
        """
        posterior = self._network.encode(from_uint8(images)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) of latents (B, C, H/f, W/f), not normalised."""
        return to_uint8(self._network.decode(latents).sample)


def load_codec(name: str, path: Path, device: str = "cpu") -> Codec:
    """Load a codec.

    Args:
        name: sd-vae or va-vae.
        path: Folder of diffusers' AutoencoderKL (sd-vae); checkpoint file (va-vae).
        device: Where it computes.

    Raises:
        ValueError: there is no such codec, or it is another one than its name says.
    """
    check_codec(name, path)
    network_class = _autoencoder_class()
    try:
        if name == "sd-vae":
            network = network_class.from_pretrained(
                path, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
            )
        else:
            weights = _read_checkpoint(path)
            network = network_class(**diffusers_settings(weights))
            network.load_state_dict(diffusers_weights(weights))
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as {name}: {error}") from error
    codec = Codec(network.to(device))
    channels, factor = (4, 8) if name == "sd-vae" else (32, 16)
    if (codec.channels, codec.factor) != (channels, factor):
        raise ValueError(f"{path} must be the {name} ({channels} channels, {factor} pixels a cell),"
                         f" but has {codec.channels} channels and {codec.factor} pixels a "
                         f"cell")  # fmt: skip
    return codec


def check_codec(name: str, path: Path) -> None:
    """Raise ValueError unless the files of a codec are there, and are its own as far as they say.

    An sd-vae of another scale (that of SDXL, say, which has the same shape) is refused: samples
    that were learnt at 0.18215 mean nothing to it.
    """
    if name == "va-vae":
        if not path.is_file():
            raise ValueError(f"data.codec_path must be the checkpoint file of the va-vae, but got "
                             f"{str(path)!r}")  # fmt: skip
        return
    for part in (SD_CONFIG, SD_WEIGHTS):
        if not (path / part).is_file():
            raise ValueError(f"data.codec_path must be a folder with {SD_CONFIG} and {SD_WEIGHTS}, "
                             f"but {str(path)!r} has no {part}")  # fmt: skip
    try:
        config = json.loads((path / SD_CONFIG).read_bytes())
        kind, scale = config.get("_class_name"), float(config.get("scaling_factor", SD_SCALE))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / SD_CONFIG} is no configuration: {error}") from error
    if kind != "AutoencoderKL" or scale != SD_SCALE:
        raise ValueError(f"{path} must be an AutoencoderKL with scaling_factor {SD_SCALE}, but is "
                         f"{kind} with {scale}")  # fmt: skip


def _autoencoder_class() -> Any:  # noqa: ANN401
    from ig_core.torchvision_shim import declare_missing_operators

    declare_missing_operators()
    try:
        from diffusers import AutoencoderKL
    except ModuleNotFoundError as error:
        raise ValueError("data.codec needs diffusers: pip install 'igdit[imagenet]'") from error
    return AutoencoderKL


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Weights of a safetensors or torch file; optimizer, losses and other passengers left out."""
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        found: Any = load_file(path)
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes it raise
            raise ValueError(f"{path} is no file of weights: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    wanted = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold weights by name, but holds {type(found).__name__}")
    return {k: v for k, v in found.items() if isinstance(v, Tensor) and k.startswith(wanted)}
