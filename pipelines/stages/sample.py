"""Sample stage: images by index, the same whoever makes them."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ig_core.checkpoints import load_ema
from ig_core.config import Guidance, ModelConfig, SamplerConfig
from ig_core.guidance import guided_velocity
from ig_core.images import ImageSet, contact_sheet, read_images, to_uint8, write_images
from ig_core.noise import AddressedNoise
from ig_core.sampling import sample
from pipelines.stages.data import IMAGES

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.transformer import DiffusionTransformer
    from pipelines.stages.build import Context

PREVIEW = "preview.png"
_PREVIEW_ROWS = 8


@functools.lru_cache(maxsize=1)
def _model(checkpoint: Path, device: str, *, compiled: bool) -> DiffusionTransformer:
    """The last model used: a worker samples many shards of one checkpoint."""
    model = load_ema(checkpoint, device)
    if compiled:
        model.compile_blocks()
    return model


def sample_labels(index: Tensor, seed: int, mode: str, num_classes: int) -> Tensor:
    """Label of each sample index (B,): cyclic ("balanced") or drawn from the seed ("random")."""
    if mode == "balanced":
        return index % num_classes
    draw = AddressedNoise(seed, "sample/label").uniform(index)
    return (draw * num_classes).long().clamp_max(num_classes - 1)


def sample_images(
    model: DiffusionTransformer,
    index: Tensor,
    seed: int,
    labels: str,
    guidance: Guidance,
    sampler: SamplerConfig,
) -> ImageSet:
    """Sample the images with the given indices (B,): a function of (seed, index), not of B."""
    config: ModelConfig = model.config
    shape = (config.in_channels, config.input_size, config.input_size)
    start, walk = AddressedNoise(seed, "sample/start"), AddressedNoise(seed, "sample/walk")
    index = index.to(model.pos_embed.device)
    y = sample_labels(index, seed, labels, config.num_classes)
    x = sample(
        guided_velocity(model, y, guidance),
        start.normal(index, shape),
        sampler,
        lambda step, x: walk.normal(index, tuple(x.shape[1:]), step).to(x.dtype),
    )
    return ImageSet(index.cpu(), y.cpu(), to_uint8(x).cpu())


def build_images(context: Context, directory: Path) -> None:
    """Sample one shard: the indices start..stop of a seed."""
    config, experiment = context.node.config, context.experiment
    compiled = experiment.resources.compile_blocks
    model = _model(context.input("checkpoint"), context.device, compiled=compiled)
    guidance = Guidance(**config["guidance"])
    sampler = SamplerConfig(**config["sampler"])
    pieces = [
        sample_images(model, index, config["seed"], config["labels"], guidance, sampler)
        for index in torch.arange(config["start"], config["stop"]).split(
            experiment.resources.sample_batch
        )
    ]
    write_images(directory / IMAGES, ImageSet.cat(pieces))


def build_sample(context: Context, directory: Path) -> None:
    """Bind shards to one set of samples, with a preview: columns are classes if balanced."""
    from PIL import Image

    parts, classes = context.parts(), context.experiment.model.num_classes
    first = read_images([parts[0] / IMAGES]).image
    columns = min(classes, 16)
    sheet = contact_sheet(first[: columns * _PREVIEW_ROWS], columns, zoom=4)
    pixels = sheet[0] if len(sheet) == 1 else sheet.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(directory / PREVIEW)
    listing = {"shards": [f"{n.kind}/{n.key}" for n in context.node.inputs.values()],
               **context.node.config}  # fmt: skip
    (directory / "sample.json").write_text(json.dumps(listing, indent=1) + "\n")
