"""Resolution of an experiment: the files that it names by path are identified by content."""

from __future__ import annotations

import dataclasses
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.remedies import explained_settings, option
from pipelines.graph.digests import codec_digest, known_digest
from pipelines.graph.node import INCEPTION
from pipelines.graph.source_checks import ImagesOf, reference_identity, resolve_source

if TYPE_CHECKING:
    from collections.abc import Collection

    from experiments import DataConfig, EvaluationConfig, Experiment
    from ig_core.config import ModelConfig, TrainConfig


EVALUATION_FILES = ("extractor_weights", "reference")
"""Fields of an evaluation that name files."""


@functools.lru_cache(maxsize=16)
def _encoder_digest(name: str, path: Path, digest: str) -> str:  # noqa: ARG001
    """Return the SHA-256 of a codec's encoder, read once a process for each digest of the codec.

    Raises:
        ValueError: If the codec does not fit its architecture.
    """
    from ig_core.codecs.files import open_codec

    with explained_settings(path="data.codec_path"):
        return open_codec(name, path).encoder_digest


def unnamed_files(experiment: Experiment) -> dict[str, str]:
    """Return the files that a run needs and the experiment does not name: field -> description."""
    evaluation, data = experiment.evaluation, experiment.data
    wanted = {}
    # A published checkpoint on SD-VAE's latents needs none of them: their factor is known.
    known = experiment.train.imported and data.source == "latents" and data.codec == "sd-vae"
    if data.source != "digits" and data.path is None and not known:
        wanted["data.path"] = f"{data.source} to learn"
        if experiment.train.imported and data.source == "latents":
            wanted["data.path"] = "latents_stats.pt of the latents that were learnt"
    if data.codec != "none" and data.codec_path is None:
        wanted["data.codec_path"] = f"weights of {data.codec}, which decodes samples"
    if evaluation.extractor == INCEPTION and evaluation.extractor_weights is None:
        wanted["evaluation.extractor_weights"] = (
            "Inception-v3 of 2015 (weights-inception-2015-12-05-6726825d.pth)"
        )
    if data.source == "latents" and evaluation.reference is None:
        wanted["evaluation.reference"] = (
            "reference statistics (VIRTUAL_imagenet256_labeled.npz) or images, since latents come "
            "without any"
        )
    return wanted


def files_elsewhere(experiment: Experiment) -> dict[str, str]:
    """List the files that an experiment names and this machine cannot read: field -> path.

    Nodes of a cluster may see files that the machine that sends a job does not.
    """
    data, evaluation = experiment.data, experiment.evaluation
    named = {
        "train.from_checkpoint": experiment.train.from_checkpoint,
        "evaluation.extractor_weights": evaluation.extractor_weights,
        "evaluation.reference": evaluation.reference,
        "data.path": data.path,
        "data.classes": data.classes,
        "data.codec_path": data.codec_path,
    }
    given = {field: path for field, path in named.items() if path is not None}
    missing = {field for field, path in given.items() if not _lies_here(field, path)}
    if "data.classes" in missing and "data.path" in given:
        missing.add("data.path")  # is identified together with its labels
    if find_spec("diffusers") is None:
        missing |= {"data.codec_path"} & set(given)  # no codec can be opened
    return {field: path for field, path in given.items() if field in missing}


def _lies_here(field: str, path: str) -> bool:
    found = Path(path).expanduser()
    is_pattern = field == "data.path" and any(sign in found.name for sign in "*?[{")
    return found.exists() or (is_pattern and found.parent.is_dir())


def resolve(
    experiment: Experiment, *, partly: bool = False, skip: Collection[str] = ()
) -> Experiment:
    """Return an experiment with the digests of the files that it names.

    Args:
        experiment: Experiment to be run or planned.
        partly: Leave files out that are not named yet: enough for a plan.
        skip: Fields of files that are left as they are (`files_elsewhere`).

    Raises:
        ValueError: If a file is not named (one message for all of them), is not there, or is not
            the one that the experiment was run with.
    """
    unnamed = {} if partly else unnamed_files(experiment)
    if unnamed:
        named = "; ".join(f"{option(field)} PATH: {what}" for field, what in unnamed.items())
        raise ValueError(f"{experiment.name} needs files that are not named yet: {named}")
    if "train.from_checkpoint" not in skip:
        experiment = dataclasses.replace(experiment, train=_resolve_checkpoint(experiment))
    experiment = dataclasses.replace(experiment, data=_resolve_data(experiment, skip))
    if "evaluation.extractor_weights" not in skip:
        experiment = dataclasses.replace(experiment, evaluation=_resolve_weights(experiment))
    return dataclasses.replace(experiment, evaluation=_resolve_reference(experiment, skip))


def _resolve_weights(experiment: Experiment) -> EvaluationConfig:
    """Return the evaluation with the digest of the extractor's weights."""
    evaluation = experiment.evaluation
    if evaluation.extractor_weights is None:
        return evaluation
    path, digest = _resolve_file(
        "extractor_weights", evaluation.extractor_weights, evaluation.weights_sha256
    )
    return dataclasses.replace(evaluation, extractor_weights=str(path), weights_sha256=digest)


