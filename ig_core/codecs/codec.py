"""Codecs: images to latents and back, by weights that lie on this machine.

sd-vae is the autoencoder of Stable Diffusion (f8, 4 channels), read by diffusers from a folder.
va-vae is LightningDiT's (f16, 32 channels), an autoencoder of latent diffusion (Rombach et al.
2022) in one checkpoint file; it runs on diffusers' blocks, see `ig_core.codecs.ldm_names`. Both
give the moments of the posterior. Nothing is fetched, and nothing in a file is executed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ig_core.codecs.autoencoder import autoencoder_class
from ig_core.codecs.files import open_codec
from ig_core.images.sets import from_uint8, to_uint8

if TYPE_CHECKING:
    from pathlib import Path


class Codec:
    """An autoencoder whose posterior is a diagonal normal distribution."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401
        self._network = network.eval().requires_grad_(False)
        self.channels = int(network.config.latent_channels)
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images as moments of their posterior.

        Args:
            images: uint8 (B, 3, H, W).

        Returns:
            float32 (B, 2C, H/f, W/f): mean, then standard deviation.
        """
        posterior = self._network.encode(from_uint8(images)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, H/f, W/f), not normalised, to images uint8 (B, 3, H, W)."""
        return to_uint8(self._network.decode(latents).sample)


def load_codec(name: str, path: Path, device: str = "cpu") -> Codec:
    """Load a codec.

    Args:
        name: sd-vae or va-vae.
        path: Folder of diffusers' AutoencoderKL (sd-vae); checkpoint file (va-vae).
        device: Where it computes.

    Raises:
        ValueError: As `ig_core.codecs.files.open_codec`.
        MissingLibraryError: If diffusers is not installed.
    """
    file = open_codec(name, path)
    network = autoencoder_class()(**file.settings)
    try:
        network.load_state_dict(file.weights)
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read as {name}: {error}") from error
    return Codec(network.to(device))
