"""Driver of a study: parallel trainings, each evaluated at several guidance scales."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.common.errors import (
    ArtifactError,
    MemoryExhaustedError,
    SamplingFailedError,
    StoppedError,
    StudyError,
    WorkerLostError,
)
from pipelines.common.formatting import metric_interval, number
from pipelines.common.redaction import redact
from pipelines.execution.runners import describe_runner
from pipelines.execution.scheduler import Pipeline
from pipelines.graph.graph import Graph
from pipelines.status.activity import Activity
from pipelines.store.register import Record, remember
from pipelines.study.damage import rebuild_damaged
from pipelines.study.trials import numbered
from pipelines.study.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from experiments.study import Study
    from pipelines.execution.runner import Runner
    from pipelines.execution.session import RunnerSession
    from pipelines.results.measurements import Measurement
    from pipelines.store.home import Home
    from pipelines.study.ledger import StudyLedger
    from pipelines.study.trials import Trial

LOSSES_BEFORE_FAILURE = 2
"""Losses of all workers after which a training counts as failed."""
FAILURES_IN_A_ROW = 3
"""Consecutive failed trainings after which the study stops."""


@dataclass(frozen=True)
class Budget:
    """Limits of a study."""

    trials: int
    """Number of trials to complete in all."""
    hours: float | None = None
    """Hours of this command after which no training is started."""
    target_fid: float | None = None
    """FID of a trial from which on no training is started."""


class _Slot(threading.Thread):
    """Thread with an event that is set when it ends.

    If a signal interrupts `join`, Python 3.11 treats the thread as ended, and its session would be
    closed while it is in use.
    """

    def __init__(self, work: Callable[[], None], number: int) -> None:
        super().__init__(name=f"slot-{number}")
        self._work, self.ended = work, threading.Event()

    def run(self) -> None:
        """Call the function of the thread."""
        try:
            self._work()
        finally:
            self.ended.set()


class StudyDriver:
    """Driver that runs a study until its budget is spent; several drivers may share a study."""

    def __init__(
        self,
        ledger: StudyLedger,
        home: Home,
        budget: Budget,
        session: RunnerSession,
        log: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        activity: Activity | None = None,
    ) -> None:
        """Prepare to run a study.

        Args:
            ledger: Ledger of the study.
            home: Home of the results.
            budget: Limits of the study.
            session: Runners of the trainings, and their number; closed at the end.
            log: Prints a line.
            changed: Called when trials changed.
            activity: Activity of this process; None: it publishes nothing.
        """
        self.ledger, self.home, self.budget = ledger, home, budget
        self.study: Study = ledger.study
        self._log, self._changed = log, changed
        # An activity that is not entered publishes nothing.
        self._activity = activity or Activity(home, "study", ledger.study.name)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pipelines: set[Pipeline] = set()
        self._session = session
        self._error: BaseException | None = None
        self._failures, self._announced = 0, False
        self._deadline = None if budget.hours is None else time.monotonic() + 3600 * budget.hours

    def run(self) -> None:
        """Evaluate points until the budget is spent.

        Raises:
            StudyError: If trainings failed one after the other, or the database is gone.
            ArtifactError: If the store cannot be used.
        """
        slots: list[_Slot] = []
        try:
            slots += [_Slot(self._work, number) for number in range(self._slots())]
            for slot in slots:
                slot.start()
            for slot in slots:
                slot.ended.wait()
        finally:
            try:
                self._halt()
                for slot in slots:
                    if slot.ident is not None:
                        slot.ended.wait()
            finally:
                self._session.close()
        if self._error is not None:
            raise self._error

    def _slots(self) -> int:
        """Return the number of parallel trainings; a complete study starts no cluster."""
        if sum(t.state == "COMPLETE" for t in self.ledger.trials()) >= self.budget.trials:
            return 1
        with self._for_running():
            return self._session.experiments()

    def _halt(self) -> None:
        """Stop every slot soon; the next driver claims the running trials."""
        self._stop.set()
        self.ledger.stopped.set()
        self._session.give_up()
        with self._lock:
            for pipeline in self._pipelines:
                pipeline.stop()

    def _work(self) -> None:
        try:
            while not self._stop.is_set() and not self._spent():
                trial_group = self.ledger.claim(self.budget.trials)
                if trial_group:
                    self._work_on(trial_group)
                elif trial_group is None:
                    self._stop.wait(1.0)  # other drivers may die or prune
                else:
                    return
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            with self._lock:
                self._error = self._error or error
            self._halt()

    def _spent(self) -> bool:
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        target = self.budget.target_fid
        return target is not None and any(
            t.fid is not None and t.fid <= target for t in self.ledger.trials()
        )

    def _work_on(self, trial_group: list[Trial]) -> None:
        """Evaluate or prune a trial group, and record failures.

        Raises:
            StudyError: If the training lost its workers, or too many trainings failed.
        """
        self._changed()
        try:
            self._evaluate_intact(trial_group)
            self._failures = 0
        except (StoppedError, StudyError, ArtifactError, OSError, MemoryExhaustedError):
            raise  # these are no failures of the trial
        except WorkerLostError as error:
            if self.ledger.lost(trial_group) < LOSSES_BEFORE_FAILURE:
                raise StudyError(
                    f"{trial_group[0].point.training_name}: {error}. Run the same command to "
                    f"continue from its last checkpoint."
                ) from error
            self._failed(trial_group, error)
        except Exception as error:  # noqa: BLE001 - a trial that fails is a result
            self._failed(trial_group, error)
        self._changed()

    def _evaluate_intact(self, trial_group: list[Trial]) -> None:
        try:
            rebuild_damaged(self.home.store, lambda: self._evaluate(trial_group), self._log)
        except SamplingFailedError:
            if len(trial_group) == 1:
                raise
            # Scales are sampled together: evaluate each alone to find those that fail.
            failures = [failure for trial in trial_group if (failure := self._fails_alone(trial))]
            if len(failures) == len(trial_group):
                raise failures[-1] from None

    def _fails_alone(self, trial: Trial) -> SamplingFailedError | None:
        try:
            self._evaluate_intact([trial])
        except SamplingFailedError as error:
            self._record_failure([trial], error)
            return error
        return None

    def _record_failure(self, trial_group: list[Trial], error: Exception) -> str:
        reason = redact(f"{type(error).__name__}: {error}")  # it is stored in the database
        self.ledger.fail(trial_group, reason)
        scale = f", scale {trial_group[0].point.ig_scale:g}" if len(trial_group) == 1 else ""
        training = f"{trial_group[0].point.training_name}{scale}"
        self._log(f"failed    {numbered(trial_group)}: {training}: {reason}")
        return reason

    def _failed(self, trial_group: list[Trial], error: Exception) -> None:
        reason = self._record_failure(trial_group, error)
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            raise StudyError(
                f"{self._failures} trainings failed one after the other; the last one: {reason}"
            ) from error

    def _evaluate(self, trial_group: list[Trial]) -> None:
        """Build the artifacts of the trials, and record their results."""
        experiment = self.study.training_of(t.point for t in trial_group)
        graph, store = Graph(experiment), self.home.store
        name, identity = self.study.name, self.ledger.identity
        remember(store, Record.of_study(name, identity, experiment, graph.run_key))
        watch = Watch(self.ledger, store, graph, trial_group, self._on_measured)
        listener = self._activity.follow(graph, watch, trial_group[0].point.training_name)
        pipeline = Pipeline(store, experiment, self._runner, listener)
        watch.pipeline = pipeline
        with self._lock:
            self._pipelines.add(pipeline)
        try:
            if self._stop.is_set():
                raise StoppedError("the study was stopped")
            watch.look()  # a claimed training may have results already
            if not watch.should_prune:
                pipeline.run(watch.targets)
                watch.look()
        except StoppedError:
            if not watch.should_prune:
                raise
        finally:
            listener.close()
            with self._lock:
                self._pipelines.discard(pipeline)
        if watch.should_prune:
            self.ledger.prune(watch.trial_group, watch.curve)
            self._log(
                f"pruned    {numbered(watch.trial_group)}: {trial_group[0].point.training_name}, "
                f"FID above the median of the others at {self.study.pruning.patience} checkpoints"
            )

    def _runner(self) -> Runner:
        with self._lock:
            if not self._announced:
                self._announced = True
                self._log(
                    f"start     {describe_runner(self.study.experiment.resources)}, "
                    f"{self._session.experiments()} trainings at once"
                )
        with self._for_running():
            return self._session.runner()

    @contextmanager
    def _for_running(self) -> Iterator[None]:
        """Turn errors of starting runners into StudyError, as they are no failures of a trial."""
        try:
            yield
        except StoppedError:
            raise
        except Exception as error:
            raise StudyError(f"nothing can run here: {error}") from error

    def _on_measured(self, trial_group: Sequence[Trial], done: Measurement) -> None:
        """Log the measurement of a point."""
        self._log(
            f"FID {number(done.fid):>8} [{metric_interval(done.metrics)}]  "
            f"{measured_trials(trial_group, done, self.study)}, scale {done.guidance.ig_scale:g}, "
            f"step {done.point.step}, {done.point.num_samples:,} samples"
        )


def measured_trials(trial_group: Sequence[Trial], done: Measurement, study: Study) -> str:
    """Name the trials and the training that a measurement belongs to.

    At the same scale and step there may be two measurements: that of a trial, and that of the FID
    curve, which has fewer samples and belongs to all trials of the training.
    """
    experiment, point = study.experiment, done.point
    own = [trial for trial in trial_group if study.guidance_at(trial.point) == done.guidance]
    if (point.step, point.num_samples) != (
        experiment.train.last_step,
        experiment.evaluation.num_samples,
    ):
        own = []
    which = numbered(own) if own else f"curve of {numbered(trial_group)}"
    return f"{which}: {trial_group[0].point.training_name}"
