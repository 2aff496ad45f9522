"""Scheduler: build missing artifacts, each once and after its inputs, as many at a time as fit.

One training builds all checkpoints; samples and evaluations of a checkpoint start when it is
published, while the training goes on, also when another process does the training.
"""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

from experiments import experiment_to_json
from ig_core.config import Guidance
from pipelines.common.errors import StoppedError, TrainingFailedError
from pipelines.graph.graph import Graph
from pipelines.graph.plan import Plan, make_plan
from pipelines.graph.trajectory import published_steps
from pipelines.stages.jobs import Job, TrainJob
from pipelines.store.keys import Ref, content_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from experiments import Experiment
    from pipelines.execution.listener import Listener
    from pipelines.execution.runner import Runner
    from pipelines.graph.node import Node
    from pipelines.store.base import Store


POLL_SECONDS = 0.2
"""Seconds between two looks for finished tasks and published checkpoints."""


class Pipeline:
    """Scheduler of one experiment, which builds its targets in the store."""

    def __init__(
        self, store: Store, experiment: Experiment, runner: Callable[[], Runner], listener: Listener
    ) -> None:
        self.store, self.experiment, self.listener = store, experiment, listener
        self.graph = Graph(experiment)
        self._make_runner = runner
        self._resolved = experiment_to_json(experiment)
        self._stopped = threading.Event()
        self._looked = 0.0

    def run(self, targets: Iterable[Node]) -> None:
        """Build the targets that are missing; start no runner if none is.

        Raises:
            TrainingFailedError: If a loss is not finite.
            CorruptArtifactError: If an artifact that is needed is damaged.
            StoppedError: If `stop` is called before all targets are published.
        """
        plan = make_plan(self.store, targets)
        if not plan.missing:
            return
        self._check_stopped()
        runner = self._make_runner()
        try:
            self._execute(runner, plan)
        finally:
            runner.close()

    def stop(self) -> None:
        """Make `run` end soon with `StoppedError`, from any thread; published artifacts stay."""
        self._stopped.set()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise StoppedError("the work was stopped")

    def _execute(self, runner: Runner, plan: Plan) -> None:
        pending = dict.fromkeys(plan.missing)
        total, done = len(pending), set(plan.cached)
        running: dict[Future[None], tuple[Node, ...]] = {}
        tasks = ThreadPoolExecutor(self.experiment.resources.sample_tasks, "build")
        trainer = ThreadPoolExecutor(1, "train")
        try:
            while pending or running:
                self._check_stopped()
                for node in self._newly_published(pending, running):
                    pending.pop(node, None)
                    done.add(node)
                    self.listener.on_finished(node, total - len(pending), total)
                steps = tuple(sorted(n.step for n in pending if n.trained))
                if steps and () not in running.values() and self.graph.data in done:
                    running[trainer.submit(self._train, runner, steps)] = ()
                for nodes in self._ready(pending, running, done):
                    running[tasks.submit(self._build, runner, nodes)] = nodes
                if running:
                    wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                elif pending:
                    raise RuntimeError(f"nothing can build {next(iter(pending))}")
        finally:
            self._stopped.set()
            if running:  # left by an error or an interrupt
                runner.stop()
            tasks.shutdown(cancel_futures=True)
            trainer.shutdown(cancel_futures=True)

    def _ready(
        self,
        pending: Iterable[Node],
        running: dict[Future[None], tuple[Node, ...]],
        done: set[Node],
    ) -> list[tuple[Node, ...]]:
        """Return tasks whose inputs are published, in their order, at most one a free slot."""
        busy = {node for nodes in running.values() for node in nodes}
        ready = (
            node
            for node in pending
            if not node.trained
            and node not in busy
            and all(source in done for source in node.inputs.values())
        )
        together: dict[object, list[Node]] = {}
        for node in ready:
            together.setdefault(_task_of(node), []).append(node)
        occupied = sum(nodes != () for nodes in running.values())
        slots = self.experiment.resources.sample_tasks - occupied
        return [tuple(nodes) for nodes in islice(together.values(), slots)]

    def _newly_published(
        self, pending: dict[Node, None], running: dict[Future[None], tuple[Node, ...]]
    ) -> list[Node]:
        """Return nodes that a finished future has built, or a training has published."""
        published: list[Node] = []
        for future in [future for future in running if future.done()]:
            nodes = running.pop(future)
            future.result()  # raises the error of the work
            published.extend(nodes)
        checkpoints = [node for node in pending if node.trained]
        if checkpoints and time.monotonic() - self._looked >= self.store.poll_seconds:
            self._looked = time.monotonic()
            listed = set(self.store.refs("checkpoint", checkpoints[0].hash))
            candidates = (node for node in checkpoints if node.ref in listed)
            published.extend(node for node in candidates if self.store.find(node.ref))
        return published

    def _build(self, runner: Runner, nodes: tuple[Node, ...]) -> None:
        """Build the nodes that are not published meanwhile; wait for those others build."""
        with ExitStack() as leases:
            mine = []
            # In one order everywhere, so that two processes never wait for each other.
            for node in sorted(nodes, key=lambda node: node.key):
                published = self._wait_check(node, functools.partial(self._is_published, node))
                held = leases.enter_context(self.store.lease(node.ref, published))
                if held and not self._is_published(node):
                    mine.append(node)
            if mine:
                self.listener.on_started(mine)
                runner.build(Job(self.store.uri, tuple(mine), self._resolved))

    def _is_published(self, node: Node) -> bool:
        return self.store.find(node.ref) is not None

    def _train(self, runner: Runner, steps: tuple[int, ...]) -> None:
        def missing() -> tuple[int, ...]:
            return tuple(sorted(set(steps) - set(published_steps(self.store, self.graph))))

        last = self.graph.checkpoint(steps[-1])
        all_published = self._wait_check(last, lambda: not missing())
        with self.store.lease(Ref("train", last.hash), all_published):
            wanted = missing()
            if self._stopped.is_set() or not wanted:
                return
            # The workers open the state to start from: here it might be fetched for nothing.
            job = TrainJob(self.store.uri, self._resolved, wanted)
            self.listener.on_started([last])
            outcome = runner.train(job, self.listener.on_training)
        if outcome.damaged is not None:
            raise outcome.damaged
        if outcome.non_finite_step is not None:
            raise TrainingFailedError(self._non_finite_message(outcome.non_finite_step))
        if missing():
            raise TrainingFailedError(
                f"training ended at step {outcome.step}, but the checkpoints "
                f"of steps {list(missing())} were not published"
            )

    def _non_finite_message(self, step: int) -> str:
        last_step = max(published_steps(self.store, self.graph), default=None)
        last = "no checkpoint was published before it"
        if last_step is not None:
            node = self.graph.checkpoint(last_step)
            last = f"the last good checkpoint is step {last_step}: {self.store.address(node.ref)}"
        return (
            f"training stopped: the loss of step {step} is not finite; {last}. Lower "
            f"--optim.lr or --optim.grad-clip."
        )

    def _wait_check(self, node: Node, settled: Callable[[], bool]) -> Callable[[], bool]:
        """Return the check that a lease calls while it waits; it notifies the listener once.

        It is True, and the wait over, when `settled` holds or the pipeline was stopped.
        """
        notified = threading.Event()

        def check() -> bool:
            if not notified.is_set():
                notified.set()
                self.listener.on_waiting(node)
            return self._stopped.is_set() or settled()

        return check


def _task_of(node: Node) -> object:
    """Return a value that nodes which are built together have in common.

    The same samples under guidances that agree at first share their steps until these differ.
    """
    if node.kind != "images":
        return node
    config = dict(node.config)
    at_first = Guidance(**config.pop("guidance")).at(1.0)
    return content_key([node.inputs["checkpoint"].key, config, at_first])