def _resolve_file(field: str, given: str, known: str | None) -> tuple[Path, str]:
    """Return the path of a file and its digest.

    Raises:
        ValueError: If the file is not there, or is not the one that the experiment was run with.
    """
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"{field} must be a file, but got {str(path)!r}")
    digest = known_digest(path)
    _check_known(field, path, known, digest)
    return path, digest


def _check_known(field: str, path: Path, known: str | None, digest: str | None) -> None:
    """Check that a file is the one that the experiment was run with, if it was run."""
    if known not in (None, digest):
        raise ValueError(
            f"{field} must be the file with SHA-256 {known}, but {path} has "
            f"{digest or 'images of another format'}"
        )


def _resolve_reference(experiment: Experiment, skip: Collection[str]) -> EvaluationConfig:
    """Return the evaluation with the digest of its reference, after a look into it.

    Raises:
        ValueError: If the reference holds nothing to compare with, or is not the one that the
            experiment was run with.
    """
    evaluation, data = experiment.evaluation, experiment.data
    given = evaluation.reference
    if given is None and (data.source != "images" or data.path is None):
        return evaluation
    if ("data.path" if given is None else "evaluation.reference") in skip:
        return evaluation
    if given is not None:
        path = Path(given).expanduser().absolute()
        evaluation = dataclasses.replace(evaluation, reference=str(path))
        side = None if evaluation.reference_sha256 else experiment.reference_side
        if _has_format_of_samples(path, side):
            digest = known_digest(path)
            _check_known("reference", path, evaluation.reference_sha256, digest)
            if evaluation.reference_content is not None:
                raise ValueError(
                    f"reference must be the images of {evaluation.reference_content} "
                    f"as when the experiment was run, but is {path}"
                )
            return dataclasses.replace(evaluation, reference_sha256=digest)
        _check_known("reference", path, evaluation.reference_sha256, None)
    images = ImagesOf.reference(dataclasses.replace(experiment, evaluation=evaluation))
    content, known = reference_identity(images), evaluation.reference_content
    if known not in (None, content):
        raise ValueError(
            f"reference must be the images of {known} as when the experiment was run, "
            f"but {images.path} holds those of {content}"
        )
    return dataclasses.replace(evaluation, reference_content=content)


def _has_format_of_samples(path: Path, side: int | None) -> bool:
    """Return True if a reference holds statistics or images that need no cropping.

    Args:
        path: File or folder of the reference.
        side: Side of the samples in pixels: PNG files of another size are cropped. None: none are.

    Raises:
        ValueError: If the reference holds nothing to compare with.
    """
    from ig_core.data.sources.formats import CONTAINERS
    from ig_core.files.npz import has_arrays
    from ig_core.images.folders import count_images, holds_samples

    if path.is_dir():
        return holds_samples(path, side)
    if not path.is_file():
        raise ValueError(f"reference must be a file or a folder, but got {str(path)!r}")
    if path.suffix.lower() in CONTAINERS:
        return False
    if not has_arrays(path, {"mu", "sigma"}):
        if not has_arrays(path, {"arr_0"}):
            raise ValueError(
                f"reference must hold statistics (mu, sigma) or images (arr_0), but "
                f"{path} holds neither"
            )
        count_images(path)
    return True


def _resolve_data(experiment: Experiment, skip: Collection[str] = ()) -> DataConfig:
    """Return the data with the identity of their content, as far as they are named.

    Raises:
        ValueError: If the data or the codec are not there, are of another kind or size than the
            experiment says, lack their normalisation, or are not those that it was run with.
    """
    data = experiment.data
    if data.source == "digits":
        return data
    resolved: dict[str, Any] = {}
    if data.codec != "none" and data.codec_path is not None and "data.codec_path" not in skip:
        codec = Path(data.codec_path).expanduser().absolute()
        digest = codec_digest(data.codec, codec)
        resolved |= {"codec_path": str(codec), "codec_sha256": digest}
        encoder = _encoder_digest(data.codec, codec, digest)
        if data.source == "images":
            resolved["encoder_sha256"] = encoder
    if data.path is not None and "data.path" not in skip:
        resolved |= resolve_source(
            data, Path(data.path).expanduser().absolute(), imported=experiment.train.imported
        )
    for name in ("content", "count", "codec_sha256", "encoder_sha256"):
        known = getattr(data, name)
        if known is not None and name in resolved and known != resolved[name]:
            raise ValueError(
                f"data.{name} must be {known!r} as when the experiment was run, but "
                f"is {resolved[name]!r}"
            )
    return dataclasses.replace(data, **resolved)


def _resolve_checkpoint(experiment: Experiment) -> TrainConfig:
    """Return the training with the digest of its published checkpoint, which must fit the model."""
    train = experiment.train
    if train.from_checkpoint is None:
        return train
    path, digest = _resolve_file(
        "train.from_checkpoint", train.from_checkpoint, train.checkpoint_sha256
    )
    _check_checkpoint(path, experiment.model, digest)
    return dataclasses.replace(train, from_checkpoint=str(path), checkpoint_sha256=digest)


@functools.lru_cache(maxsize=64)
def _check_checkpoint(path: Path, model: ModelConfig, digest: str) -> None:  # noqa: ARG001
    """Check the names and shapes of a checkpoint's weights, once a process for each digest."""
    from ig_core.checkpoints.official import check_official

    with explained_settings():
        check_official(path, model)
