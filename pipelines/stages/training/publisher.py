"""Which states of a training are published, and when its workers agree on what to do next."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed

from ig_core.checkpoints.own import pack_checkpoint
from ig_core.training.parts import is_sharded
from pipelines.graph.trajectory import resume_steps
from pipelines.stages.context import describe, write_experiment

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from ig_core.checkpoints.own import PackedCheckpoint
    from ig_core.training.state import TrainState
    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.stages.training.start import Team
    from pipelines.store.base import Artifact, Store

REPORT_EVERY = 25
"""Most steps between two meetings of the workers; losses are gathered and checked then."""
SECONDS_BETWEEN = 2.0
"""Most seconds between two meetings, unless a single step takes longer."""
TRAINING = "training"
"""Entry in the manifest of a state to resume from: the training that published it."""


class Orders(NamedTuple):
    """What all workers do after a step, whichever of them asked for it."""

    drain: bool
    save: bool


class Meetings:
    """After which steps the workers agree on what to do besides the next step.

    At every multiple of `REPORT_EVERY`, and more often where steps are slow, so that a preemption
    is noticed within seconds; fast steps pay nothing for it.
    """

    def __init__(self, step: int, world_size: int, device: torch.device) -> None:
        self.world_size, self.device = world_size, device
        self._at, self._next = step, step + 1
        self._time = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether there is a meeting after `step` steps; the same on all workers."""
        return step == self._next

    def meet(self, step: int, *, drain: bool, save: bool) -> Orders:
        """What this worker wishes, and what all of them then do.

        Args:
            step: Steps done.
            drain: This worker is preempted.
            save: This worker would publish the state.
        """
        now = time.monotonic()
        pace = max((now - self._time) / max(step - self._at, 1), 1e-6)
        distance = max(1, min(int(SECONDS_BETWEEN / pace), REPORT_EVERY))
        # The pace is the first worker's: clocks differ.
        wishes = [int(drain), int(save), distance]
        if self.world_size > 1:
            every = torch.tensor([wishes], device=self.device)
            gathered = [torch.empty_like(every) for _ in range(self.world_size)]
            distributed.all_gather(gathered, every)
            table = torch.cat(gathered)
            wishes = [*table[:, :2].amax(dim=0).tolist(), int(table[0, 2])]
        self._at, self._time = step, now
        self._next = min(step + wishes[2], (step // REPORT_EVERY + 1) * REPORT_EVERY)
        return Orders(bool(wishes[0]), bool(wishes[1]))


@dataclass
class Publisher:
    """Publishes states of one training; the first worker writes, the others give their parts.

    A state is copied, and written while the training goes on: one of 10 GiB takes a minute on its
    way into a bucket. Use it in a `with`, whose end waits for what is being written.
    """

    store: Store
    graph: Graph
    training: str
    """Identity of the training, the same after its workers were replaced."""
    wanted: Collection[int]
    """Steps whose checkpoints stay."""
    minutes: float | None
    """Time after which a state is published though nobody wants it; None: never."""
    team: Team
    publishing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Holds a worker while it takes part in publishing, and the first one while it writes."""
    _resumable: set[int] = field(default_factory=set)
    """Steps that this training published to be resumed from."""
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _writing: Future[None] | None = None

    def begin(self, start: Artifact | None) -> None:
        """Note where the training starts, and what it left here before it was interrupted."""
        self._since = self._saved = time.monotonic()
        self._carried, self._from_step = 0.0, 0
        if self.team.rank != 0:
            return  # the first worker alone writes and deletes
        if start is not None and start.ref.kind == "resume":
            # Its work is that of the next checkpoint: this one is going to be deleted.
            self._carried, self._from_step = start.seconds, int(start.manifest["work_from_step"])
        elif start is not None:
            self._from_step = start.ref.step
        self._resumable.update(filter(self._is_mine, resume_steps(self.store, self.graph)))

    def _is_mine(self, step: int) -> Artifact | None:
        """The state to resume from at a step, if this training published it."""
        node = self.graph.resume(step)
        found = self.store.find(node.ref)
        return found if found and found.manifest.get(TRAINING) == self.training else None

    def due(self) -> bool:
        """Whether this worker wishes that the state be published for safety."""
        if self.team.rank != 0:
            return False
        if self._writing is not None and self._writing.done():
            self.finish()  # what went wrong is raised now, not when the next one is due
        if self.minutes is None or self._writing is not None:
            return False
        return time.monotonic() - self._saved >= 60 * self.minutes

    def publish(self, state: TrainState) -> None:
        """Publish the state, a checkpoint if it is wanted, in the background. All workers call it.

        It may be trained on at once. What went wrong with the state before it is raised here.
        """
        with self.publishing():
            self.finish()  # memory has no room for the copies of two states
            self.team.agree(good=True)  # who waits for the first worker holds on as well
            if self.team.rank == 0 or is_sharded(state.model):
                packed = pack_checkpoint(state, keep=self.team.rank == 0)
            if self.team.rank == 0:
                self._writing = self._writer.submit(self._write, packed, *self._entry(state.step))
        self._saved = time.monotonic()
        if state.step in self.wanted:
            self._carried, self._from_step, self._since = 0.0, state.step, self._saved

    def settle(self) -> None:
        """Wait until all is published. All workers call it before they end.

        None of them ends before: a group that loses a worker is stopped, and the first one with it.
        """
        with self.publishing():
            self.finish()
            self.team.agree(good=True)

    def finish(self) -> None:
        """Wait until nothing is being written; raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        with self.publishing():
            self._writer.shutdown()
        self.finish()

    def _entry(self, step: int) -> tuple[Node, dict[str, Any]]:
        """Under which node a state is published, and what its manifest says."""
        stays = step in self.wanted
        node = self.graph.checkpoint(step) if stays else self.graph.resume(step)
        work = {
            "work_seconds": round(self._carried + time.monotonic() - self._since, 3),
            "work_from_step": self._from_step,
        }
        mark = {} if stays else {TRAINING: self.training}
        return node, {**describe(node), **work, **mark}

    def _write(self, packed: PackedCheckpoint, node: Node, description: dict[str, Any]) -> None:
        with self.publishing():
            with self.store.publish(node.ref, description) as directory:
                write_experiment(self.graph.experiment, directory)
                packed.write(directory)
            self._delete_older(node.step)
        if TRAINING in description:
            self._resumable.add(node.step)

    def _delete_older(self, step: int) -> None:
        older = {each for each in self._resumable if each < step}
        for found in map(self._is_mine, sorted(older)):
            if found is not None:
                self.store.delete(found)
        self._resumable -= older
