"""Publication of a training's states, and meetings at which its workers agree on it."""

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

MEETING_STEPS = 25
"""Most steps between two meetings of the workers; losses are gathered and checked at each."""
MEETING_SECONDS = 2.0
"""Most seconds between two meetings, unless a single step takes longer."""
TRAINING = "training"
"""Entry in the manifest of a state to resume from: the training that published it."""


class Orders(NamedTuple):
    """Actions of all workers after a step, whichever of them asked for them."""

    drain: bool
    save: bool


class Meetings:
    """Steps after which the workers agree whether to save or drain.

    At every multiple of `MEETING_STEPS`, and more often where steps are slow, so that a preemption
    is noticed within seconds; fast steps pay nothing for it.
    """

    def __init__(self, step: int, world_size: int, device: torch.device) -> None:
        self.world_size, self.device = world_size, device
        self._at, self._next = step, step + 1
        self._time = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether there is a meeting after `step` steps; the same on all workers."""
        return step == self._next

    def meet(self, step: int, *, drain: bool, save: bool) -> Orders:
        """Gather the wishes of all workers, and return what all of them do.

        Args:
            step: Steps done.
            drain: True if this worker is preempted.
            save: True if this worker asks for the state to be published.
        """
        now = time.monotonic()
        pace = max((now - self._time) / max(step - self._at, 1), 1e-6)
        distance = max(1, min(int(MEETING_SECONDS / pace), MEETING_STEPS))
        # The pace is the first worker's: clocks differ.
        wishes = [int(drain), int(save), distance]
        if self.world_size > 1:
            every = torch.tensor([wishes], device=self.device)
            gathered = [torch.empty_like(every) for _ in range(self.world_size)]
            distributed.all_gather(gathered, every)
            table = torch.cat(gathered)
            wishes = [*table[:, :2].amax(dim=0).tolist(), int(table[0, 2])]
        self._at, self._time = step, now
        self._next = min(step + wishes[2], (step // MEETING_STEPS + 1) * MEETING_STEPS)
        return Orders(bool(wishes[0]), bool(wishes[1]))


@dataclass
class Publisher:
    """Publisher of one training's states; the first worker writes, the others send their parts.

    A state is copied, and written while the training goes on: one of 10 GiB takes a minute into a
    bucket. Use it in a `with`, whose end waits for the state that is being written.
    """

    store: Store
    graph: Graph
    training: str
    """Identity of the training, the same after its workers were replaced."""
    wanted: Collection[int]
    """Steps whose checkpoints are published to stay."""
    minutes: float | None
    """Minutes between two states that are published to be resumed from; None for no such states."""
    team: Team
    publishing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context that keeps a worker alive while it takes part in publishing or writes."""
    _resumable: set[int] = field(default_factory=set)
    """Steps of the states that this training published to be resumed from."""
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _writing: Future[None] | None = None

    def begin(self, start: Artifact | None) -> None:
        """Note where the training starts, and which states it published before an interruption."""
        self._since = self._saved = time.monotonic()
        self._carried, self._from_step = 0.0, 0
        if self.team.rank != 0:
            return  # the first worker alone writes and deletes
        if start is not None and start.ref.kind == "resume":
            # Its time counts for the next checkpoint: the resume state is going to be deleted.
            self._carried, self._from_step = start.seconds, int(start.manifest["work_from_step"])
        elif start is not None:
            self._from_step = start.ref.step
        self._resumable.update(filter(self._own_state, resume_steps(self.store, self.graph)))

    def _own_state(self, step: int) -> Artifact | None:
        """Find the state to resume from at a step; None unless this training published it."""
        artifact = self.store.find(self.graph.resume(step).ref)
        return artifact if artifact and artifact.manifest.get(TRAINING) == self.training else None

    def due(self) -> bool:
        """Return whether this worker asks for the state to be published, to be resumed from."""
        if self.team.rank != 0:
            return False
        if self._writing is not None and self._writing.done():
            self.finish()  # an error of writing is raised now, not when the next state is due
        if self.minutes is None or self._writing is not None:
            return False
        return time.monotonic() - self._saved >= 60 * self.minutes

    def publish(self, state: TrainState) -> None:
        """Publish the state, a checkpoint if its step is wanted, in the background.

        All workers call it. The state may be trained on at once. Raises the error of the state
        that was written before.
        """
        with self.publishing():
            self.finish()  # memory has no room for the copies of two states
            self.team.agree(good=True)  # workers that wait for the first one stay alive as well
            if self.team.rank == 0 or is_sharded(state.model):
                packed = pack_checkpoint(state, keep=self.team.rank == 0)
            if self.team.rank == 0:
                self._writing = self._writer.submit(self._write, packed, *self._entry(state.step))
        self._saved = time.monotonic()
        if state.step in self.wanted:
            self._carried, self._from_step, self._since = 0.0, state.step, self._saved

    def settle(self) -> None:
        """Wait until all states are published. All workers call it before they end.

        None of them ends before: a group that loses a worker is stopped, and the first one with it.
        """
        with self.publishing():
            self.finish()
            self.team.agree(good=True)

    def finish(self) -> None:
        """Wait until the state is written; raise the error of writing if there was one."""
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
        """Return the node under which a state is published, and the text of its manifest."""
        stays = step in self.wanted
        node = self.graph.checkpoint(step) if stays else self.graph.resume(step)
        work = {
            "work_seconds": round(self._carried + time.monotonic() - self._since, 3),
            "work_from_step": self._from_step,
        }
        training = {} if stays else {TRAINING: self.training}
        return node, {**describe(node), **work, **training}

    def _write(self, packed: PackedCheckpoint, node: Node, description: dict[str, Any]) -> None:
        with self.publishing():
            with self.store.publish(node.ref, description) as directory:
                write_experiment(self.graph.experiment, directory)
                packed.write(directory)
            self._delete_older(node.step)
        if TRAINING in description:
            self._resumable.add(node.step)

    def _delete_older(self, step: int) -> None:
        older = {resumable for resumable in self._resumable if resumable < step}
        for artifact in map(self._own_state, sorted(older)):
            if artifact is not None:
                self.store.delete(artifact)
        self._resumable -= older
