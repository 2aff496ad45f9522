"""Protocol of a runner, on Ray or in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.stages.jobs import Job, TrainJob, TrainOutcome, TrainProgress


class Runner(Protocol):
    """Executes work; errors of the work itself come out as they were raised."""

    def build(self, job: Job) -> None:
        """Build and publish one artifact."""

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        """Train and publish checkpoints; `post` gets progress while it runs."""

    def stop(self) -> None:
        """Make running calls end soon with `StoppedError`, and their workers with them."""

    def room(self) -> int:
        """Return how many experiments with these resources fit at once, at least 1."""

    def close(self) -> None:
        """Stop what the runner started; no call may be running."""
