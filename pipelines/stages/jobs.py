"""Jobs for workers, their progress and their outcome."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pipelines.graph.node import Node
    from pipelines.store.errors import CorruptArtifactError


@dataclass(frozen=True)
class Job:
    """Artifacts for a worker to build; travels by pickle."""

    store: str
    nodes: tuple[Node, ...]
    """One artifact; or several shards of images: the same samples under several guidances."""
    experiment: str
    """The resolved experiment, as JSON."""


@dataclass(frozen=True)
class TrainJob:
    """Training for a group of workers; travels by pickle."""

    store: str
    experiment: str
    """The resolved experiment, as JSON."""
    steps: tuple[int, ...]
    """Steps whose checkpoints are wanted, ascending."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identity of the training, which marks the resume states that it published."""


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a training."""

    step: int
    steps: int
    loss: float
    steps_per_second: float
    host: str = ""
    """Name of the first worker's machine."""


@dataclass(frozen=True)
class TrainOutcome:
    """End of a training: at its last step, at a loss that is not finite, or early."""

    step: int
    non_finite_step: int | None = None
    preempted: bool = False
    """The node is drained: the state is published, and the training goes on elsewhere."""
    damaged: CorruptArtifactError | None = None
    """Error of a damaged artifact to start from; a worker that raised it would be restarted."""


class Train(Protocol):
    """Function that trains in one worker of a group (`pipelines.stages.training.worker`)."""

    def __call__(
        self,
        job: TrainJob,
        rank: int,
        world_size: int,
        post: Callable[[TrainProgress], None],
        is_preempted: Callable[[], bool] = ...,
        publishing: Callable[[], AbstractContextManager[None]] = ...,
    ) -> TrainOutcome:
        """Train from the last published state, and publish checkpoints."""


@dataclass(frozen=True)
class Work:
    """Functions that runners execute; runners know no more of the stages than these."""

    build: Callable[[Job], None]
    """Builds and publishes artifacts."""
    train: Train
    """Trains in each worker, and publishes checkpoints."""
