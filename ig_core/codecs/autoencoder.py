"""Diffusers' AutoencoderKL by its configuration: the class, its settings, its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ig_core.files.extras import extra

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""Arguments of AutoencoderKL that its computation depends on, with their defaults."""
DECODING = ("out_channels", "up_block_types", "use_post_quant_conv")
"""Settings that the encoder does not depend on."""
BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
MAX_CHANNELS = 2**16
"""Largest number of channels that is accepted, far beyond any that was built."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a `config.json`, checked.

    Raises:
        ValueError: If a setting has a type or value that AutoencoderKL does not take.
    """
    found = {name: config.get(name, usual) for name, usual in SETTINGS.items()}
    for name, usual in SETTINGS.items():
        value = found[name]
        if isinstance(usual, tuple):
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= 16:
                raise ValueError(f"{name} must be a list of 1 to 16 values, but is {value!r}")
            found[name] = tuple(value)
        elif type(value) is not type(usual):
            raise ValueError(f"{name} must be of type {type(usual).__name__}, but is {value!r}")
    for name in (
        "in_channels",
        "out_channels",
        "latent_channels",
        "layers_per_block",
        "norm_num_groups",
        "block_out_channels",
    ):
        values = found[name] if name == "block_out_channels" else (found[name],)
        most = 64 if name == "layers_per_block" else MAX_CHANNELS
        if not all(type(value) is int and 1 <= value <= most for value in values):
            raise ValueError(f"{name} must be in 1..{most}, but is {found[name]!r}")
    for name, known in BLOCKS.items():
        if not set(found[name]) <= set(known) or len(found[name]) != len(
            found["block_out_channels"]
        ):
            raise ValueError(
                f"{name} must be {' or '.join(known)} for each of block_out_channels, "
                f"but is {found[name]!r}"
            )
    return found


def autoencoder_class() -> Any:  # noqa: ANN401
    """Import AutoencoderKL, the class of diffusers.

    Raises:
        MissingLibraryError: If diffusers is not installed.
    """
    from ig_core.files.torchvision_shim import declare_missing_operators

    declare_missing_operators()
    with extra("imagenet"):
        from diffusers import AutoencoderKL
    return AutoencoderKL


def expected_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of an AutoencoderKL, without allocating it.

    Raises:
        MissingLibraryError: If diffusers is not installed.
        ValueError: If diffusers cannot build the settings.
    """
    with torch.device("meta"):
        network = autoencoder_class()(**settings)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
