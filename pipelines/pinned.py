"""What an experiment refers to by a path is pinned by its content before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.keys import content_digest, file_digest

if TYPE_CHECKING:
    from experiments import DataConfig, Experiment
    from ig_core.sources import Listing

PINNED = {"extractor_weights": "weights_sha256", "reference": "reference_sha256"}
"""Files of an evaluation -> the field that holds what identifies them."""


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's images."""
    if path.is_file():
        return file_digest(path)
    images = (file for file in path.iterdir() if file.suffix.lower() in (".png", ".npz"))
    return content_digest({file.name: file_digest(file) for file in images})


def codec_digest(name: str, path: Path) -> str:
    """SHA-256 of a codec: of its file, or of the two files in its folder that are read.

    Raises:
        ValueError: it is not there, or not of that name as far as it says.
    """
    from ig_core.codecs import SD_CONFIG, SD_WEIGHTS, check_codec

    check_codec(name, path)
    if name == "va-vae":
        return file_digest(path)
    return content_digest({part: file_digest(path / part) for part in (SD_CONFIG, SD_WEIGHTS)})


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with the files that it refers to pinned by their content.

    Raises:
        ValueError: a file is not there, or is not the one that the experiment was run with.
    """
    evaluation = experiment.evaluation
    if experiment.data.source != "digits" and evaluation.reference is None:
        raise ValueError(f"evaluation.reference must be a file of statistics or images with "
                         f"data.source={experiment.data.source}, but got None")  # fmt: skip
    for field_, digest_field in PINNED.items():
        given = getattr(evaluation, field_)
        if given is None:
            continue
        path, known = Path(given).absolute(), getattr(evaluation, digest_field)
        if not path.is_file() and (field_ != "reference" or not path.is_dir()):
            raise ValueError(f"{field_} must be a file, but got {str(path)!r}")
        digest = path_digest(path)
        if known not in (None, digest):
            raise ValueError(f"{field_} must be the file with SHA-256 {known}, but {path} has "
                             f"{digest}")  # fmt: skip
        changes: Any = {field_: str(path), digest_field: digest}
        evaluation = dataclasses.replace(evaluation, **changes)
    return dataclasses.replace(experiment, evaluation=evaluation, data=pin_data(experiment.data))


def pin_data(data: DataConfig) -> DataConfig:
    """Data pinned by their content, after what is small of them was looked at.

    Raises:
        ValueError: they are not there, are of another kind or size than the experiment says, lack
            their normalisation, or are not those that it was run with; or so with the codec.
    """
    if data.source == "digits":
        return data
    if data.path is None:
        raise ValueError(f"data.path must say where the {data.source} lie, but got None")
    from ig_core.sources import identify, list_source

    path = Path(data.path).absolute()
    listing = list_source(path, data.num_classes)
    if listing.has_latents != (data.source == "latents"):
        raise ValueError(f"data.source must be {'latents' if listing.has_latents else 'images'} "
                         f"for {path}, which holds {listing.format}, but is "
                         f"{data.source!r}")  # fmt: skip
    if listing.has_latents:
        _check_latents(data, listing)
    pinned: dict[str, Any] = {"content": identify(listing), "count": len(listing)}
    if data.codec != "none":
        if data.codec_path is None:
            raise ValueError(f"data.codec_path must say where the {data.codec} lies, but got None")
        codec = Path(data.codec_path).absolute()
        pinned["codec_sha256"] = codec_digest(data.codec, codec)
        pinned["codec_path"] = str(codec)
    for name in ("content", "count", "codec_sha256"):
        known = getattr(data, name)
        if known is not None and known != pinned.get(name):
            raise ValueError(f"data.{name} must be {known!r} as when the experiment was run, but "
                             f"is {pinned.get(name)!r}")  # fmt: skip
    return dataclasses.replace(data, path=str(path), **pinned)


def _check_latents(data: DataConfig, listing: Listing) -> None:
    """Raise ValueError unless the first latent is what the experiment says, with all it needs."""
    from ig_core.source_rows import latent_depth, latent_rows, read_normalisation

    if listing.format == "npy" and data.codec != "sd-vae":
        raise ValueError(f"data.codec must be sd-vae for the .npy files of {listing.root}, but is "
                         f"{data.codec!r}")  # fmt: skip
    first = latent_rows(listing, 0, 1)
    expected = (latent_depth(listing.format, data.channels), data.side, data.side)
    if first.latent.shape[1:] != expected:
        raise ValueError(f"latents of {data.codec} must be {expected} (data.channels, data.side), "
                         f"but those of {listing.root} are {first.latent.shape[1:]}")  # fmt: skip
    if data.flip and first.mirror is None:
        raise ValueError(f"data.flip must be off: {listing.root} holds no mirrored latents")
    if data.codec == "va-vae":
        read_normalisation(listing.root, data.channels)
