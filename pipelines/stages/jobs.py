"""Jobs for workers, and what workers post back."""

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
    """All that a worker needs to build artifacts; travels by pickle."""

    store: str
    nodes: tuple[Node, ...]
    """One artifact; or several shards of images, of the same samples under other guidances."""
    experiment: str
    """The resolved experiment, as JSON."""


@dataclass(frozen=True)
class TrainJob:
    """What a training worker needs; travels by pickle."""

    store: str
    experiment: str
    """The resolved experiment, as JSON."""
    steps: tuple[int, ...]
    """Steps whose checkpoints are wanted, ascending."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells what this training published for safety from what others did."""


@dataclass(frozen=True)
class TrainProgress:
    """Where a training is."""

    step: int
    steps: int
    loss: float
    steps_per_second: float
    host: str = ""
    """Where the first worker runs."""


@dataclass(frozen=True)
class TrainOutcome:
    """How a training ended: at its last step, where a loss was not finite, or early."""

    step: int
    non_finite_step: int | None = None
    preempted: bool = False
    """Its node is drained: the state is published, and the rest is to be trained elsewhere."""
    damaged: CorruptArtifactError | None = None
    """What it was to start from cannot be used. Not raised by a worker: it would be tried again."""


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
        """Train on, and publish checkpoints."""


@dataclass(frozen=True)
class Work:
    """Functions that runners execute; a runner knows no more of the stages than these."""

    build: Callable[[Job], None]
    """Builds and publishes artifacts."""
    train: Train
