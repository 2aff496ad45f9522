"""Codecs and latents of an experiment: training data, normalisation, decoding of samples."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ig_core.codecs.codec import Codec, load_codec
from ig_core.codecs.files import SD_SCALE
from ig_core.data.latents import LatentDataset
from ig_core.data.normalisation import Normalisation
from ig_core.images.sets import ImageDataset, read_images
from pipelines.common.remedies import explained_settings
from pipelines.graph.digests import codec_digest
from pipelines.stages.usable_images import CODEC_BATCH
from pipelines.store.file_names import (
    IMAGES_FILE,
    LATENTS_FILE,
    NORMALISATION_FILE,
    STATISTICS_FILE,
)
from pipelines.store.keys import Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipelines.graph.graph import Graph
    from pipelines.stages.context import Context
    from pipelines.store.base import Store


def pinned_codec(context: Context) -> Codec:
    """Load the codec of the experiment; raise ValueError if it is not the pinned one."""
    data = context.experiment.data
    path = Path(data.codec_path or "")
    if codec_digest(data.codec, path) != data.codec_sha256:
        raise ValueError(f"data.codec_path {path} changed since the run began")
    return _cached_codec(data.codec, path, data.codec_sha256, context.device)


@functools.lru_cache(maxsize=1)
def _cached_codec(name: str, path: Path, digest: str, device: str) -> Codec:  # noqa: ARG001
    """Load a codec and keep the last one; another digest means that the file changed."""
    return load_codec(name, path, device)


def stored_moments(context: Context) -> tuple[Tensor, Tensor]:
    """Read mean and standard deviation (C,) that lie beside latents of the va-vae."""
    stored = json.loads((context.input("listing") / NORMALISATION_FILE).read_text(encoding="utf-8"))
    mean, std = (torch.tensor(stored[name]) for name in ("mean", "std"))
    return mean, std


def channel_normalisation(mean: Tensor, std: Tensor) -> Normalisation:
    """Make the normalisation to mean 0 and deviation 1 from moments of each channel (C,)."""
    if not bool((std > 0).all()):
        raise ValueError(
            f"latents must vary in every channel, but their deviations are {std.tolist()}"
        )
    return Normalisation(tuple(mean.tolist()), tuple((1 / std).tolist()))


def read_statistics(folder: Path) -> tuple[dict[str, Any], Normalisation]:
    """Read the statistics of bound shards, and the normalisation of their latents."""
    statistics = json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))
    if "shift" not in statistics or "factor" not in statistics:
        raise ValueError(f"{folder / STATISTICS_FILE} lacks the normalisation of its latents")
    shift, factor = (tuple(statistics[name]) for name in ("shift", "factor"))
    return statistics, Normalisation(shift, factor)


def open_dataset(store: Store, graph: Graph) -> ImageDataset | LatentDataset:
    """Open the training data of an experiment."""
    artifact = store.open(graph.data.ref)
    data = graph.experiment.data
    if data.source == "digits":
        return ImageDataset(read_images([artifact.path / IMAGES_FILE]))
    statistics, normalisation = read_statistics(artifact.path)
    paths = [store.open(Ref.parse(name)).path / LATENTS_FILE for name in statistics["shards"]]
    with explained_settings():
        return LatentDataset(paths, normalisation, flip=data.flip)


def _normalisation_of(context: Context, decoder: dict[str, Any]) -> Normalisation:
    """Return the normalisation of the latents that the model was trained on.

    A published checkpoint comes without its data: the factor of SD-VAE is its authors', the
    statistics of VA-VAE are those that lie beside the latents.
    """
    if "data" not in context.node.inputs:
        if decoder["codec"] == "sd-vae":
            return Normalisation.uniform(context.experiment.data.channels, SD_SCALE)
        return channel_normalisation(*stored_moments(context))
    statistics, normalisation = read_statistics(context.input("data"))
    trained_on, encoder = statistics.get("encoder_sha256"), context.experiment.data.encoder_sha256
    if statistics["codec"] != decoder["codec"] or trained_on not in (None, encoder):
        raise ValueError(
            f"the decoder must belong to the encoder {statistics['codec']} {trained_on}, "
            f"which made the latents, but that of {decoder['codec']} "
            f"{decoder['sha256']} is {encoder}"
        )
    return normalisation


def decoder_of(context: Context) -> Callable[[Tensor], Tensor] | None:
    """Return the function that decodes samples to uint8 (B, 3, R, R); None if they are pixels.

    Raises:
        ValueError: If the decoder is not that of the latents that the model was trained on.
    """
    decoder = context.node.config.get("decoder")
    if decoder is None:
        return None
    normalisation = _normalisation_of(context, decoder)
    codec = pinned_codec(context)

    def decode(z: Tensor) -> Tensor:
        latents = normalisation.invert(z)
        return torch.cat([codec.decode(part) for part in latents.split(CODEC_BATCH)])

    return decode
