"""What an experiment refers to by a path is pinned by its content before any work."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.graph import INCEPTION
from pipelines.keys import content_digest, file_digest

if TYPE_CHECKING:
    from experiments import Experiment
    from ig_core.config import TrainConfig

PINNED = {"extractor_weights": "weights_sha256", "reference": "reference_sha256"}
"""Files of an evaluation -> the field that holds what identifies them."""


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's images."""
    if path.is_file():
        return file_digest(path)
    images = (file for file in path.iterdir() if file.suffix.lower() in (".png", ".npz"))
    return content_digest({file.name: file_digest(file) for file in images})


def unnamed_files(experiment: Experiment) -> dict[str, str]:
    """Files that a run needs and the experiment does not name: field -> what belongs there."""
    evaluation, data = experiment.evaluation, experiment.data
    wanted = {}
    if data.source != "digits" and data.path is None:
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
    experiment = dataclasses.replace(experiment, train=_pin_checkpoint(experiment.train))
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
    return dataclasses.replace(experiment, evaluation=evaluation)


def _pin_checkpoint(train: TrainConfig) -> TrainConfig:
    """The published checkpoint that stands for a training, pinned."""
    if train.from_checkpoint is None:
        return train
    path = Path(train.from_checkpoint).absolute()
    if not path.is_file():
        raise ValueError(f"train.from_checkpoint must be a file, but got {str(path)!r}")
    digest = _known_digest(path)
    if train.checkpoint_sha256 not in (None, digest):
        raise ValueError(f"train.from_checkpoint must be the file with SHA-256 "
                         f"{train.checkpoint_sha256}, but {path} has {digest}")  # fmt: skip
    return dataclasses.replace(train, from_checkpoint=str(path), checkpoint_sha256=digest)


def _known_digest(path: Path) -> str:
    """Digest of a path; a large file that did not change is read once a process."""
    if path.is_dir():
        return path_digest(path)
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, *_: int) -> str:
    return file_digest(path)
