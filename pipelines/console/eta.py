"""How far an experiment is, and how long the rest of it takes.

Each artifact that is missing counts by the seconds that it costs: as its kind has cost in this run,
before that by its arithmetic at the speed of the training, before that by an assumed speed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ig_core.config import Guidance
from ig_core.costs import sampling_flops, training_flops
from pipelines.graph.node import INCEPTION, Node, closure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from experiments import Experiment
    from pipelines.graph.graph import Graph
    from pipelines.stages.jobs import TrainProgress

ASSUMED_FLOPS = {False: 2e10, True: 1e14}
"""Operations a second of a worker before anything is measured: on a CPU, on a GPU."""
FEATURE_FLOPS = {INCEPTION: 1.2e10}
"""Arithmetic of the features of an image; of other extractors it is next to nothing."""
ASSUMED_SECONDS = 1.0
"""Of an artifact whose cost does not follow from any arithmetic."""
FORGETTING = 0.8
"""Share of what was measured before that still counts when something new is measured: what runs
beside a training is slower than what runs after it."""


@dataclass
class _Measured:
    """Seconds of a unit of one kind of work, the newest counting most."""

    seconds: float = 0.0
    units: float = 0.0

    def add(self, seconds: float, units: float) -> None:
        self.seconds = FORGETTING * self.seconds + seconds
        self.units = FORGETTING * self.units + units

    @property
    def each(self) -> float | None:
        return self.seconds / self.units if self.units else None


class WorkAhead:
    """What is to be built, what is being built, and what is left; asked from any thread."""

    def __init__(self, graph: Graph, clock: Callable[[], float] = time.monotonic) -> None:
        self._experiment: Experiment = graph.experiment
        self._graph, self._clock = graph, clock
        self._lock = threading.Lock()
        self._measured: dict[str, _Measured] = {}
        self._left: dict[Node, float] = {}
        """What is not there yet -> its units of work."""
        self._running: dict[Node, float] = {}
        """What is being built -> since when."""
        self._together: dict[Node, tuple[Node, ...]] = {}
        self._done_seconds, self._furthest, self._expected = 0.0, 0.0, False
        self._train_from, self._train_to = 0, 0
        self._progress: TrainProgress | None = None
        self._progress_time = 0.0
        self._before_training = set(closure([graph.data]))
        self._steps_needed: dict[Node, int] = {}

    def expect(self, nodes: Iterable[Node], trained_to: int = 0) -> None:
        """Replace what is left by what is missing now.

        Args:
            nodes: All that is to be built; what is not known yet may be stood in for by its like.
            trained_to: Step that the training goes on from.
        """
        with self._lock:
            self._expected = True
            self._left = {node: self._units(node) for node in nodes}
            steps = [node.step for node in self._left if node.trained]
            self._train_to = max(steps, default=0)
            self._train_from = min(trained_to, self._train_to)

    def started(self, nodes: Sequence[Node]) -> None:
        """Nodes are being built, by one task."""
        with self._lock:
            now = self._clock()
            for node in nodes:
                self._running[node], self._together[node] = now, tuple(nodes)

    def finished(self, node: Node) -> None:
        """A node is there."""
        with self._lock:
            units, began = self._left.pop(node, 0.0), self._running.pop(node, None)
            group = self._together.pop(node, (node,))
            if node.trained:
                return
            if began is not None and units:
                # What is built together is there at once: each has its part of the time.
                part = units / sum(map(self._units, group))
                measured = self._measured.setdefault(node.kind, _Measured())
                measured.add(part * (self._clock() - began), units)
            self._done_seconds += units * self._each(node.kind)

    def training(self, progress: TrainProgress) -> None:
        """A training moved on."""
        with self._lock:
            self._progress, self._progress_time = progress, self._clock()

    @property
    def progress(self) -> TrainProgress | None:
        """The training that is at work."""
        progress = self._progress
        return None if progress is None or progress.step >= progress.steps else progress

    @property
    def running(self) -> list[Node]:
        """What is being built, the longest first."""
        with self._lock:
            return sorted(self._running, key=lambda node: self._running[node])

    def share(self) -> float:
        """Part of the work that is done, of 1; it never falls, and is 1 when nothing is left.

        It is 0 as long as nothing is measured that it could be told from.
        """
        with self._lock:
            done = self._done_seconds + self._trained_steps() * self._seconds_per_step()
            left = self._seconds_to_train() + sum(map(self._seconds_of, self._left))
            if self._is_measured():
                share = done / (done + left) if done else 0.0
                self._furthest = max(self._furthest, share if self._left else 1.0)
            return self._furthest

    def seconds_left(self) -> float | None:
        """Time to the end; None: nothing is measured yet that it could be told from."""
        with self._lock:
            if not self._is_measured():
                return None
            to_train = self._seconds_to_train()
            before = beside = behind = 0.0
            for node in self._left:
                seconds = self._seconds_of(node)
                if node in self._before_training:
                    before += seconds
                elif self._needs_step(node) < self._train_to:
                    beside += seconds
                else:
                    behind += seconds
            slots = self._experiment.resources.sample_tasks
            if not to_train:
                return (before + beside + behind) / slots
            return before / slots + max(to_train, beside / slots) + behind / slots

    def _is_measured(self) -> bool:
        """Whether the speed of training or sampling is known, or neither is left."""
        if not self._expected:
            return False
        if self._progress is not None:
            return True
        if self._train_to > self._train_from:
            return False
        if "images" in self._measured or all(node.kind != "images" for node in self._left):
            return True
        # Sampling that comes last, as on noise for the report, is counted at the assumed speed.
        return "evaluate" in self._measured

    def _needs_step(self, node: Node) -> int:
        """Step of training that a node waits for; 0: of none."""
        if node not in self._steps_needed:
            self._steps_needed[node] = (
                node.step
                if node.trained
                else max((self._needs_step(source) for source in node.inputs.values()), default=0)
            )
        return self._steps_needed[node]

    def _trained_steps(self) -> int:
        now = self._train_from if self._progress is None else self._progress.step
        return min(max(now - self._train_from, 0), self._train_to - self._train_from)

    def _seconds_to_train(self) -> float:
        left = self._train_to - self._train_from - self._trained_steps()
        since = self._clock() - self._progress_time if self._progress is not None else 0.0
        return max(left * self._seconds_per_step() - since, 0.0) if left else 0.0

    def _seconds_per_step(self) -> float:
        if self._progress is not None and self._progress.steps_per_second > 0:
            return 1 / self._progress.steps_per_second
        return self._step_flops() / self._flops()

    def _step_flops(self) -> float:
        """Operations of a step of training, of one worker."""
        experiment = self._experiment
        images = experiment.train.batch_size / experiment.resources.num_workers
        return images * training_flops(experiment.model)

    def _flops(self) -> float:
        """Operations a second of a worker."""
        if self._progress is not None and self._progress.steps_per_second > 0:
            return self._step_flops() * self._progress.steps_per_second
        return ASSUMED_FLOPS[self._experiment.resources.use_gpu]

    def _seconds_of(self, node: Node) -> float:
        """Seconds that are left of a node; of a training they are counted by its steps."""
        if node.trained:
            return 0.0
        whole = self._left[node] * self._each(node.kind)
        began = self._running.get(node)
        spent = 0.0 if began is None else (self._clock() - began) / len(self._together[node])
        return max(whole - spent, 0.1 * whole)

    def _each(self, kind: str) -> float:
        """Seconds of a unit."""
        measured = self._measured.get(kind)
        each = None if measured is None else measured.each
        if each is not None:
            return each
        if kind == "images":
            return 1 / self._flops()
        if kind == "features":
            return FEATURE_FLOPS.get(self._experiment.evaluation.extractor, 1e6) / self._flops()
        return ASSUMED_SECONDS

    def _units(self, node: Node) -> float:
        """Work of a node, in what work of its kind grows with: operations, images, or nodes."""
        config = node.config
        if node.kind == "images" and "guidance" in config:
            experiment, guidance = self._experiment, Guidance(**config["guidance"])
            flops = sampling_flops(experiment.model, experiment.sampler, guidance)
            return float(flops * (config["stop"] - config["start"]))
        if node.kind == "features" and "start" in node.inputs["images"].config:
            images = node.inputs["images"].config
            return float(images["stop"] - images["start"])
        if node.kind == "latents":
            return float(config["stop"] - config["start"])
        return 1.0
