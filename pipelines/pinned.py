"""What an experiment refers to by a path is pinned by its content before any work."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.graph import INCEPTION
from pipelines.keys import content_digest, file_digest

if TYPE_CHECKING:
    from experiments import DataConfig, Experiment
    from ig_core.config import ModelConfig, TrainConfig
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
        ValueError: it is not there.
    """
    from ig_core.codec_files import codec_parts

    parts = codec_parts(name, path)
    if name == "va-vae":
        return _known_digest(path)
    return content_digest({part.name: _known_digest(part) for part in parts})


@functools.lru_cache(maxsize=16)
def _encoder_digest(name: str, path: Path, digest: str) -> str:  # noqa: ARG001
    """SHA-256 of a codec's encoder, read once a process; the digest says what lies there.

    Raises:
        ValueError: the codec does not fit its architecture.
    """
    from ig_core.codec_files import open_codec

    return open_codec(name, path).encoder_digest


def unnamed_files(experiment: Experiment) -> dict[str, str]:
    """Files that a run needs and the experiment does not name: field -> what belongs there."""
    evaluation, data = experiment.evaluation, experiment.data
    wanted = {}
    # A published checkpoint on SD-VAE's latents needs none of them: their factor is known.
    known = experiment.train.imported and data.source == "latents" and data.codec == "sd-vae"
    if data.source != "digits" and data.path is None and not known:
        wanted["data.path"] = f"{data.source} to learn"
    if data.codec != "none" and data.codec_path is None:
        wanted["data.codec_path"] = f"weights of {data.codec}, which decodes samples"
    if evaluation.extractor == INCEPTION and evaluation.extractor_weights is None:
        wanted["evaluation.extractor_weights"] = (
            "Inception-v3 of 2015 (weights-inception-2015-12-05-6726825d.pth)"
        )
    if data.source != "digits" and evaluation.reference is None:
        wanted["evaluation.reference"] = "reference statistics (VIRTUAL_imagenet256_labeled.npz)"
    return wanted


def option(field: str) -> str:
    """The option of the command line that names a field."""
    return f"--{field.replace('_', '-')}"


def resolve(experiment: Experiment, *, partly: bool = False) -> Experiment:
    """The experiment with the files that it refers to pinned by their content.

    Args:
        experiment: What is to be run or planned.
        partly: Let files be that are not named yet: enough for a plan.

    Raises:
        ValueError: a file is not named (one message for all of them), is not there, or is not the
            one that the experiment was run with.
    """
    unnamed = {} if partly else unnamed_files(experiment)
    if unnamed:
        named = "; ".join(f"{option(field)} PATH: {what}" for field, what in unnamed.items())
        raise ValueError(f"{experiment.name} needs files that are not named yet: {named}")
    experiment = dataclasses.replace(experiment, train=_pin_checkpoint(experiment))
    evaluation = experiment.evaluation
    for field_, digest_field in PINNED.items():
        given = getattr(evaluation, field_)
        if given is None:
            continue
        path, known = Path(given).absolute(), getattr(evaluation, digest_field)
        if not path.is_file() and (field_ != "reference" or not path.is_dir()):
            raise ValueError(f"{field_} must be a file, but got {str(path)!r}")
        digest = _known_digest(path)
        if known not in (None, digest):
            raise ValueError(f"{field_} must be the file with SHA-256 {known}, but {path} has "
                             f"{digest}")  # fmt: skip
        changes: Any = {field_: str(path), digest_field: digest}
        evaluation = dataclasses.replace(evaluation, **changes)
    return dataclasses.replace(experiment, evaluation=evaluation, data=pin_data(experiment.data))


