"""Weights of latent diffusion's autoencoder under the names of diffusers.

The two build the same network of the same blocks. Names here are those of the `ldm` code that the
VA-VAE was trained with, whose configuration (f16d32: widths 128 times 1, 1, 2, 2, 4; two blocks a
level; attention at 16x16; 32 channels) is read off the weights rather than assumed. The published
file itself was not at hand: that its names are these is known from that code, not from the file. A
name that is missing or left over is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

NORM_GROUPS = 32
"""Groups of every group normalisation in this family."""


def diffusers_settings(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return arguments of diffusers' AutoencoderKL for an autoencoder of latent diffusion.

    Raises:
        ValueError: If weights of such an autoencoder are missing.
    """
    levels = _levels(weights)
    needed = [
        "encoder.conv_in.weight",
        "decoder.conv_out.weight",
        "quant_conv.weight",
        "post_quant_conv.weight",
    ]
    needed += [f"encoder.down.{level}.block.0.conv2.weight" for level in range(levels)]
    missing = [name for name in needed if name not in weights or weights[name].dim() != 4]
    if missing or not levels:
        name = missing[0] if missing else "encoder.down.0.block.0.conv2.weight"
        raise ValueError(
            f"weights of an ldm autoencoder must hold {name} with four dimensions, "
            f"but none of {len(weights)} tensors is that"
        )
    attended = [f"encoder.down.{level}.attn.0.q.weight" in weights for level in range(levels)]
    blocks = [
        name for name in weights if re.match(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)
    ]
    return {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "block_out_channels": tuple(weights[name].shape[0] for name in needed[4:]),
        "layers_per_block": len(blocks),
        "latent_channels": weights["post_quant_conv.weight"].shape[1],
        "norm_num_groups": NORM_GROUPS,
        "down_block_types": tuple(f"{'Attn' * on}DownEncoderBlock2D" for on in attended),
        "up_block_types": tuple(f"{'Attn' * on}UpDecoderBlock2D" for on in reversed(attended)),
    }


def diffusers_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to diffusers' names; 1x1 convolutions of attention become linear."""
    levels = _levels(weights)
    found = {}
    for name, value in weights.items():
        new = diffusers_name(name, levels)
        linear = ".attentions." in new and value.dim() == 4
        found[new] = value[:, :, 0, 0] if linear else value
    return found


def _levels(names: Iterable[str]) -> int:
    return len({m[1] for name in names if (m := re.match(r"encoder\.down\.(\d+)\.", name))})


_PARTS = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.up\.(\d+)\.", r".up_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def diffusers_name(name: str, levels: int) -> str:
    """Return diffusers' name of a weight of an autoencoder with so many levels."""
    # Latent diffusion counts the decoder's levels by their resolution, diffusers in their order.
    found = re.match(r"decoder\.up\.(\d+)\.", name)
    if found:
        name = f"decoder.up.{levels - 1 - int(found[1])}.{name[found.end() :]}"
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return re.sub(
        r"(attentions\.\d+)\.(norm|q|k|v|proj_out)\.",
        lambda match: f"{match[1]}.{_ATTENTION[match[2]]}.",
        name,
    )
