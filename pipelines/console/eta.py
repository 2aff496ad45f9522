"""Progress of an experiment, and the time that the rest of it takes.

Each missing artifact counts by its estimated seconds. These come from artifacts of its kind in this
run; if there are none, from its number of operations at the speed of the training; if that is not
known either, from an assumed speed.
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
"""Assumed operations per second of a worker without a GPU, and with one."""
FEATURE_FLOPS = {INCEPTION: 1.2e10}
"""Extractor -> operations for the features of an image; other extractors need few."""
ASSUMED_SECONDS = 1.0
"""Assumed seconds for an artifact whose number of operations is not known."""
DECAY = 0.8
"""Weight of earlier measurements when a new one is added: work beside a training is slower than
work after it, so that recent measurements count most."""


class RemainingWork:
    """Missing and running artifacts of an experiment, with an estimate of the time left.

    All methods may be called from any thread.
    """

    def __init__(self, graph: Graph, clock: Callable[[], float] = time.monotonic) -> None:
        self._experiment: Experiment = graph.experiment
        self._graph, self._clock = graph, clock
        self._lock = threading.Lock()
        self._measured: dict[str, _Measured] = {}
        self._left: dict[Node, float] = {}
        """Missing node -> its units of work."""
        self._running: dict[Node, float] = {}
        """Node that is being built -> when it was started, by the clock."""
        self._group: dict[Node, tuple[Node, ...]] = {}
        """Node that is being built -> all nodes of its task."""
        self._done_seconds, self._furthest, self._expected = 0.0, 0.0, False
        self._train_from, self._train_to = 0, 0
        self._progress: TrainProgress | None = None
        self._progress_time = 0.0
        self._before_training = set(closure([graph.data]))
        self._steps_needed: dict[Node, int] = {}

    def expect(self, nodes: Iterable[Node], trained_to: int = 0) -> None:
        """Set the nodes that are missing now.

        Args:
            nodes: All nodes to build, with stand-ins for those that are not known yet.
            trained_to: Step from which the training continues.
        """
        with self._lock:
            self._expected = True
            self._left = {node: self._units(node) for node in nodes}
            steps = [node.step for node in self._left if node.trained]
            self._train_to = max(steps, default=0)
            self._train_from = min(trained_to, self._train_to)

    def started(self, nodes: Sequence[Node]) -> None:
        """Note that one task builds the nodes from now on."""
        with self._lock:
            now = self._clock()
            for node in nodes:
                self._running[node], self._group[node] = now, tuple(nodes)

    def finished(self, node: Node) -> None:
        """Note that a node is published."""
        with self._lock:
            units, began = self._left.pop(node, 0.0), self._running.pop(node, None)
            group = self._group.pop(node, (node,))
            if node.trained:
                return
            if began is not None and units:
                # The nodes of a task are published together: each gets its share of the time.
                part = units / sum(map(self._units, group))
                measured = self._measured.setdefault(node.kind, _Measured())
                measured.add(part * (self._clock() - began), units)
            self._done_seconds += units * self._seconds_per_unit(node.kind)

    def training(self, progress: TrainProgress) -> None:
        """Note that the training has made steps."""
        with self._lock:
            self._progress, self._progress_time = progress, self._clock()

    @property
    def progress(self) -> TrainProgress | None:
        """Return the progress of the running training; None if there is none."""
        progress = self._progress
        return None if progress is None or progress.step >= progress.steps else progress

    @property
    def running(self) -> list[Node]:
        """Return the nodes that are being built, the longest-running first."""
        with self._lock:
            return sorted(self._running, key=lambda node: self._running[node])

    def share(self) -> float:
        """Return the part of the work that is done, in [0, 1]; it never falls.

        It is 0 until enough is measured for an estimate, and 1 when nothing is left.
        """
        with self._lock:
            done = self._done_seconds + self._trained_steps() * self._seconds_per_step()
            left = self._seconds_to_train() + sum(map(self._seconds_left_of, self._left))
            if self._is_measured():
                share = done / (done + left) if done else 0.0
                self._furthest = max(self._furthest, share if self._left else 1.0)
            return self._furthest

    def seconds_left(self) -> float | None:
        """Return the seconds to the end; None if too little is measured for an estimate."""
        with self._lock:
            if not self._is_measured():
                return None
            training = self._seconds_to_train()
            before = during = after = 0.0
            for node in self._left:
                seconds = self._seconds_left_of(node)
                if node in self._before_training:
                    before += seconds
                elif self._step_needed(node) < self._train_to:
                    during += seconds
                else:
                    after += seconds
            slots = self._experiment.resources.sample_tasks
            if not training:
                return (before + during + after) / slots
            return before / slots + max(training, during / slots) + after / slots

    def _is_measured(self) -> bool:
        """Return whether the speed of training or sampling is known, or neither is left."""
        if not self._expected:
            return False
        if self._progress is not None:
            return True
        if self._train_to > self._train_from:
            return False
        if "images" in self._measured or all(node.kind != "images" for node in self._left):
            return True
        # Sampling that comes last, as on holdout noise, is counted at the assumed speed.
        return "evaluate" in self._measured

    def _step_needed(self, node: Node) -> int:
        """Return the training step that a node waits for; 0 if it waits for no training."""
        if node not in self._steps_needed:
            self._steps_needed[node] = (
                node.step
                if node.trained
                else max((self._step_needed(source) for source in node.inputs.values()), default=0)
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
        """Return the operations of one worker in a training step."""
        experiment = self._experiment
        images = experiment.train.batch_size / experiment.resources.num_workers
        return images * training_flops(experiment.model)

    def _flops(self) -> float:
        """Return the operations per second of a worker."""
        if self._progress is not None and self._progress.steps_per_second > 0:
            return self._step_flops() * self._progress.steps_per_second
        return ASSUMED_FLOPS[self._experiment.resources.use_gpu]

    def _seconds_left_of(self, node: Node) -> float:
        """Return the seconds left of a node; 0 for a checkpoint, as training counts by steps."""
        if node.trained:
            return 0.0
        total = self._left[node] * self._seconds_per_unit(node.kind)
        began = self._running.get(node)
        spent = 0.0 if began is None else (self._clock() - began) / len(self._group[node])
        return max(total - spent, 0.1 * total)

    def _seconds_per_unit(self, kind: str) -> float:
        """Return the seconds of a unit of work, measured or assumed."""
        measured = self._measured.get(kind)
        if measured is not None and measured.units:
            return measured.seconds / measured.units
        if kind == "images":
            return 1 / self._flops()
        if kind == "features":
            return FEATURE_FLOPS.get(self._experiment.evaluation.extractor, 1e6) / self._flops()
        return ASSUMED_SECONDS

    def _units(self, node: Node) -> float:
        """Return the units of work of a node: operations, images or nodes."""
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


@dataclass
class _Measured:
    """Seconds and units of one kind of work; recent measurements count most."""

    seconds: float = 0.0
    units: float = 0.0

    def add(self, seconds: float, units: float) -> None:
        self.seconds = DECAY * self.seconds + seconds
        self.units = DECAY * self.units + units