def pin_data(data: DataConfig) -> DataConfig:
    """Data pinned by their content, as far as they are named, after a look at what is small.

    Raises:
        ValueError: they are not there, are of another kind or size than the experiment says, lack
            their normalisation, or are not those that it was run with; or so with the codec.
    """
    if data.source == "digits":
        return data
    pinned: dict[str, Any] = {}
    if data.path is not None:
        pinned |= _pin_source(data, Path(data.path).absolute())
    if data.codec != "none" and data.codec_path is not None:
        codec = Path(data.codec_path).absolute()
        digest = codec_digest(data.codec, codec)
        pinned |= {"codec_path": str(codec), "codec_sha256": digest,
                   "encoder_sha256": _encoder_digest(data.codec, codec, digest)}  # fmt: skip
    for name in ("content", "count", "codec_sha256", "encoder_sha256"):
        known = getattr(data, name)
        if known is not None and name in pinned and known != pinned[name]:
            raise ValueError(f"data.{name} must be {known!r} as when the experiment was run, but "
                             f"is {pinned[name]!r}")  # fmt: skip
    return dataclasses.replace(data, **pinned)


def _pin_source(data: DataConfig, path: Path) -> dict[str, Any]:
    """Fields of a source, by all that the data say of it."""
    content, count = _source(dataclasses.replace(
        data, path=str(path), content=None, count=None, codec_path=None, codec_sha256=None,
        encoder_sha256=None,
    ))  # fmt: skip
    return {"path": str(path), "content": content, "count": count}


# Listing ImageNet takes minutes, and a table's rows name the same source many times. One that
# changes later is found by the stage that lists it.
@functools.lru_cache(maxsize=16)
def _source(data: DataConfig) -> tuple[str, int]:
    """Identity and rows of the source that data name, once a process, checked."""
    from ig_core.sources import identify, list_source

    listing = list_source(Path(str(data.path)), data.num_classes)
    if listing.has_latents != (data.source == "latents"):
        raise ValueError(f"data.source must be {'latents' if listing.has_latents else 'images'} "
                         f"for {data.path}, which holds {listing.format}, but is "
                         f"{data.source!r}")  # fmt: skip
    if listing.has_latents:
        _check_latents(data, listing)
    return identify(listing), len(listing)


def forget_sources() -> None:
    """List sources anew, for a process in which they change."""
    _source.cache_clear()


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


def _pin_checkpoint(experiment: Experiment) -> TrainConfig:
    """The published checkpoint that stands for a training, pinned; it must fit the model."""
    train = experiment.train
    if train.from_checkpoint is None:
        return train
    path = Path(train.from_checkpoint).absolute()
    if not path.is_file():
        raise ValueError(f"train.from_checkpoint must be a file, but got {str(path)!r}")
    digest = _known_digest(path)
    if train.checkpoint_sha256 not in (None, digest):
        raise ValueError(f"train.from_checkpoint must be the file with SHA-256 "
                         f"{train.checkpoint_sha256}, but {path} has {digest}")  # fmt: skip
    _check_checkpoint(path, experiment.model, digest)
    return dataclasses.replace(train, from_checkpoint=str(path), checkpoint_sha256=digest)


@functools.lru_cache(maxsize=64)
def _check_checkpoint(path: Path, model: ModelConfig, digest: str) -> None:  # noqa: ARG001
    """Raise ValueError unless names and shapes fit; once a process for what the digest says."""
    from ig_core.official import check_official

    check_official(path, model)


def check_weights(experiment: Experiment) -> None:
    """Judge the weights that an experiment names as far as they lie on this machine.

    Raises:
        ValueError: a published checkpoint or a codec does not fit.
    """
    from ig_core.codec_files import open_codec
    from ig_core.official import check_official

    train, data = experiment.train, experiment.data
    if train.from_checkpoint is not None and Path(train.from_checkpoint).is_file():
        check_official(Path(train.from_checkpoint), experiment.model)
    if data.codec_path is not None and Path(data.codec_path).exists():
        open_codec(data.codec, Path(data.codec_path))


def _known_digest(path: Path) -> str:
    """Digest of a path; a large file that did not change is read once a process."""
    if path.is_dir():
        return path_digest(path)
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, *_: int) -> str:
    return file_digest(path)
