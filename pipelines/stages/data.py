"""Data stage: the training data, and the weights of the feature extractor."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from ig_core.codecs.files import SD_SCALE
from ig_core.data.normalisation import ChannelSums, Normalisation
from ig_core.files.tensors import read_weights
from ig_core.images.sets import ImageSet, read_images, write_images
from ig_core.metrics.digits_net import train_digits_net
from ig_core.metrics.extractors import DIGITS_CNN
from pipelines.graph.source_checks import check_values
from pipelines.stages.codec import channel_normalisation, stored_moments
from pipelines.stages.features import pinned_file
from pipelines.stages.usable_images import check_broken
from pipelines.store.file_names import (
    EXTRACTOR_FILE,
    IMAGES_FILE,
    SHARD_FILE,
    STATISTICS_FILE,
    WEIGHTS_FILE,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from experiments import DataConfig
    from pipelines.stages.context import Context


def build_data(context: Context, directory: Path) -> None:
    """Publish the training data: scikit-learn's digits (0..16 scaled to 0..255), or shards."""
    if context.experiment.data.source != "digits":
        bind_latents(context, directory)
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images) * (255 / 16)
    labels = torch.from_numpy(digits.target).long()
    images = ImageSet(torch.arange(len(labels)), labels, pixels.round().to(torch.uint8)[:, None])
    write_images(directory / IMAGES_FILE, images)
    statistics = {
        "source": context.experiment.data.source,
        "count": len(labels),
        "per_class": torch.bincount(labels).tolist(),
        "pixel_mean": pixels.mean().item(),
        "pixel_std": pixels.std().item(),
    }
    (directory / STATISTICS_FILE).write_text(
        json.dumps(statistics, indent=1) + "\n", encoding="utf-8"
    )


def build_extractor(context: Context, directory: Path) -> None:
    """Publish the weights of the feature extractor: those of a file, or trained on the data."""
    evaluation = context.experiment.evaluation
    if evaluation.extractor_weights is not None:
        path = pinned_file(context, "extractor_weights", "weights_sha256")
        save_file(read_weights(path), directory / WEIGHTS_FILE)
        return
    images = read_images([context.input("data") / IMAGES_FILE])
    net = train_digits_net(
        images.image, images.label, evaluation.extractor_seed, evaluation.extractor_epochs
    )
    save_file(net.state_dict(), directory / WEIGHTS_FILE)
    accuracy = (net(images.image)[1].argmax(dim=1) == images.label).float().mean().item()
    report = {"name": DIGITS_CNN, "accuracy_on_its_training_data": accuracy}
    (directory / EXTRACTOR_FILE).write_text(json.dumps(report) + "\n", encoding="utf-8")


def bind_latents(context: Context, directory: Path) -> None:
    """Bind shards of latents to training data, with their statistics and normalisation."""
    data, nodes = context.experiment.data, context.node.inputs
    folders = {name: context.input(name) for name in nodes if name.startswith("part-")}
    shards = {
        name: json.loads((path / SHARD_FILE).read_text(encoding="utf-8"))
        for name, path in folders.items()
    }
    broken = [each for shard in shards.values() for each in shard["broken"]]
    check_broken(broken, data.max_broken)
    filled = {name: shard for name, shard in shards.items() if shard["count"]}
    if not filled:
        raise ValueError(f"data.path {data.path} has no image that can be used")
    sums = functools.reduce(
        ChannelSums.__add__,
        (
            ChannelSums(
                shard["numbers"],
                *(torch.tensor(shard[name], dtype=torch.float64) for name in ("total", "square")),
            )
            for shard in filled.values()
        ),
    )
    stored = stored_moments(context) if (data.source, data.codec) == ("latents", "va-vae") else None
    if data.source == "latents":
        rows = sum(shard["count"] for shard in filled.values())
        check_values(data, sums, stored, rows=rows)
    normalisation = _normalisation(data, sums, stored)
    statistics = {
        "source": data.source,
        "count": sum(shard["count"] for shard in filled.values()),
        "per_class": [
            sum(counts) for counts in zip(*(s["per_class"] for s in filled.values()), strict=True)
        ],
        "codec": data.codec,
        # Of the encoder alone; the encoder of latents that came ready-made is not known.
        "encoder_sha256": data.encoder_sha256 if data.source == "images" else None,
        "mean": sums.mean.tolist(),
        "std": sums.std.tolist(),
        "shift": list(normalisation.shift),
        "factor": list(normalisation.factor),
        "broken": broken,
        "oriented": sum(shard.get("oriented", 0) for shard in filled.values()),
        "shards": [str(nodes[name].ref) for name in filled],
    }
    (directory / STATISTICS_FILE).write_text(
        json.dumps(statistics, indent=1) + "\n", encoding="utf-8"
    )
    previews = [
        folder / IMAGES_FILE for folder in folders.values() if (folder / IMAGES_FILE).exists()
    ]
    if previews:
        images = read_images(previews)
        chosen = torch.linspace(0, len(images.label) - 1, min(len(images.label), 144)).long()
        write_images(
            directory / IMAGES_FILE,
            ImageSet(images.index[chosen], images.label[chosen], images.image[chosen]),
        )


def _normalisation(
    data: DataConfig, sums: ChannelSums, stored: tuple[Tensor, Tensor] | None
) -> Normalisation:
    """Choose the normalisation of latents.

    That of the sd-vae is the factor of its authors; that of the va-vae comes from the statistics
    that lie beside the latents, else from the measured ones.
    """
    if data.codec == "none":
        return Normalisation.uniform(data.channels, 1.0)
    if data.codec == "sd-vae":
        return Normalisation.uniform(data.channels, SD_SCALE)
    return channel_normalisation(*(stored or (sums.mean, sums.std)))
