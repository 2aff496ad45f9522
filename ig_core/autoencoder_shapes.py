"""Names and shapes of the tensors of diffusers' AutoencoderKL, by its configuration.

They are worked out here, so that a file is judged in milliseconds and where diffusers is not
installed. The tests compare them with diffusers' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Named = Iterator[tuple[str, tuple[int, ...]]]
    """Names and shapes."""

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
"""Arguments of AutoencoderKL that its computation depends on, and what they are if not given."""
DECODING = ("out_channels", "up_block_types", "use_post_quant_conv")
"""Those that the encoder does not depend on."""
BLOCKS = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
          "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")}  # fmt: skip
LARGEST = 2**16
"""Of channels; far beyond any that was built."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a `config.json`, checked.

    Raises:
        ValueError: one of them is none of AutoencoderKL.
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
    for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block",
                 "norm_num_groups", "block_out_channels"):  # fmt: skip
        values = found[name] if name == "block_out_channels" else (found[name],)
        most = 64 if name == "layers_per_block" else LARGEST
        if not all(type(value) is int and 1 <= value <= most for value in values):
            raise ValueError(f"{name} must be in 1..{most}, but is {found[name]!r}")
    for name, known in BLOCKS.items():
        if not set(found[name]) <= set(known) or len(found[name]) != len(
            found["block_out_channels"]
        ):
            raise ValueError(f"{name} must be {' or '.join(known)} for each of block_out_channels, "
                             f"but is {found[name]!r}")  # fmt: skip
    return found


def expected_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an AutoencoderKL with checked settings."""
    latent = settings["latent_channels"]
    shapes = dict(_encoder(settings)) | dict(_decoder(settings))
    if settings["use_quant_conv"]:
        shapes |= dict(_conv("quant_conv", 2 * latent, 2 * latent, 1))
    if settings["use_post_quant_conv"]:
        shapes |= dict(_conv("post_quant_conv", latent, latent, 1))
    return shapes


def _encoder(settings: Mapping[str, Any]) -> Named:
    widths, before = settings["block_out_channels"], settings["block_out_channels"][0]
    yield from _conv("encoder.conv_in", settings["in_channels"], before)
    for level, (kind, width) in enumerate(
        zip(settings["down_block_types"], widths, strict=True)
    ):  # fmt: skip
        name = f"encoder.down_blocks.{level}"
        yield from _level(name, before, width, settings["layers_per_block"], "Attn" in kind)
        if level < len(widths) - 1:
            yield from _conv(f"{name}.downsamplers.0.conv", width, width)
        before = width
    yield from _middle("encoder.mid_block", before, settings["mid_block_add_attention"])
    yield from _pair("encoder.conv_norm_out", (before,), before)
    yield from _conv("encoder.conv_out", before, 2 * settings["latent_channels"])


def _decoder(settings: Mapping[str, Any]) -> Named:
    widths = settings["block_out_channels"][::-1]
    before = widths[0]
    yield from _conv("decoder.conv_in", settings["latent_channels"], before)
    yield from _middle("decoder.mid_block", before, settings["mid_block_add_attention"])
    for level, (kind, width) in enumerate(
        zip(settings["up_block_types"], widths, strict=True)
    ):  # fmt: skip
        name = f"decoder.up_blocks.{level}"
        yield from _level(name, before, width, settings["layers_per_block"] + 1, "Attn" in kind)
        if level < len(widths) - 1:
            yield from _conv(f"{name}.upsamplers.0.conv", width, width)
        before = width
    yield from _pair("decoder.conv_norm_out", (before,), before)
    yield from _conv("decoder.conv_out", before, settings["out_channels"])


def _level(name: str, before: int, width: int, layers: int, attended: bool) -> Named:
    for layer in range(layers):
        yield from _residual(f"{name}.resnets.{layer}", before if layer == 0 else width, width)
        if attended:
            yield from _attention(f"{name}.attentions.{layer}", width)


def _middle(name: str, width: int, attended: bool) -> Named:
    yield from _residual(f"{name}.resnets.0", width, width)
    yield from _residual(f"{name}.resnets.1", width, width)
    if attended:
        yield from _attention(f"{name}.attentions.0", width)


def _residual(name: str, before: int, after: int) -> Named:
    yield from _pair(f"{name}.norm1", (before,), before)
    yield from _conv(f"{name}.conv1", before, after)
    yield from _pair(f"{name}.norm2", (after,), after)
    yield from _conv(f"{name}.conv2", after, after)
    if before != after:
        yield from _conv(f"{name}.conv_shortcut", before, after, 1)


def _attention(name: str, width: int) -> Named:
    yield from _pair(f"{name}.group_norm", (width,), width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _pair(f"{name}.{part}", (width, width), width)


def _conv(name: str, before: int, after: int, side: int = 3) -> Named:
    return _pair(name, (after, before, side, side), after)


def _pair(name: str, weight: tuple[int, ...], bias: int) -> Named:
    yield f"{name}.weight", weight
    yield f"{name}.bias", (bias,)
