"""Which states of a training are published, and when its workers agree on what to do next."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import distributed

from ig_core.checkpoints import pack_checkpoint
from ig_core.sharding import is_sharded
from pipelines.stages.build import describe, write_experiment

if TYPE_CHECKING:
    from collections.abc import Collection

    from ig_core.training import TrainState
    from pipelines.artifacts import Store
    from pipelines.graph import Graph

REPORT_EVERY = 25
"""Most steps between two meetings of the workers; losses are gathered and checked then."""
SECONDS_BETWEEN = 2.0
"""Most seconds between two meetings, unless a single step takes longer."""
BETWEEN = "between"
"""Entry in the manifest of a checkpoint that nobody wanted: the training that published it."""


class Orders(NamedTuple):
    """What all workers do after a step, whoever wished it."""

    leave: bool
    save: bool


class Meetings:
    """After which steps the workers agree on what to do besides the next step.

    At every multiple of `REPORT_EVERY`, and more often where steps are slow, so that a notice is
    heard within seconds; fast steps pay nothing for it.
    """

    def __init__(self, step: int, world_size: int, device: torch.device) -> None:
        self.world_size, self.device = world_size, device
        self._at, self._next = step, step + 1
        self._time = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether there is a meeting after `step` steps; the same on all workers."""
        return step == self._next

    def meet(self, step: int, *, leave: bool, save: bool) -> Orders:
        """What this worker wishes, and what all of them then do.

        Args:
            step: Steps done.
            leave: This worker's node is about to go.
            save: This worker would publish the state soon. It is asked again at an odd step:
                hardly any experiment has its checkpoints there, and so none can miss this one when
                it is deleted.
        """
        now = time.monotonic()
        pace = max((now - self._time) / max(step - self._at, 1), 1e-6)
        distance = 1 if save else max(1, min(int(SECONDS_BETWEEN / pace), REPORT_EVERY))
        # The pace is the first worker's: clocks differ.
        wishes = [int(leave), int(save and step % 2 == 1), distance]
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
    """Publishes states of one training; the first worker writes, the others give their parts."""

    store: Store
    graph: Graph
    training: str
    """Identity of the training, the same after its workers were replaced."""
    wanted: Collection[int]
    """Steps whose checkpoints stay."""
    minutes: float | None
    """Time after which a state is published though nobody wants it; None: never."""
    rank: int
    _between: set[int] = field(default_factory=set)
    """Steps that this training published for safety."""

    def begin(self, step: int) -> None:
        """Note where the training starts, and what it left here before it was interrupted."""
        self._since = self._saved = time.monotonic()
        self._carried, self._from_step = 0.0, step
        if self.rank != 0:
            return  # the first worker alone writes and deletes
        trajectory = self.graph.checkpoint(0).hash
        for artifact in self.store.list("checkpoint", f"{trajectory}-"):
            found = int(artifact.key.rpartition("-")[2])
            if BETWEEN not in artifact.manifest:
                continue
            if found == step:
                # Its work is that of the next checkpoint that stays: this one may be deleted.
                self._carried = artifact.seconds
                self._from_step = int(artifact.manifest["work_from_step"])
            if artifact.manifest[BETWEEN] == self.training and found not in self.wanted:
                self._between.add(found)

    def due(self) -> bool:
        """Whether this worker wishes that the state be published for safety."""
        waited = time.monotonic() - self._saved
        return self.rank == 0 and self.minutes is not None and waited >= 60 * self.minutes

    def publish(self, state: TrainState) -> None:
        """Publish the state. All workers call this; it is one of the steps that stay, or not."""
        stays = state.step in self.wanted
        work = {"work_seconds": round(self._carried + time.monotonic() - self._since, 3),
                "work_from_step": self._from_step}  # fmt: skip
        mark = {} if stays else {BETWEEN: self.training}
        node = self.graph.checkpoint(state.step)
        if self.rank == 0 or is_sharded(state.model):
            packed = pack_checkpoint(state, keep=self.rank == 0)
        if self.rank == 0:
            description = {**describe(node), **work, **mark}
            with self.store.publish(node.kind, node.key, description) as directory:
                write_experiment(self.graph.experiment, directory)
                packed.write(directory)
            self._delete_older(state.step)
        self._saved = time.monotonic()
        if stays:
            self._carried, self._from_step, self._since = 0.0, state.step, self._saved
        else:
            self._between.add(state.step)

    def _delete_older(self, step: int) -> None:
        for older in sorted(self._between):
            node = self.graph.checkpoint(older)
            found = self.store.find(node.kind, node.key)
            # Somebody else may have published that step first, to keep it.
            if older < step and found and found.manifest.get(BETWEEN) == self.training:
                self.store.delete(found)
        self._between = {older for older in self._between if older >= step}
