"""What can go wrong while an experiment runs, apart from bad input (ValueError)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """The command line cannot be understood."""


class NoStudiesError(ValueError):
    """A database of studies is not there, or new."""


class PipelineError(RuntimeError):
    """Base of the pipeline's errors: the message says what to do."""


class TrainingFailedError(PipelineError):
    """A training stopped because a loss was not finite."""


class SamplingFailedError(PipelineError):
    """Samples came out NaN or infinite."""


class WorkerLostError(PipelineError):
    """Workers died more often than the resources allow."""


class MemoryExhaustedError(PipelineError):
    """Memory ran out: the work asks for more at once than there is."""


class StoppedError(PipelineError):
    """The work was told to stop before it was done."""


class StudyError(PipelineError):
    """A study cannot go on."""


class JobServerError(PipelineError):
    """A cluster's job server cannot be reached, or refuses."""


class TrackingError(PipelineError):
    """The tracking server cannot be reached, or refuses."""


class ArtifactError(PipelineError):
    """Base of the store's errors."""


class MissingArtifactError(ArtifactError):
    """An artifact that was asked for is not in the store."""


class CorruptArtifactError(ArtifactError):
    """An artifact's files are not those that were published."""

    def __init__(self, kind: str, key: str, path: Path | str, reason: str) -> None:
        super().__init__(
            f"artifact {kind}/{key} is damaged: {reason} ({path}). It was not used. Run the same "
            f"command with --rebuild to set it aside and build it again."
        )
        self.kind, self.key = kind, key

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in workers: exceptions pickle their message only, not these arguments.
        return _rebuild_corrupt, (str(self), self.kind, self.key)


def _rebuild_corrupt(message: str, kind: str, key: str) -> CorruptArtifactError:
    error = CorruptArtifactError(kind, key, Path(), "")
    error.args = (message,)
    return error
