"""Data stage: the features of the real images that samples are compared with."""

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
from pipelines.stages.features import extracted, pinned_file
from pipelines.stages.usable_images import Judged, usable_images
from pipelines.store.file_names import FEATURES_FILE, IMAGES_FILE, MOMENTS_FILE, STATISTICS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from ig_core.images.crop import Mode
    from pipelines.stages.context import Context

ROWS = 4096
"""Images whose moments are taken, and rows of a source that are looked up, at once."""
KEPT = 50_000
"""Images whose features are kept, for precision, recall and KID: of more, at even distances."""


class Measured(NamedTuple):
    """What images gave."""

    moments: dict[str, Moments]
    """Of their features, by name."""
    num_images: int
    """How many they are."""


def build_reference(context: Context, directory: Path) -> None:
    """Moments of the real images' features, and the features of those that are at hand.

    Of a reference file the moments are taken as they stand, of however many images they are.
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
    """Measure images of a source, cropped; what is wrong with some of them is kept."""
    experiment, config = context.experiment, context.node.config
    source = ImagesOf.reference(experiment)
    listing = source.list()
    if identify_images(listing) != config["images"]:
        raise ValueError(f"the reference {source.path} changed since the run began")
    judged = Judged(experiment.data.max_broken)
    mode: Mode = "L" if experiment.evaluation.extractor == DIGITS_CNN else "RGB"
    # A part at a time: the rows of all would take much memory.
    usable = (
        image
        for start in range(0, len(listing), ROWS)
        for *_, image in usable_images(
            listing, start, min(start + ROWS, len(listing)), config["resolution"], judged, mode
        )
    )
    batches = map(torch.stack, _batched(usable, experiment.resources.sample_batch))
    found = _measure(context, batches, len(listing), directory)
    about = {"count": found.num_images, "broken": judged.broken, "oriented": judged.oriented}
    (directory / STATISTICS_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return found.moments


def _batched(images: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while batch := list(islice(images, size)):
        yield batch


def _measure(context: Context, batches: Iterable[Tensor], total: int, directory: Path) -> Measured:
    """Take moments of all images, and write the features of some, in memory that has a bound.

    Args:
        context: Whose extractor it is.
        batches: The images.
        total: How many they are at most.
        directory: Where the features go.

    Raises:
        ValueError: If there are fewer than two.
    """
    stats: dict[str, FeatureStats] = {}
    kept, count = [], 0
    for block in _blocks(extracted(context, batches)):
        for name, rows in block.items():
            found = FeatureStats.from_features(rows)
            stats[name] = stats[name] + found if name in stats else found
        features = block["features"]
        kept.append(features[_chosen(count, count + len(features), total)])
        count += len(features)
    if count < 2:
        raise ValueError(
            f"a reference must have at least 2 images that can be used, but {count} "
            f"of {total} can be"
        )
    save_file({"features": torch.cat(kept)}, directory / FEATURES_FILE)
    moments = {name: Moments(found.mean, found.covariance) for name, found in stats.items()}
    return Measured(moments, count)


def _chosen(start: int, stop: int, total: int) -> Tensor:
    """Places in start..stop, less `start`, of those that are kept: KEPT of `total`, evenly."""
    if total <= KEPT:
        return torch.arange(stop - start)
    steps = torch.arange(start, stop + 1) * KEPT // total
    return torch.nonzero(steps[1:] != steps[:-1])[:, 0]


def _blocks(pieces: Iterable[ImageFeatures]) -> Iterator[dict[str, Tensor]]:
    """Features for FID and sFID of ROWS images at a time, however many a batch holds."""
    waiting: list[ImageFeatures] = []
    for piece in pieces:
        waiting.append(piece)
        while (held := sum(len(each.features) for each in waiting)) >= ROWS:
            whole = _joined(waiting)
            yield {name: rows[:ROWS] for name, rows in whole.items()}
            waiting = []
            if held > ROWS:
                rest = {name: rows[ROWS:] for name, rows in whole.items()}
                waiting = [ImageFeatures(rest["features"], torch.empty(0), rest.get("spatial"))]
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[ImageFeatures]) -> dict[str, Tensor]:
    found = {"features": torch.cat([piece.features for piece in pieces])}
    spatial = [piece.spatial for piece in pieces if piece.spatial is not None]
    return found | ({"spatial": torch.cat(spatial)} if spatial else {})
