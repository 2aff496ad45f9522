"""Reference stage: features of the real images that samples are compared with."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file

from ig_core.data.sources.source import identify_images
from ig_core.files.npz import has_arrays
from ig_core.images.folders import count_images, read_image_batches
from ig_core.images.sets import read_images
from ig_core.metrics.extractors import DIGITS_CNN, FEATURE_LAYERS, ImageFeatures
from ig_core.metrics.frechet import FeatureStats
from ig_core.metrics.reference import Moments, read_reference
from pipelines.graph.source_checks import ImagesOf
from pipelines.stages.features import extract_features, pinned_file
from pipelines.stages.usable_images import ImageFaults, usable_images
from pipelines.store.file_names import FEATURES_FILE, IMAGES_FILE, MOMENTS_FILE, STATISTICS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from ig_core.images.crop import Mode
    from pipelines.stages.context import Context

ROWS_AT_ONCE = 4096
"""Images whose moments are computed, and rows of a source that are read, at once."""
MAX_STORED_FEATURES = 50_000
"""Images whose features are stored for precision, recall and KID; of more images every k-th."""


class Measured(NamedTuple):
    """Moments of image features."""

    moments: dict[str, Moments]
    """Kind of features -> their moments."""
    num_images: int
    """Number of images."""


def build_reference(context: Context, directory: Path) -> None:
    """Publish moments of the real images' features, and features of images that are at hand.

    Moments in a reference file are taken as they are, whatever the number of their images.
    """
    size = context.experiment.resources.sample_batch
    if "data" in context.node.inputs:
        images = read_images([context.input("data") / IMAGES_FILE]).image
        moments = _measure(context, images.split(size), len(images), directory).moments
    elif "images" in context.node.config:
        moments = _measure_source(context, directory)
    else:
        path = pinned_file(context, "reference", "sha256")
        width = int(FEATURE_LAYERS[context.experiment.evaluation.extractor][0])
        has_moments = path.is_file() and has_arrays(path, {"mu", "sigma"})
        reference = read_reference(path, width) if has_moments else None
        if reference is None or reference.has_images:
            batches = read_image_batches(path, size)
            moments = _measure(context, batches, count_images(path), directory).moments
        if reference is not None:
            moments = {"features": reference.pooled}
            if reference.spatial is not None:
                moments["spatial"] = reference.spatial
    save_file(
        {
            f"{name}.{part}": getattr(value, part).contiguous()
            for name, value in moments.items()
            for part in Moments._fields
        },
        directory / MOMENTS_FILE,
    )


def _measure_source(context: Context, directory: Path) -> dict[str, Moments]:
    """Measure the images of a source, cropped, and write down the faulty ones."""
    experiment, config = context.experiment, context.node.config
    source = ImagesOf.reference(experiment)
    listing = source.list()
    if identify_images(listing) != config["images"]:
        raise ValueError(f"the reference {source.path} changed since the run began")
    faults = ImageFaults(experiment.data.max_broken)
    mode: Mode = "L" if experiment.evaluation.extractor == DIGITS_CNN else "RGB"
    # A part at a time: all rows at once would take much memory.
    usable = (
        image
        for start in range(0, len(listing), ROWS_AT_ONCE)
        for *_, image in usable_images(
            listing,
            start,
            min(start + ROWS_AT_ONCE, len(listing)),
            config["resolution"],
            faults,
            mode,
        )
    )
    batches = map(torch.stack, _batched(usable, experiment.resources.sample_batch))
    measured = _measure(context, batches, len(listing), directory)
    about = {"count": measured.num_images, "broken": faults.broken, "oriented": faults.oriented}
    (directory / STATISTICS_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return measured.moments


def _batched(images: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while batch := list(islice(images, size)):
        yield batch


def _measure(context: Context, batches: Iterable[Tensor], total: int, directory: Path) -> Measured:
    """Compute moments of all images and write the features of some, in bounded memory.

    Args:
        context: Context with the extractor.
        batches: The images.
        total: Largest number of images.
        directory: Folder for the features.

    Raises:
        ValueError: If there are fewer than two.
    """
    stats: dict[str, FeatureStats] = {}
    kept, count = [], 0
    for block in _blocks(extract_features(context, batches)):
        for name, rows in block.items():
            block_stats = FeatureStats.from_features(rows)
            stats[name] = stats[name] + block_stats if name in stats else block_stats
        features = block["features"]
        kept.append(features[_choose_rows(count, count + len(features), total)])
        count += len(features)
    if count < 2:
        raise ValueError(
            f"a reference must have at least 2 usable images, but {count} of {total} are usable"
        )
    save_file({"features": torch.cat(kept)}, directory / FEATURES_FILE)
    moments = {name: Moments(each.mean, each.covariance) for name, each in stats.items()}
    return Measured(moments, count)


def _choose_rows(start: int, stop: int, total: int) -> Tensor:
    """Choose the rows of start..stop, counted from `start`, whose features are stored."""
    if total <= MAX_STORED_FEATURES:
        return torch.arange(stop - start)
    steps = torch.arange(start, stop + 1) * MAX_STORED_FEATURES // total
    return torch.nonzero(steps[1:] != steps[:-1])[:, 0]


def _blocks(pieces: Iterable[ImageFeatures]) -> Iterator[dict[str, Tensor]]:
    """Regroup features for FID and sFID into blocks of ROWS_AT_ONCE images."""
    waiting: list[ImageFeatures] = []
    for piece in pieces:
        waiting.append(piece)
        while (held := sum(len(each.features) for each in waiting)) >= ROWS_AT_ONCE:
            whole = _join(waiting)
            yield {name: rows[:ROWS_AT_ONCE] for name, rows in whole.items()}
            waiting = []
            if held > ROWS_AT_ONCE:
                rest = {name: rows[ROWS_AT_ONCE:] for name, rows in whole.items()}
                waiting = [ImageFeatures(rest["features"], torch.empty(0), rest.get("spatial"))]
    if waiting:
        yield _join(waiting)


def _join(pieces: list[ImageFeatures]) -> dict[str, Tensor]:
    features = {"features": torch.cat([piece.features for piece in pieces])}
    spatial = [piece.spatial for piece in pieces if piece.spatial is not None]
    return features | ({"spatial": torch.cat(spatial)} if spatial else {})
