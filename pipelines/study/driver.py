"""Work on a study: trainings side by side, each evaluated at several guidance scales."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.activity import Activity
from pipelines.collection import remember
from pipelines.dag import Pipeline
from pipelines.errors import ArtifactError, CorruptArtifactError, StoppedError, StudyError
from pipelines.graph import Graph, closure
from pipelines.results import Measurement, collect, work_seconds
from pipelines.runners import Runner, RunnerSession, describe_runner
from pipelines.study.plan import Curve, CurvePoint, is_hopeless

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from experiments.study import Study
    from pipelines.artifacts import Store
    from pipelines.graph import Node
    from pipelines.home import Home
    from pipelines.stages.train import TrainProgress
    from pipelines.study.book import StudyBook
    from pipelines.study.trials import Trial

FAILURES_IN_A_ROW = 3
"""Trainings that may fail one after the other before the study stops."""


@dataclass(frozen=True)
class Budget:
    """When a study ends."""

    trials: int
    """Completed trials that there are to be."""
    hours: float | None = None
    """Begin nothing new after so many hours of this command."""
    target_fid: float | None = None
    """Begin nothing new once a trial is as good."""


class StudyDriver:
    """Works on a study until its budget is spent; several drivers may work on one study."""

    def __init__(
        self,
        book: StudyBook,
        home: Home,
        budget: Budget,
        parallel: int,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        activity: Activity | None = None,
    ) -> None:
        self.book, self.home, self.budget, self.parallel = book, home, budget, parallel
        self.study: Study = book.study
        self._say, self._changed = say, changed
        # One that is not entered publishes nothing.
        self._activity = activity or Activity(home, "study", book.study.name)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pipelines: set[Pipeline] = set()
        self._session = RunnerSession(book.study.experiment.resources, home.scratch, parallel)
        self._error: BaseException | None = None
        self._failures, self._announced = 0, False
        self._deadline = None if budget.hours is None else time.monotonic() + 3600 * budget.hours

    def run(self) -> None:
        """Evaluate points until the budget is spent.

        Raises:
            StudyError: trainings failed one after the other, or the database is gone.
            ArtifactError: the store cannot be used.
        """
        slots = [threading.Thread(target=self._work, name=f"slot-{number}")
                 for number in range(self.parallel)]  # fmt: skip
        try:
            for slot in slots:
                slot.start()
            while any(slot.is_alive() for slot in slots):
                for slot in slots:
                    slot.join(0.2)
        finally:
            try:
                self._halt()
                for slot in slots:
                    if slot.ident is not None:
                        slot.join()
            finally:
                self._session.close()
        if self._error is not None:
            raise self._error

    def _halt(self) -> None:
        """Let every slot end soon; trials that are running are taken up by the next driver."""
        self._stop.set()
        with self._lock:
            for pipeline in self._pipelines:
                pipeline.stop()

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and not self._spent():
                unit = self.book.next_unit(self.budget.trials)
                if unit:
                    self._take(unit)
                elif self._others_at_work():
                    self._stop.wait(1.0)  # what they leave, or what is given up, is taken up here
                else:
                    return
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the slots
            with self._lock:
                self._error = self._error or error
            self._halt()

    def _others_at_work(self) -> bool:
        trials = self.book.trials()
        complete = sum(trial.state == "COMPLETE" for trial in trials)
        running = any(trial.state == "RUNNING" for trial in trials)
        return running and complete < self.budget.trials

    def _spent(self) -> bool:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        target = self.budget.target_fid
        return target is not None and any(
            t.fid is not None and t.fid <= target for t in self.book.trials()
        )

    def _take(self, unit: list[Trial]) -> None:
        """Work on trials of one training until they are evaluated, or it is given up."""
        self._changed()
        try:
            try:
                watch = self._evaluate(unit)
            except CorruptArtifactError as error:
                self.home.store.quarantine(error.kind, error.key)
                self._say(f"set aside damaged {error.kind}/{error.key}")
                watch = self._evaluate(unit)
            if watch.hopeless:
                self.book.prune(watch.unit)
                self._say(f"given up  {unit[0].point.training_name}: FID above the median of the "
                          f"others at {self.study.pruning.patience} checkpoints")  # fmt: skip
            self._failures = 0
        except (StoppedError, StudyError, ArtifactError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a trial that fails is a result
            self._failed(unit, error)
        self._changed()

    def _failed(self, unit: list[Trial], error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self.book.fail(unit, reason)
        self._say(f"failed    {unit[0].point.training_name}: {reason}")
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise StudyError(f"{self._failures} trainings failed one after the other; the last "
                             f"one: {reason}") from error  # fmt: skip

    def _evaluate(self, unit: list[Trial]) -> _Watch:
        layer, weight = unit[0].point.training
        experiment = self.study.at(layer, weight, tuple(t.point.ig_scale for t in unit))
        graph, store = Graph(experiment), self.home.store
        remember(store, experiment, graph.run_key)
        watch = _Watch(self, graph, unit)
        listener = self._activity.follow(graph, watch, unit[0].point.training_name)
        pipeline = Pipeline(store, experiment, self._runner, listener)
        watch.pipeline = pipeline
        with self._lock:
            self._pipelines.add(pipeline)
        try:
            if self._stop.is_set():
                raise StoppedError("the study was stopped")
            pipeline.run(watch.targets)
        except StoppedError:
            if not watch.hopeless:
                raise
        finally:
            listener.let_go()
            with self._lock:
                self._pipelines.discard(pipeline)
        if not watch.hopeless:
            watch.look()
        return watch

    def _runner(self) -> Runner:
        with self._lock:
            if not self._announced:
                self._announced = True
                self._say(f"start     {describe_runner(self.study.experiment.resources)}, "
                          f"{self.parallel} at once")  # fmt: skip
        try:
            return self._session.runner()
        except Exception as error:
            raise StudyError(f"nothing can run here: {error}") from error

    def heard(self, unit: Sequence[Trial], done: Measurement) -> None:
        """A point of a training was evaluated."""
        metrics = done.metrics
        self._say(f"FID {done.fid:8.2f} [{metrics['fid_low']:.2f} .. {metrics['fid_high']:.2f}]  "
                  f"{unit[0].point.training_name}, scale {done.scale:g}, "
                  f"step {done.point.step}")  # fmt: skip


class _Watch:
    """A `dag.Listener`: enters curve and FIDs as they come, gives a hopeless training up."""

    def __init__(self, driver: StudyDriver, graph: Graph, unit: list[Trial]) -> None:
        self._driver, self._graph, self.unit = driver, graph, unit
        self.hopeless = False
        self.pipeline: Pipeline | None = None
        self._lock, self._open = threading.Lock(), list(unit)
        self._curve: Curve = dict(unit[0].curve)
        scale = graph.experiment.guidance.ig_scale
        curve = [p for p in graph.curve if p.guidance.ig_scale == scale]
        wanted = {t.point.ig_scale for t in unit}
        final = [p for p in graph.final if p.guidance.ig_scale in wanted]
        self._curve_nodes = {p.evaluate for p in curve}
        self._nodes = {p.evaluate for p in (*curve, *final)}
        self.targets = [p.evaluate for p in (*curve, *final)]

    def waiting(self, node: Node) -> None:
        """Another process builds the node."""

    def training(self, progress: TrainProgress) -> None:
        """A training moved on."""

    def finished(self, node: Node, done: int, total: int) -> None:  # noqa: ARG002
        """An artifact is there."""
        if node in self._nodes:
            self.look(node)

    def look(self, news: Node | None = None) -> None:
        """Enter what is published and not entered yet; with `news`, say it."""
        with self._lock:
            book, results = self._driver.book, collect(self._driver.home.store, self._graph)
            for m in (*results.curve, *results.final):
                if m.point.evaluate == news:
                    self._driver.heard(self.unit, m)
            curve = {m.point.step: CurvePoint(m.fid, (m.metrics["fid_high"] -
                                                      m.metrics["fid_low"]) / 2)
                     for m in results.curve if m.point.evaluate in self._curve_nodes}  # fmt: skip
            if curve != self._curve:
                self._curve = curve
                book.report(self._open, curve)
                self.hopeless = self._is_hopeless()
            if self.hopeless:
                self.unit = list(self._open)
                if self.pipeline is not None:
                    self.pipeline.stop()
                return
            # What is said of trials must not depend on which of their parts came first.
            judged = len(curve) == len(self._curve_nodes)
            for m in results.final if judged else ():
                for trial in [t for t in self._open if t.point.ig_scale == m.scale]:
                    book.complete(trial, m.fid, _facts(m, results.store))
                    self._open.remove(trial)

    def _is_hopeless(self) -> bool:
        """Compared with the trainings that were finished when this one is judged."""
        trials = self._driver.book.trials()
        own = self.unit[0].point.training
        finished = {t.point.training: t.curve for t in trials
                    if t.state == "COMPLETE" and t.point.training != own}  # fmt: skip
        steps = sorted(set(self._curve) - {max(self._graph.experiment.train.checkpoint_steps)})
        beginnings = ({step: self._curve[step] for step in steps[:count]}
                      for count in range(1, len(steps) + 1))  # fmt: skip
        rule, others = self._driver.study.pruning, list(finished.values())
        return any(is_hopeless(beginning, others, rule) for beginning in beginnings)


def _facts(m: Measurement, store: Store) -> dict[str, object]:
    """What a complete trial says besides its FID; the seconds are those of its own samples."""
    own = (node for node in closure([m.point.evaluate]) if node.stage in ("sample", "evaluate"))
    return {
        "fid_low": m.metrics["fid_low"],
        "fid_high": m.metrics["fid_high"],
        "num_samples": m.metrics["num_samples"],
        "evaluate": f"{m.point.evaluate.kind}/{m.point.evaluate.key}",
        "point_seconds": round(work_seconds(store, own), 3),
    }
