"""Sample stage: images by index, the same on any worker and in any batch."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ig_core.branching import sample_guidances
from ig_core.checkpoints.own import load_ema
from ig_core.config import Guidance, ModelConfig, SamplerConfig
from ig_core.data.label_pools import beyond_balanced, random_pool
from ig_core.images.sets import ImageSet, contact_sheet, read_images, to_uint8, write_images
from ig_core.noise import AddressedNoise
from ig_core.sampling import NonFiniteSampleError
from pipelines.common.errors import SamplingFailedError
from pipelines.stages.codec import decoder_of
from pipelines.store.file_names import IMAGES_FILE, PREVIEW_FILE, SAMPLE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ig_core.transformer import DiffusionTransformer
    from pipelines.stages.context import Context

_PREVIEW_ROWS = 8


@functools.lru_cache(maxsize=1)
def _model(checkpoint: Path, device: str, *, compiled: bool) -> DiffusionTransformer:
    """Load a model and keep the last one: a worker samples many shards of one checkpoint."""
    model = load_ema(checkpoint, device)
    if compiled:
        model.compile_blocks()
    return model


def shard_indices(config: dict[str, Any], num_classes: int) -> Tensor:
    """Return the pool indices of a shard, (B,): of the pool, or of what random labels add to it."""
    pool = torch.arange(config["stop"])
    if config["labels"] == "random":
        wanted = random_pool(config["seed"], config["num_samples"], num_classes)
        pool = torch.from_numpy(beyond_balanced(wanted))[: config["stop"]]
    return pool[config["start"] :]


def sample_images(
    model: DiffusionTransformer,
    index: Tensor,
    seed: int,
    guidances: Sequence[Guidance],
    sampler: SamplerConfig,
    to_pixels: Callable[[Tensor], Tensor] = to_uint8,
) -> list[ImageSet]:
    """Sample the images with the given pool indices (B,) under each guidance.

    A function of (seed, index), not of which guidances are sampled together (those share the steps
    on which they agree), nor of B except by the rounding of bf16 and fp16.
    """
    config: ModelConfig = model.config
    shape = (config.in_channels, config.input_size, config.input_size)
    start, walk = AddressedNoise(seed, "sample/start"), AddressedNoise(seed, "sample/walk")
    index = index.to(model.pos_embed.device)
    y = index % config.num_classes
    samples = sample_guidances(
        model,
        y,
        guidances,
        start.normal(index, shape),
        sampler,
        lambda step, x: walk.normal(index, tuple(x.shape[1:]), step).to(x.dtype),
        batched=False,
    )
    return [ImageSet(index.cpu(), y.cpu(), to_pixels(x).cpu()) for x in samples]


def build_images(contexts: Sequence[Context], directories: Sequence[Path]) -> None:
    """Sample one shard, the indices start..stop of a seed, under one or several guidances."""
    config, experiment = contexts[0].node.config, contexts[0].experiment
    compiled = experiment.resources.compile_blocks
    model = _model(contexts[0].input("checkpoint"), contexts[0].device, compiled=compiled)
    guidances = [Guidance(**context.node.config["guidance"]) for context in contexts]
    sampler = SamplerConfig(**config["sampler"])
    indices = shard_indices(config, model.config.num_classes)
    decode = decoder_of(contexts[0])
    decoded = {} if decode is None else {"to_pixels": decode}
    try:
        pieces = [
            sample_images(model, index, config["seed"], guidances, sampler, **decoded)
            for index in indices.split(experiment.resources.sample_batch)
        ]
    except NonFiniteSampleError as error:
        scales = ", ".join(f"{guidance.ig_scale:g}" for guidance in guidances)
        raise SamplingFailedError(
            f"sampling with ig_scale {scales} failed, and nothing was published: {error}"
        ) from error
    for directory, shard in zip(directories, zip(*pieces, strict=True), strict=True):
        write_images(directory / IMAGES_FILE, ImageSet.cat(list(shard)))


def build_sample(context: Context, directory: Path) -> None:
    """Bind shards to one set of samples, with a preview whose columns are classes if balanced."""
    from PIL import Image

    parts, classes = context.parts(), context.experiment.model.num_classes
    first = read_images([parts[0] / IMAGES_FILE]).image
    columns = min(classes, 16)
    zoom = max(1, 32 // first.shape[-1])
    sheet = contact_sheet(first[: columns * _PREVIEW_ROWS], columns, zoom)
    pixels = sheet[0] if len(sheet) == 1 else sheet.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(directory / PREVIEW_FILE)
    listing = {
        "shards": [str(n.ref) for n in context.node.inputs.values()],
        **context.node.config,
    }
    (directory / SAMPLE_FILE).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
