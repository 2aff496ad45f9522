"""What can go wrong while an experiment runs, apart from bad input (ValueError)."""

from __future__ import annotations


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
