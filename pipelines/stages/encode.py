"""Encode stage: list a source, and encode its rows as shards of latents.

A shard is an artifact, made by one task on any worker, with a GPU or without. That is what makes
encoding resumable and lets runs share it; Ray Data, which streams through a dataset, would start
again. Latents in another format are converted into the same shards.
"""

from __future__ import annotations

import functools
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ig_core.data.latent_checks import statistics_only
from ig_core.data.normalisation import ChannelSums
from ig_core.data.shards import ShardWriter
from ig_core.data.sources.formats import detect
from ig_core.data.sources.listing import Listing, identify, read_listing
from ig_core.data.sources.rows import latent_rows, read_normalisation
from ig_core.data.sources.source import list_source
from ig_core.images.sets import ImageSet, write_images
from pipelines.common.remedies import explained_settings
from pipelines.graph.source_checks import check_rows
from pipelines.stages.codec import pinned_codec
from pipelines.stages.usable_images import (
    CODEC_BATCH,
    READ_AHEAD_IMAGES,
    ImageFaults,
    usable_images,
)
from pipelines.store.file_names import (
    IMAGES_FILE,
    LATENTS_FILE,
    LISTING_FILE,
    NORMALISATION_FILE,
    SHARD_FILE,
)
from pipelines.store.keys import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from experiments import DataConfig
    from ig_core.codecs.codec import Codec
    from pipelines.stages.context import Context

    Piece = tuple[list[int], list[int], Any, Any]
    Usable = tuple[int, int, Any]


PREVIEW_IMAGES = 16
"""Images of a shard that are stored as a preview."""


def build_listing(context: Context, directory: Path) -> None:
    """List the rows of the source; raise ValueError if it changed since the run began."""
    data = context.experiment.data
    path = Path(data.path or "")
    statistics = statistics_only(path) if data.codec == "va-vae" else None
    if statistics is not None:  # of latents that a published checkpoint was trained on elsewhere
        root, content = statistics.parent, file_digest(statistics)
    else:
        labels = None if data.classes is None else Path(data.classes)
        with explained_settings():
            listing = list_source(path, data.num_classes, labels)
        root, content = listing.root, identify(listing)
        listing.write(directory / LISTING_FILE)
    if content != context.node.config["content"]:
        raise ValueError(f"data.path {path} changed since the run began")
    if data.source == "latents" and data.codec == "va-vae":
        mean, std = read_normalisation(root, data.channels)
        about = {"mean": mean.tolist(), "std": std.tolist()}
        (directory / NORMALISATION_FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _listing(folder: Path, root: Path) -> Listing:
    """Read a listing and keep the last one: a worker makes many shards."""
    return read_listing(folder / LISTING_FILE, root)


def build_latents(context: Context, directory: Path) -> None:
    """Encode (or convert) the rows start..stop of the source."""
    data, config = context.experiment.data, context.node.config
    listing = _listing(context.input("listing"), detect(Path(data.path or "")).root)
    writer, sums = ShardWriter(directory), None
    faults = ImageFaults(data.max_broken)
    labels: list[int] = []
    if listing.has_latents:
        pieces = _convert_rows(listing, config["start"], config["stop"], data)
    else:
        pieces = _encode_images(context, listing, faults, directory)
    for index, label, latent, mirror in pieces:
        writer.add(index, label, latent, mirror)
        labels += label
        piece = ChannelSums.of(torch.from_numpy(latent), data.channels)
        sums = piece if sums is None else sums + piece
    about: dict[str, Any] = {
        "count": len(labels),
        "broken": faults.broken,
        "oriented": faults.oriented,
    }
    if sums is not None:
        writer.write(directory / LATENTS_FILE)
        per_class = torch.tensor(labels).bincount(minlength=data.num_classes)
        about |= {
            "numbers": sums.count,
            "total": sums.total.tolist(),
            "square": sums.square.tolist(),
            "per_class": per_class.tolist(),
        }
    (directory / SHARD_FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")


def _convert_rows(listing: Listing, start: int, stop: int, data: DataConfig) -> Iterator[Piece]:
    """Read latents of another format, a piece at a time."""
    for first in range(start, stop, READ_AHEAD_IMAGES):
        last = min(first + READ_AHEAD_IMAGES, stop)
        rows = latent_rows(listing, first, last)
        check_rows(data, listing, rows, first)
        mirror = rows.mirror if data.flip else None
        yield list(range(first, last)), rows.label.tolist(), rows.latent, mirror


def _encode_images(
    context: Context,
    listing: Listing,
    faults: ImageFaults,
    directory: Path,
) -> Iterator[Piece]:
    """Encode images, a batch at a time."""
    data, config = context.experiment.data, context.node.config
    codec = None if data.codec == "none" else pinned_codec(context)
    usable = usable_images(listing, config["start"], config["stop"], data.resolution, faults)
    while kept := list(islice(usable, CODEC_BATCH)):
        if not (directory / IMAGES_FILE).exists():
            _write_preview(kept, directory)
        yield _encode_batch(kept, codec, context.device, flip=data.flip)


def _write_preview(kept: list[Usable], directory: Path) -> None:
    """Write the first images of a shard."""
    index, label, pixels = zip(*kept[:PREVIEW_IMAGES], strict=True)
    images = ImageSet(torch.tensor(index), torch.tensor(label), torch.stack(pixels))
    write_images(directory / IMAGES_FILE, images)


def _encode_batch(kept: list[Usable], codec: Codec | None, device: str, *, flip: bool) -> Piece:
    index, label, pixels = zip(*kept, strict=True)
    images = torch.stack(pixels)
    if codec is None:  # pixels are mirrored when they are read
        return list(index), list(label), images.numpy(), None
    stack = images.to(device)
    latent = codec.encode(stack).cpu().numpy()
    mirror = codec.encode(stack.flip(-1)).cpu().numpy() if flip else None
    return list(index), list(label), latent, mirror
