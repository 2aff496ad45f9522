"""Data stage: images into shards, the feature extractor, the reference features."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ig_core.fidelity import DIGITS_CNN, make_extractor, read_weights, train_digits_net
from ig_core.images import ImageSet, read_images, write_images
from pipelines.keys import file_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.stages.build import Context

IMAGES = "images.parquet"
WEIGHTS = "weights.safetensors"
FEATURES = "features.safetensors"


def build_data(context: Context, directory: Path) -> None:
    """Write the training images (scikit-learn's digits: 0..16 scaled to 0..255)."""
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
    (directory / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")


def build_extractor(context: Context, directory: Path) -> None:
    """Keep the weights of the feature extractor: given by a file, or trained here on the data."""
    evaluation = context.experiment.evaluation
    if evaluation.extractor_weights is not None:
        path = Path(evaluation.extractor_weights)
        if file_digest(path) != context.node.config["weights_sha256"]:
            raise ValueError(f"extractor_weights {path} changed since the run began")
        save_file(read_weights(path), directory / WEIGHTS)
        return
    images = read_images([context.input("data") / IMAGES])
    net = train_digits_net(images.image, images.label,
                           evaluation.extractor_seed, evaluation.extractor_epochs)  # fmt: skip
    save_file(net.state_dict(), directory / WEIGHTS)
    accuracy = (net(images.image)[1].argmax(dim=1) == images.label).float().mean().item()
    report = {"name": DIGITS_CNN, "accuracy_on_its_training_data": accuracy}
    (directory / "report.json").write_text(json.dumps(report) + "\n")


def _extractor(
    context: Context,
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The extractor of an evaluation, with the weights of its artifact."""
    name = context.experiment.evaluation.extractor
    return _made_extractor(name, context.input("extractor") / WEIGHTS, context.device)


# The last one used: a worker extracts features of many shards.
_made_extractor = functools.lru_cache(maxsize=1)(make_extractor)


def write_features(context: Context, images: ImageSet, path: Path) -> None:
    """Features (N, F) and logits (N, K) of images, float32."""
    extract, size = _extractor(context), context.experiment.resources.sample_batch
    pieces = [extract(batch) for batch in images.image.split(size)]
    features, logits = (torch.cat(column) for column in zip(*pieces, strict=True))
    save_file({"features": features, "logits": logits}, path)


def build_reference(context: Context, directory: Path) -> None:
    """Features of the real images."""
    images = read_images([context.input("data") / IMAGES])
    write_features(context, images, directory / FEATURES)
