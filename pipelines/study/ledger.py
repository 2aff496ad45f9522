"""Ledger of a study: its trials in an Optuna storage.

A trial is one point (auxiliary layer, auxiliary weight, guidance scale); the trials of one training
are a trial group. A trial is added in one step with its parameters and its driver. If a driver
dies, its trials stay RUNNING, and the next driver claims them under the same numbers. The next
points follow, under a lock, from the recorded trials alone: an interrupted study continues as if it
had not been interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import uuid
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState, create_trial

from pipelines.store.keys import content_key
from pipelines.store.locks import Lock, wait_for_lock, waited_for
from pipelines.study.search import at_rest, companions, distributions, propose, reserved, room_for
from pipelines.study.storage import (
    DRIVERS,
    GOAL,
    IDENTITY,
    check_same,
    importances,
    name_store,
    open_storage,
    retry_while_unavailable,
)
from pipelines.study.trials import (
    CURVE,
    FACTS,
    LOSSES,
    OWNER,
    Trial,
    curve_to_json,
    own_trials,
    parameters_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from optuna.trial import FrozenTrial

    from experiments.study import Point, Study
    from pipelines.store.base import Store
    from pipelines.study.trials import Curve

DRIVER_LOCK = ".drivers/driver-"


class StudyLedger:
    """Trials of a study in its storage, for one driver."""

    def __init__(self, study: Study, url: str, store: Store) -> None:
        """Open the study, or create it.

        Args:
            study: Search space and settings.
            url: Database (SQLAlchemy URL).
            store: Store of the artifacts, which also holds the locks of the study's drivers.

        Raises:
            ValueError: If the URL is invalid, the database cannot be reached, or it holds another
                study of that name.
        """
        self.study, self.store = study, store
        self.driver = uuid.uuid4().hex[:12]
        self.last_seen: list[Trial] = []
        self.stopped = threading.Event()
        """Set to end all waiting for the storage."""
        self._alive = self._lock_of(self.driver)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self._open(url)
        except BaseException:
            self._alive.release(delete=True)
            raise

    def _open(self, url: str) -> None:
        with self._locked("storage"):  # a new database is set up by one process
            # Another driver that removes locks of dead drivers may hold it for a moment.
            wait_for_lock(self._alive, self.store.poll_seconds / 2, self.stopped.is_set)
            for left in self.store.lock_names(DRIVER_LOCK):
                self._lives(left.removesuffix(".lock"))  # removes the lock of a dead driver
            self._storage = open_storage(url)
            self._optuna = self._retry(
                functools.partial(
                    optuna.create_study,
                    storage=self._storage,
                    study_name=self.study.name,
                    direction="minimize",
                    load_if_exists=True,
                )
            )
            check_same(self._optuna, self.study, name_store(self.store))

    def _retry(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401
        return retry_while_unavailable(act, self.stopped.is_set)

    def close(self) -> None:
        """Release the running trials, so that another driver may claim them at once."""
        self._alive.release(delete=True)
        self._storage.remove_session()

    # Reading trials

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        self.last_seen = [trial for trial, _ in self._own_trials()]
        return self.last_seen

    def _own_trials(self) -> list[tuple[Trial, FrozenTrial]]:
        return own_trials(self._retry(lambda: self._storage.get_all_trials(self._optuna._study_id)))

    # Claiming trials

    def claim(self, wanted: int) -> list[Trial] | None:
        """Claim the trial group of a dead driver, or add new trials; at most `wanted` in all.

        Trials of dead drivers come first; then further scales of trainings that lack some; then a
        point that the sampler proposes, with further scales of its training.

        Returns:
            The trials; empty if there is nothing left to do; None if other drivers are running, in
            which case a later call may return trials.
        """
        with self._locked(self._optuna.study_name):
            trials = self.trials()
            orphans = [t for t in trials if t.state == "RUNNING" and not self._lives(t.owner)]
            if orphans:
                others = [t for t in trials if t not in orphans]
                trial_group = [t for t in orphans if t.point.training == orphans[0].point.training]
                trial_group = trial_group[: max(room_for(others, wanted), 0)]
                for trial in trial_group:
                    self._attribute(trial.number, OWNER, self.driver)
                if not trial_group:
                    return self._nothing(others, wanted)
                # The driver may have died before it had added all trials of the group.
                siblings = [t for t in trials if t.point.training == trial_group[0].point.training]
                room = room_for(others, wanted) - len(trial_group)
                return [*trial_group, *self._add(companions(self.study, siblings, room), siblings)]
            room = room_for(trials, wanted)
            for siblings in at_rest(trials):
                points = companions(self.study, siblings, room)
                if points:
                    return self._add(points, siblings)
            room -= reserved(self.study, trials)
            first = self._propose(trials) if room > 0 else None
            if first is None:
                return self._nothing(trials, wanted)
            siblings = [t for t in trials if t.point.training == first.training]
            return self._add(
                [first, *companions(self.study, [*siblings, first], room - 1)], siblings
            )

    def _nothing(self, trials: Sequence[Trial], wanted: int) -> list[Trial] | None:
        running = any(trial.state == "RUNNING" for trial in trials)
        complete = sum(trial.state == "COMPLETE" for trial in trials)
        return None if running and complete < wanted else []

    def _add(self, points: Sequence[Point], siblings: Sequence[Trial]) -> list[Trial]:
        """Add points as trials of this driver; each in one step."""
        curve = next((t.curve for t in siblings if t.curve), {})
        for point in points:
            trial = create_trial(
                state=TrialState.RUNNING,
                params=parameters_of(point),
                distributions=distributions(self.study),
                user_attrs={OWNER: self.driver, CURVE: curve_to_json(curve)},
                intermediate_values={step: found.fid for step, found in curve.items()},
            )
            self._retry(functools.partial(self._add_one, point, trial))
        added = set(points)
        return [t for t in self._mine() if t.point in added]

    def _add_one(self, point: Point, trial: FrozenTrial) -> None:
        """Add a trial unless an earlier attempt, whose answer was lost, has added it."""
        if point not in {t.point for t in self._mine()}:
            self._optuna.add_trial(trial)

    def _mine(self) -> list[Trial]:
        return [t for t in self.trials() if t.owner == self.driver and t.state == "RUNNING"]

    def _propose(self, trials: Sequence[Trial]) -> Point | None:
        return propose(self.study, trials, [trial for _, trial in self._own_trials()])

    # Recording results

    def report(self, trial_group: Sequence[Trial], curve: Curve) -> None:
        """Record the FID curve of a training so far in each of its running trials."""
        for trial in trial_group:
            for step, point in curve.items():
                report = functools.partial(
                    self._storage.set_trial_intermediate_value,
                    step=step,
                    intermediate_value=point.fid,
                )
                self._on_running(trial.number, report)
            self._attribute(trial.number, CURVE, curve_to_json(curve))

    def complete(self, trial: Trial, fid: float, facts: dict[str, Any]) -> None:
        """Record the FID of a trial; repeating it changes nothing."""
        self._attribute(trial.number, FACTS, facts)
        self._finish(trial, TrialState.COMPLETE, fid)

    def prune(self, trial_group: Sequence[Trial], curve: Curve) -> None:
        """Record that a training was pruned, with its FID curve so far."""
        last = curve[max(curve)].fid if curve else None
        for trial in trial_group:
            self._finish(trial, TrialState.PRUNED, last)

    def fail(self, trial_group: Sequence[Trial], reason: str) -> None:
        """Record that a training failed, with the reason."""
        for trial in trial_group:
            self._attribute(trial.number, "igdit.error", reason)
            self._finish(trial, TrialState.FAIL, None)

    def goal(self, trials: int) -> int:
        """Record how many trials are wanted; returns the highest number ever recorded."""
        known = self._retry(lambda: self._optuna.user_attrs.get(GOAL, 0))
        if trials > known:
            self._retry(lambda: self._optuna.set_user_attr(GOAL, trials))
        return max(trials, known)

    def lost(self, trial_group: Sequence[Trial]) -> int:
        """Record that a training lost its workers for good; returns the number of losses."""
        count = 1 + max(trial.losses for trial in trial_group)
        for trial in trial_group:
            self._attribute(trial.number, LOSSES, count)
        return count

    @functools.cached_property
    def identity(self) -> str:
        """Return the name of the study in MLflow and the register; it never changes."""
        return str(self._retry(lambda: self._optuna.user_attrs[IDENTITY]))

    def importances(self) -> dict[str, float]:
        """Return Optuna's parameter importances, largest first; empty if trials are too few."""
        return importances([trial for _, trial in self._own_trials()])

    def _finish(self, trial: Trial, state: TrialState, value: float | None) -> None:
        values = None if value is None else [value]
        self._on_running(
            trial.number,
            functools.partial(self._storage.set_trial_state_values, state=state, values=values),
        )

    def _attribute(self, number: int, key: str, value: Any) -> None:  # noqa: ANN401
        self._on_running(
            number, functools.partial(self._storage.set_trial_user_attr, key=key, value=value)
        )

    def _on_running(self, number: int, act: Callable[[int], object]) -> None:
        """Write to a trial in the storage, unless it is finished."""
        study_id = self._optuna._study_id

        def write() -> None:
            found = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
            if not self._storage.get_trial(found).state.is_finished():
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    act(found)

        self._retry(write)

    # Locks

    def _lives(self, driver: str) -> bool:
        """Return whether a driver is running: the lock of a dead driver is free, and is removed."""
        if driver == self.driver:
            return True
        lock = self._lock_of(driver)
        free = lock.acquire()
        lock.release(delete=True)
        return not free

    def _lock_of(self, driver: str) -> Lock:
        return self.store.lock(f"{DRIVER_LOCK}{driver}.lock")

    def _locked(self, name: str) -> AbstractContextManager[None]:
        """Exclude other drivers; the lock of a driver that dies is released."""
        lock = self.store.lock(f"{DRIVERS}plan-{content_key(name)}.lock")
        return waited_for(lock, self.store.poll_seconds / 2, self.stopped.is_set)
