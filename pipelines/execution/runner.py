"""Protocol of a runner, on Ray or in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.stages.jobs import Job, TrainJob, TrainOutcome, TrainProgress


class Runner(Protocol):
    """Runner of work, for one experiment; errors of the work are raised unchanged."""

    def build(self, job: Job) -> None:
        """Build and publish the artifacts of a job."""

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        """Train and publish checkpoints; call `post` with the progress while it runs."""

    def stop(self) -> None:
        """Make running calls end soon with `StoppedError`, and their workers with them."""

    def room(self) -> int:
        """Return how many experiments with these resources fit at once, at least 1."""

    def close(self) -> None:
        """Stop the processes that the runner started; no call may be running."""
