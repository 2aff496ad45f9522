"""Data stage: images into shards, the feature extractor, the reference features."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from ig_core.fidelity import (
    DIGITS_CNN,
    FEATURE_LAYERS,
    INCEPTION,
    ImageFeatures,
    make_image_extractor,
    read_weights,
    train_digits_net,
)
from ig_core.image_files import read_image_batches
from ig_core.images import ImageSet, read_images, write_images
from ig_core.metrics import FeatureStats
from ig_core.npz import has_arrays
from ig_core.reference import Moments, read_reference
from pipelines.pinned import path_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipelines.stages.build import Context

IMAGES = "images.parquet"
WEIGHTS = "weights.safetensors"
FEATURES = "features.safetensors"
MOMENTS = "moments.safetensors"


def build_data(context: Context, directory: Path) -> None:
    """Write the training images (scikit-learn's digits: 0..16 scaled to 0..255), or bind shards."""
    if context.experiment.data.source != "digits":
        from pipelines.stages.latents import bind_latents

        bind_latents(context, directory)
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images) * (255 / 16)
    labels = torch.from_numpy(digits.target).long()
    images = ImageSet(torch.arange(len(labels)), labels, pixels.round().to(torch.uint8)[:, None])
    write_images(directory / IMAGES, images)
    statistics = {
        "source": context.experiment.data.source,
        "count": len(labels),
        "per_class": torch.bincount(labels).tolist(),
        "pixel_mean": pixels.mean().item(),
        "pixel_std": pixels.std().item(),
    }
    (directory / "statistics.json").write_text(
        json.dumps(statistics, indent=1) + "\n", encoding="utf-8"
    )


def build_extractor(context: Context, directory: Path) -> None:
    """Keep the weights of the feature extractor: given by a file, or trained here on the data."""
    evaluation = context.experiment.evaluation
    if evaluation.extractor_weights is not None:
        path = pinned_file(context, "extractor_weights", "weights_sha256")
        save_file(read_weights(path), directory / WEIGHTS)
        return
    images = read_images([context.input("data") / IMAGES])
    net = train_digits_net(images.image, images.label,
                           evaluation.extractor_seed, evaluation.extractor_epochs)  # fmt: skip
    save_file(net.state_dict(), directory / WEIGHTS)
    accuracy = (net(images.image)[1].argmax(dim=1) == images.label).float().mean().item()
    report = {"name": DIGITS_CNN, "accuracy_on_its_training_data": accuracy}
    (directory / "report.json").write_text(json.dumps(report) + "\n", encoding="utf-8")


def _extractor(context: Context) -> Callable[[torch.Tensor], ImageFeatures]:
    """The extractor of an evaluation, with the weights of its artifact."""
    name = context.experiment.evaluation.extractor
    return _made_extractor(name, context.input("extractor") / WEIGHTS, context.device,
                           spatial=name == INCEPTION)  # fmt: skip


# The last one used: a worker extracts features of many shards.
_made_extractor = functools.lru_cache(maxsize=1)(make_image_extractor)


def write_features(context: Context, batches: Iterable[torch.Tensor], path: Path) -> None:
    """Features (N, F), logits (N, K) and, of Inception, spatial features (N, 2023) of images."""
    extract = _extractor(context)
    pieces = [extract(batch) for batch in batches]
    columns = zip(ImageFeatures._fields, zip(*pieces, strict=True), strict=True)
    save_file({name: torch.cat(column) for name, column in columns if column[0] is not None}, path)


def build_reference(context: Context, directory: Path) -> None:
    """Moments of the real images' features, and the features of those that are at hand.

    Of a reference file the moments are taken as they stand, of however many images they are.
    """
    size, features = context.experiment.resources.sample_batch, directory / FEATURES
    if "data" in context.node.inputs:
        images = read_images([context.input("data") / IMAGES])
        write_features(context, images.image.split(size), features)
        moments = moments_in(features)
    else:
        path = pinned_file(context, "reference", "sha256")
        width = int(FEATURE_LAYERS[context.experiment.evaluation.extractor][0])
        has_moments = path.is_file() and has_arrays(path, {"mu", "sigma"})
        reference = read_reference(path, width) if has_moments else None
        if reference is None or reference.has_images:
            write_features(context, read_image_batches(path, size), features)
        if reference is None:
            moments = moments_in(features)
        else:
            moments = {"features": reference.pooled}
            if reference.spatial is not None:
                moments["spatial"] = reference.spatial
    save_file({f"{name}.{part}": getattr(value, part).contiguous()
               for name, value in moments.items() for part in Moments._fields},
              directory / MOMENTS)  # fmt: skip


def moments_in(path: Path) -> dict[str, Moments]:
    """Mean and unbiased covariance of the features in a file, by their name."""
    found = load_file(path)
    stats = {name: FeatureStats.from_features(found[name])
             for name in ("features", "spatial") if name in found}  # fmt: skip
    return {name: Moments(value.mean, value.covariance) for name, value in stats.items()}


def pinned_file(context: Context, field: str, digest: str) -> Path:
    """A file that the evaluation names; what is read must be what was pinned."""
    path = Path(getattr(context.experiment.evaluation, field))
    if path_digest(path) != context.node.config[digest]:
        raise ValueError(f"{field} {path} changed since the run began")
    return path
