"""`igdit inspect` of what is no checkpoint of a diffusion transformer, but belongs to one.

Codecs (diffusers' AutoencoderKL, the VA-VAE), one shard of LightningDiT's latents, and the
statistics that lie beside them.
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

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.inspection.latents import Inspection

KNOWN = {shape: name.upper() for name, shape in SHAPES.items()}
"""Channels and pixels a cell -> the codec that has them."""


def is_codec_folder(path: Path) -> bool:
    """Check whether a folder describes a model of diffusers."""
    return (path / SD_CONFIG).is_file()


def inspect_codec_folder(path: Path) -> Inspection:
    """Say which model of diffusers a folder holds, and whether it can be the sd-vae.

    Raises:
        ValueError: its configuration cannot be read.
    """
    config = read_config(path / SD_CONFIG)
    if config.kind != "AutoencoderKL":
        return (
            {"model": f"{config.kind} of diffusers"},
            [],
            ["it is no codec that is known here: sd-vae is an AutoencoderKL"],
        )
    sizes = config.channels, config.factor
    what = "SD-VAE" if sizes == SHAPES["sd-vae"] else "AutoencoderKL"
    return _codec("sd-vae", f"{what} of diffusers", path, *sizes, config.scale)


def inspect_other_file(path: Path) -> Inspection | None:
    """Say what a file is that holds no diffusion transformer; None: it may hold one.

    Raises:
        ValueError: it cannot be read.
    """
    from ig_core.files.tensors import read_file

    if path.suffix == ".safetensors":
        try:
            names = read_header(path)
        except ValueError:  # it is damaged, which whoever reads it as a checkpoint says
            return None
        if {"latents", "labels"} <= names.keys():
            return _one_shard(path)
        if not has_network(dict.fromkeys(names), ANCHORS):
            return None
    held = read_file(path)
    if not isinstance(held, Mapping):
        return None
    if held.keys() == {"mean", "std"}:
        return _statistics(path)
    return _autoencoder(path, autoencoder_weights(path)) if has_network(held, ANCHORS) else None


def _autoencoder(path: Path, weights: dict[str, Any]) -> Inspection:
    """Latent diffusion's autoencoder in one file, or that of diffusers out of its folder."""
    from ig_core.codecs.ldm_names import diffusers_settings

    if is_diffusers(weights):
        if is_codec_folder(path.parent):
            lines, notes, problems = inspect_codec_folder(path.parent)
            return lines, [*notes, f"--data.codec-path takes the folder, {path.parent}"], problems
        return (
            {"codec": "weights of diffusers' AutoencoderKL"},
            [],
            [f"the sd-vae is read from a folder with {SD_CONFIG}, and none lies beside this file"],
        )
    try:
        settings = diffusers_settings(weights)
    except (ValueError, AttributeError, IndexError) as error:
        return {"codec": "an autoencoder"}, [], [f"it is not the va-vae: {error}"]
    factor = 2 ** (len(settings["block_out_channels"]) - 1)
    channels = settings["latent_channels"]
    what = KNOWN.get((channels, factor), "autoencoder")
    return _codec("va-vae", f"{what} in the names of latent diffusion", path, channels, factor)


def _codec(
    name: str,
    what: str,
    path: Path,
    channels: int | None,
    factor: int | None,
    scale: float | None = None,
) -> Inspection:
    """Describe a codec, and try to open it as a run does."""
    lines = {"codec": what, "latents": f"{channels} channels, {factor} pixels a cell (factor)"}
    if scale is not None:
        lines["scale"] = f"{scale:g}"
    try:
        open_codec(name, path)
    except ValueError as error:
        return (
            lines,
            [],
            [f"as the {name}: {explained(error, FIELDS | {'path': 'data.codec_path'})}"],
        )
    lines["use it"] = f"--data.codec {name} --data.codec-path {shlex.quote(str(path))}"
    notes = ["it is a codec, which decodes samples, not a model to be sampled"]
    if name == "sd-vae":
        notes.append(
            "that the latents were made by this very encoder cannot be read from it: of "
            "SD-VAE's releases (ema, mse) the encoders are the same, the decoders are "
            "not"
        )
    return lines, notes, []


def _one_shard(path: Path) -> Inspection:
    """A shard is no use alone: what is said is said of its folder."""
    from ig_core.data.inspection import inspect_latents
    from pipelines.inspection.latents import inspected_cache

    lines, notes, problems = inspected_cache(inspect_latents(path.parent))
    note = f"{path.name} is one of its shards: --data.path takes the folder, {path.parent}"
    return lines, [note, *notes], problems


def _statistics(path: Path) -> Inspection:
    from ig_core.data.sources.rows import read_statistics, statistics_problem

    mean, std = read_statistics(path)
    lines = {
        "statistics": f"mean and spread of {mean.numel()} channels, as latents_stats.pt beside "
        f"LightningDiT's latents",
        "mean": f"{float(mean.min()):.4g} .. {float(mean.max()):.4g}",
        "spread": f"{float(std.min()):.4g} .. {float(std.max()):.4g}",
    }
    problem = statistics_problem(mean, std, mean.numel())
    note = "it belongs into the folder of the shards that it was measured on: --data.path"
    return lines, [note], [] if problem is None else [f"it {problem}"]
