"""The book of a study: its trials in an Optuna storage.

One point (auxiliary layer, auxiliary weight, guidance scale) is one trial. A trial is entered
whole, with its parameters and the driver that works on it; a driver that dies leaves its trials
RUNNING, and the next one takes them over under the same numbers. What is entered next is decided
under a lock, from the trials that are there: a study that was interrupted goes on as if it had not
been.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from experiments.study import Point, Study
from pipelines.keys import content_key
from pipelines.locks import FileLock
from pipelines.study.plan import Curve, next_scales
from pipelines.study.storage import make_sampler, open_storage, outlast
from pipelines.study.trials import (
    CURVE,
    FACTS,
    OWNER,
    SPEC,
    Trial,
    curve_to_json,
    differences,
    parameters_of,
    read_trial,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


class StudyBook:
    """A study in its storage, as one driver sees it."""

    def __init__(self, study: Study, url: str, folder: Path) -> None:
        """Open the study, or enter it.

        Args:
            study: What is searched for, and how.
            url: Database, as SQLAlchemy writes it.
            folder: Where drivers of the study's store keep their locks.

        Raises:
            ValueError: the URL is none, the database cannot be reached, or the study there is
                another one of that name.
        """
        self.study, self.folder = study, folder
        self.driver = uuid.uuid4().hex[:12]
        self._alive = FileLock(folder / f"driver-{self.driver}.lock")
        self._alive.acquire()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._locked("storage"):  # a new database is set up by one process
            self._storage = open_storage(url)
            self._optuna = outlast(
                lambda: optuna.create_study(storage=self._storage, study_name=study.name,
                                            direction="minimize", load_if_exists=True)
            )  # fmt: skip
            self._check_same()

    def close(self) -> None:
        """Let go: trials that are still running may be taken over at once."""
        self._alive.release(remove=True)
        self._storage.remove_session()

    # What is known

    def trials(self) -> list[Trial]:
        """All trials, by number."""
        found = outlast(lambda: self._storage.get_all_trials(self._optuna._study_id))
        return [read_trial(trial) for trial in found if trial.params]

    # What is next

    def next_unit(self, wanted: int) -> list[Trial]:
        """Enter or take over the trials of one training; none if `wanted` are on their way.

        Trials of dead drivers come first. Else the sampler proposes a point, and the scales that
        go with it are entered too.
        """
        with self._locked(self._optuna.study_name):
            trials = self.trials()
            orphans = [t for t in trials if t.state == "RUNNING" and not self._lives(t.owner)]
            if orphans:
                unit = [t for t in orphans if t.point.training == orphans[0].point.training]
                for trial in unit:
                    self._attribute(trial.number, OWNER, self.driver)
                return unit
            room = self._room(trials, wanted) - self._reserved(trials)
            if room <= 0:
                return []
            first = self._propose(trials)
            siblings = [t for t in trials if t.point.training == first.training]
            return self._enter([first, *self._companions([*siblings, first], room - 1)], siblings)

    def refine(self, unit: Sequence[Trial], wanted: int) -> list[Trial]:
        """Enter the scales that a training is to be evaluated at next, if any."""
        with self._locked(self._optuna.study_name):
            trials = self.trials()
            siblings = [t for t in trials if t.point.training == unit[0].point.training]
            room = self._room(trials, wanted)
            return self._enter(self._companions(siblings, room), siblings)

    @staticmethod
    def _room(trials: Sequence[Trial], wanted: int) -> int:
        """Trials that may still be entered."""
        return wanted - sum(t.state in ("RUNNING", "COMPLETE") for t in trials)

    def _reserved(self, trials: Sequence[Trial]) -> int:
        """Scales that trainings at work are still going to be refined at."""
        if self.study.mode == "joint":
            return 0
        counts = Counter(t.point.training for t in trials if t.state in ("RUNNING", "COMPLETE"))
        at_work = {t.point.training for t in trials if t.state == "RUNNING"}
        each = self.study.scales_per_training
        return sum(max(each - counts[training], 0) for training in at_work)

    def _companions(self, siblings: Sequence[Trial | Point], room: int) -> list[Point]:
        study = self.study
        if study.mode == "joint" or room <= 0:
            return []
        known: dict[float, float | None] = {}
        for item in siblings:
            point, fid = (item, None) if isinstance(item, Point) else (item.point, item.fid)
            known[point.ig_scale] = fid
        base = siblings[0] if isinstance(siblings[0], Point) else siblings[0].point
        scales = next_scales(known, study.space.ig_scale, study.scales_per_training)
        return [Point(aux_layer=base.aux_layer, aux_weight=base.aux_weight, ig_scale=scale)
                for scale in scales[:room]]  # fmt: skip

    def _enter(self, points: Sequence[Point], siblings: Sequence[Trial]) -> list[Trial]:
        """Enter points as trials of this driver; each appears whole."""
        curve = next((t.curve for t in siblings if t.curve), {})
        for point in points:
            trial = create_trial(
                state=TrialState.RUNNING,
                params=parameters_of(point),
                distributions=self.distributions(),
                user_attrs={OWNER: self.driver, CURVE: curve_to_json(curve)},
                intermediate_values={step: found.fid for step, found in curve.items()},
            )  # fmt: skip
            outlast(functools.partial(self._optuna.add_trial, trial), again=False)
        entered = set(points)
        return [t for t in self.trials() if t.point in entered and t.owner == self.driver
                and t.state == "RUNNING"]  # fmt: skip

    def _propose(self, trials: Sequence[Trial]) -> Point:
        """What the sampler says after these trials: a function of them and of the seed.

        It is asked about a copy, so that nothing is entered before all of a point is known. A
        point that was evaluated is not proposed again while there are others.
        """
        known = {trial.point for trial in trials if trial.state != "FAIL"}
        size = self.study.layers[1] - self.study.layers[0] + 1
        size *= self.study.space.aux_weight.count * self.study.space.ig_scale.count
        seed = int(content_key([self.study.seed, len(trials)])[:8], 16)
        copy = optuna.create_study(direction="minimize", sampler=make_sampler(self.study, seed))
        copy.add_trials(outlast(lambda: self._optuna.get_trials(deepcopy=False)))
        point = self._point(copy.ask(self.distributions()).params)
        tries = 0
        while point in known and len(known) < size:
            tries += 1
            if tries == 20:  # the sampler is sure of itself: the search goes on by chance
                copy.sampler = optuna.samplers.RandomSampler(seed)
            point = self._point(copy.ask(self.distributions()).params)
        return point

    def distributions(self) -> dict[str, BaseDistribution]:
        """The search space in Optuna's terms."""
        weight, scale = self.study.space.aux_weight, self.study.space.ig_scale
        return {
            "aux_layer": IntDistribution(*self.study.layers),
            "aux_weight": FloatDistribution(weight.low, weight.high, step=weight.step),
            "ig_scale": FloatDistribution(scale.low, scale.high, step=scale.step),
        }

    def _point(self, params: dict[str, Any]) -> Point:
        weight, scale = self.study.space.aux_weight, self.study.space.ig_scale
        return Point(
            aux_layer=int(params["aux_layer"]),
            aux_weight=weight.value(weight.index(params["aux_weight"])),
            ig_scale=scale.value(scale.index(params["ig_scale"])),
        )

    # What came out

    def report(self, unit: Sequence[Trial], curve: Curve) -> None:
        """Enter the FID curve of a training, so far, with each of its running trials."""
        for trial in unit:
            for step, point in curve.items():
                report = functools.partial(self._storage.set_trial_intermediate_value,
                                           step=step, intermediate_value=point.fid)  # fmt: skip
                self._on_trial(trial.number, report)
            self._attribute(trial.number, CURVE, curve_to_json(curve))

    def complete(self, trial: Trial, fid: float, facts: dict[str, Any]) -> None:
        """Enter the FID of a trial; doing it again changes nothing."""
        self._attribute(trial.number, FACTS, facts)
        self._finish(trial, TrialState.COMPLETE, fid)

    def prune(self, unit: Sequence[Trial]) -> None:
        """Enter that a training was given up."""
        for trial in unit:
            last = trial.curve[max(trial.curve)].fid if trial.curve else None
            self._finish(trial, TrialState.PRUNED, last)

    def fail(self, unit: Sequence[Trial], reason: str) -> None:
        """Enter that a training failed, and of what."""
        for trial in unit:
            self._attribute(trial.number, "igdit.error", reason)
            self._finish(trial, TrialState.FAIL, None)

    def importances(self) -> dict[str, float]:
        """Optuna's parameter importances, largest first; empty while there are too few trials."""
        try:
            return dict(optuna.importance.get_param_importances(self._optuna))
        except (ValueError, RuntimeError):
            return {}

    def _finish(self, trial: Trial, state: TrialState, value: float | None) -> None:
        def finish(trial_id: int) -> None:
            if not self._storage.get_trial(trial_id).state.is_finished():
                values = None if value is None else [value]
                self._storage.set_trial_state_values(trial_id, state, values)

        self._on_trial(trial.number, finish)

    def _attribute(self, number: int, key: str, value: Any) -> None:  # noqa: ANN401
        def write(trial_id: int) -> None:
            if not self._storage.get_trial(trial_id).state.is_finished():
                self._storage.set_trial_user_attr(trial_id, key, value)

        self._on_trial(number, write)

    def _on_trial(self, number: int, act: Callable[[int], None]) -> None:
        study_id = self._optuna._study_id
        outlast(lambda: act(
            self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        ))  # fmt: skip

    # Keeping house

    def _check_same(self) -> None:
        """Enter what the study is, or compare with what it was.

        Raises:
            ValueError: it was another one.
        """
        fixed = self.study.fixed()
        known = outlast(lambda: self._optuna.user_attrs.get(SPEC))
        if known is None:
            outlast(lambda: self._optuna.set_user_attr(SPEC, fixed))
        elif (known := self._with_defaults(known)) != fixed:
            raise ValueError(
                f"study {self.study.name!r} was started with other settings: "
                f"{'; '.join(differences(known, fixed)[:8])}. A study compares like with like: "
                f"go on with the old settings, or start another one with --name."
            )

    def _with_defaults(self, known: dict[str, Any]) -> dict[str, Any]:
        """A study that was entered before an option existed had its default."""
        try:
            return Study.from_fixed(self.study.name, known).fixed()
        except (ValueError, KeyError, TypeError):
            return known

    def _lives(self, driver: str) -> bool:
        """Whether a driver is at work: the kernel frees its lock when it dies."""
        if driver == self.driver:
            return True
        lock = FileLock(self.folder / f"driver-{driver}.lock")
        free = lock.acquire()
        lock.release(remove=True)
        return not free

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """One driver at a time; a driver that dies lets go."""
        lock = FileLock(self.folder / f"plan-{content_key(name)}.lock")
        while not lock.acquire():
            time.sleep(0.05)
        try:
            yield
        finally:
            lock.release()
