"""Errors of a run; bad input is a ValueError."""

from __future__ import annotations


class UsageError(ValueError):
    """Error of a command line that cannot be parsed."""


class NoStudiesError(ValueError):
    """Error of a database of studies that is not there, or new."""


class PipelineError(RuntimeError):
    """Base of the errors of a run; the message says what to do."""


class TrainingFailedError(PipelineError):
    """Error of a training that stopped because a loss was not finite."""


class SamplingFailedError(PipelineError):
    """Error of samples that are NaN or infinite."""


class WorkerLostError(PipelineError):
    """Error of a training that lost workers more often than its resources allow."""


class MemoryExhaustedError(PipelineError):
    """Error of work that needs more memory than there is."""


class StoppedError(PipelineError):
    """Error of work that was stopped before it was done."""


class StudyError(PipelineError):
    """Error of a study that cannot go on."""


class JobServerError(PipelineError):
    """Error of a cluster's job server that cannot be reached, or refuses."""


class TrackingError(PipelineError):
    """Error of a tracking server that cannot be reached, or refuses."""


class ArtifactError(PipelineError):
    """Base of the store's errors."""


class MissingArtifactError(ArtifactError):
    """Error of an artifact that is not in the store."""
