"""Data stage: the digits, the feature extractor, and the features of images."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ig_core.files.tensors import read_weights
from ig_core.images.sets import ImageSet, read_images, write_images
from ig_core.metrics.digits_net import train_digits_net
from ig_core.metrics.extractors import DIGITS_CNN, INCEPTION, ImageFeatures, make_image_extractor
from pipelines.graph.resolve import path_digest
from pipelines.stages.context import IMAGES, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipelines.stages.context import Context


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
    net = train_digits_net(
        images.image, images.label, evaluation.extractor_seed, evaluation.extractor_epochs
    )
    save_file(net.state_dict(), directory / WEIGHTS)
    accuracy = (net(images.image)[1].argmax(dim=1) == images.label).float().mean().item()
    report = {"name": DIGITS_CNN, "accuracy_on_its_training_data": accuracy}
    (directory / "report.json").write_text(json.dumps(report) + "\n", encoding="utf-8")


def _extractor(context: Context) -> Callable[[torch.Tensor], ImageFeatures]:
    """The extractor of an evaluation, with the weights of its artifact."""
    name = context.experiment.evaluation.extractor
    return _made_extractor(
        name, context.input("extractor") / WEIGHTS, context.device, spatial=name == INCEPTION
    )


# The last one used: a worker extracts features of many shards.
_made_extractor = functools.lru_cache(maxsize=1)(make_image_extractor)


def extracted(context: Context, batches: Iterable[torch.Tensor]) -> Iterator[ImageFeatures]:
    """Features of images, a batch at a time."""
    return map(_extractor(context), batches)


def write_features(context: Context, batches: Iterable[torch.Tensor], path: Path) -> None:
    """Features (N, F), logits (N, K) and, of Inception, spatial features (N, 2023) of images."""
    pieces = list(extracted(context, batches))
    columns = zip(ImageFeatures._fields, zip(*pieces, strict=True), strict=True)
    save_file({name: torch.cat(column) for name, column in columns if column[0] is not None}, path)


def pinned_file(context: Context, field: str, digest: str) -> Path:
    """A file that the evaluation names; what is read must be what was pinned."""
    path = Path(getattr(context.experiment.evaluation, field))
    if path_digest(path) != context.node.config[digest]:
        raise ValueError(f"{field} {path} changed since the run began")
    return path
