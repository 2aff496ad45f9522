"""Inspection of files that accompany a diffusion transformer.

These are codecs (diffusers' AutoencoderKL, the VA-VAE), a single shard of LightningDiT's latents,
and the statistics beside its shards.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ig_core.checkpoints.weight_names import has_network
from ig_core.codecs.files import (
    ANCHORS,
    SD_CONFIG,
    SHAPES,
    autoencoder_weights,
    is_diffusers,
    open_codec,
    read_config,
)
from ig_core.files.tensors import read_header
from pipelines.common.remedies import FIELDS, explained
from pipelines.inspection.inspection import Inspection

if TYPE_CHECKING:
    from pathlib import Path

CODEC_NAMES = {shape: name.upper() for name, shape in SHAPES.items()}
"""Number of channels and pixels per latent cell -> name of the codec."""


def is_codec_folder(path: Path) -> bool:
    """Check whether a folder describes a model of diffusers."""
    return (path / SD_CONFIG).is_file()


def inspect_codec_folder(path: Path) -> Inspection:
    """Describe a model of diffusers, and check whether it can be the sd-vae.

    Raises:
        ValueError: If its configuration cannot be read.
    """
    config = read_config(path / SD_CONFIG)
    if config.kind != "AutoencoderKL":
        return Inspection(
            {"model": f"{config.kind} of diffusers"},
            [],
            ["it is not a supported codec: sd-vae is an AutoencoderKL"],
        )
    sizes = config.channels, config.factor
    model = "SD-VAE" if sizes == SHAPES["sd-vae"] else "AutoencoderKL"
    return _codec("sd-vae", f"{model} of diffusers", path, *sizes, config.scale)


def inspect_other_file(path: Path) -> Inspection | None:
    """Describe a file that holds no diffusion transformer; None if it may hold one.

    Raises:
        ValueError: If it cannot be read.
    """
    from ig_core.files.tensors import read_file

    if path.suffix == ".safetensors":
        try:
            names = read_header(path)
        except ValueError:  # damaged: the reader of checkpoints reports it
            return None
        if {"latents", "labels"} <= names.keys():
            return _shard_of_folder(path)
        if not has_network(dict.fromkeys(names), ANCHORS):
            return None
    content = read_file(path)
    if not isinstance(content, Mapping):
        return None
    if content.keys() == {"mean", "std"}:
        return _statistics(path)
    return _autoencoder(path, autoencoder_weights(path)) if has_network(content, ANCHORS) else None


def _autoencoder(path: Path, weights: dict[str, Any]) -> Inspection:
    """Describe an autoencoder of latent diffusion, or one of diffusers, from its weights."""
    from ig_core.codecs.ldm_names import diffusers_settings

    if is_diffusers(weights):
        if is_codec_folder(path.parent):
            found = inspect_codec_folder(path.parent)
            note = f"--data.codec-path takes the folder, {path.parent}"
            return found._replace(notes=[*found.notes, note])
        return Inspection(
            {"codec": "weights of diffusers' AutoencoderKL"},
            [],
            [f"the sd-vae is read from a folder with {SD_CONFIG}, and none lies beside this file"],
        )
    try:
        settings = diffusers_settings(weights)
    except (ValueError, AttributeError, IndexError) as error:
        return Inspection({"codec": "an autoencoder"}, [], [f"it is not the va-vae: {error}"])
    factor = 2 ** (len(settings["block_out_channels"]) - 1)
    channels = settings["latent_channels"]
    model = CODEC_NAMES.get((channels, factor), "autoencoder")
    return _codec("va-vae", f"{model} in the names of latent diffusion", path, channels, factor)


def _codec(
    name: str,
    description: str,
    path: Path,
    channels: int | None,
    factor: int | None,
    scale: float | None = None,
) -> Inspection:
    """Describe a codec, and try to open it as a run does."""
    lines = {
        "codec": description,
        "latents": f"{channels} channels, {factor} pixels a cell (factor)",
    }
    if scale is not None:
        lines["scale"] = f"{scale:g}"
    try:
        open_codec(name, path)
    except ValueError as error:
        problem = f"as the {name}: {explained(error, FIELDS | {'path': 'data.codec_path'})}"
        return Inspection(lines, [], [problem])
    lines["use it"] = f"--data.codec {name} --data.codec-path {shlex.quote(str(path))}"
    notes = ["it is a codec, which decodes samples, not a model to sample from"]
    if name == "sd-vae":
        notes.append(
            "it does not tell whether the latents were made by this encoder: SD-VAE's releases "
            "(ema, mse) share their encoder and differ in their decoder"
        )
    return Inspection(lines, notes, [])


def _shard_of_folder(path: Path) -> Inspection:
    """Describe the folder that a shard belongs to, as a shard cannot be used alone."""
    from ig_core.data.inspection import inspect_latents
    from pipelines.inspection.latents import describe_cache

    folder = describe_cache(inspect_latents(path.parent))
    note = f"{path.name} is one of its shards: --data.path takes the folder, {path.parent}"
    return folder._replace(notes=[note, *folder.notes])


def _statistics(path: Path) -> Inspection:
    """Describe the statistics of latents by channel."""
    from ig_core.data.sources.rows import read_statistics, statistics_problem

    mean, std = read_statistics(path)
    lines = {
        "statistics": f"mean and standard deviation of {mean.numel()} channels, as in the "
        f"latents_stats.pt beside LightningDiT's latents",
        "mean": f"{float(mean.min()):.4g} .. {float(mean.max()):.4g}",
        "std": f"{float(std.min()):.4g} .. {float(std.max()):.4g}",
    }
    problem = statistics_problem(mean, std, mean.numel())
    note = "it belongs in the folder of the shards that it was measured on (--data.path)"
    return Inspection(lines, [note], [] if problem is None else [f"it {problem}"])
