"""What an experiment refers to by a path is pinned by its content before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.keys import content_digest, file_digest

if TYPE_CHECKING:
    from experiments import Experiment

PINNED = {"extractor_weights": "weights_sha256", "reference": "reference_sha256"}
"""Files of an evaluation -> the field that holds what identifies them."""


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's images."""
    if path.is_file():
        return file_digest(path)
    images = (file for file in path.iterdir() if file.suffix.lower() in (".png", ".npz"))
    return content_digest({file.name: file_digest(file) for file in images})


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with the files that it refers to pinned by their content.

    Raises:
        ValueError: a file is not there, or is not the one that the experiment was run with.
    """
    evaluation = experiment.evaluation
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
    return dataclasses.replace(experiment, evaluation=evaluation)
