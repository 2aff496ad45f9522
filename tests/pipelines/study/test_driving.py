"""What a driver decides, with nothing to build."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from experiments import Point
from pipelines.common.errors import (
    ArtifactError,
    SamplingFailedError,
    StoppedError,
    StudyError,
    TrainingFailedError,
    WorkerLostError,
)
from pipelines.execution.session import RunnerSession
from pipelines.stages.build import WORK
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.home import Home
from pipelines.store.keys import Ref
from pipelines.study import driver as module
from pipelines.study.driver import FAILURES_IN_A_ROW, Budget, StudyDriver
from pipelines.study.trials import Trial
from tests.pipelines.study.conftest import small_study


def trial(number, fid=None, weight=None, scale=1.0, state=None):
    point = Point(aux_layer=1, aux_weight=weight or (1 + number) / 10, ig_scale=scale)
    state = state or ("RUNNING" if fid is None else "COMPLETE")
    return Trial(number, point, state, fid, {}, {}, "a")


class Ledger:
    """A study whose trial groups are given, and which writes down what is recorded."""

    def __init__(self, trial_groups=(), known=()):
        self.study, self.identity = small_study(), "5e"
        self.stopped = threading.Event()
        self.trial_groups, self.known, self.recorded, self.losses = (
            list(trial_groups),
            list(known),
            [],
            0,
        )

    def trials(self):
        return self.known

    def claim(self, wanted):
        return self.trial_groups.pop(0) if self.trial_groups else []

    def lost(self, trial_group):
        self.losses += 1
        return self.losses

    def fail(self, trial_group, reason):
        self.recorded.append(("FAIL", [t.number for t in trial_group], reason))

    def prune(self, trial_group, curve):
        self.recorded.append(("PRUNED", [t.number for t in trial_group], curve))


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Factory: a driver of such trial groups; evaluating one raises what is given, if anything."""

    def make(ledger, outcomes=None, **budget):
        said = []
        home = Home(tmp_path)
        session = RunnerSession(WORK, ledger.study.experiment.resources, home.scratch, 1)
        driver = StudyDriver(ledger, home, Budget(99, **budget), session, said.append)
        driver.said, driver.evaluated = said, []
        if outcomes is not None:

            def evaluate(trial_group):
                driver.evaluated.append([t.number for t in trial_group])
                outcome = outcomes(trial_group) if callable(outcomes) else outcomes.pop(0)
                if outcome is not None:
                    raise outcome

            monkeypatch.setattr(driver, "_evaluate", evaluate)
        return driver

    return make


def trial_groups(count):
    return [[trial(number)] for number in range(count)]


def test_all_trial_groups_are_worked_on_one_after_the_other(drive):
    driver = drive(Ledger([[trial(0), trial(1)], [trial(2)]]), [None, None])
    driver.run()
    assert driver.evaluated == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("target", "fid", "spent"),
    [(5.0, 5.0, True), (5.0, 4.9, True), (5.0, 5.1, False), (5.0, None, False), (None, 0.1, False)],
)
def test_a_target_is_reached_by_an_fid_that_is_as_good(drive, target, fid, spent):
    ledger = Ledger(trial_groups(2), [trial(9, fid), trial(10)])
    driver = drive(ledger, [None, None], target_fid=target)
    driver.run()
    assert driver.evaluated == ([] if spent else [[0], [1]])


def test_hours_are_those_of_the_command(drive, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def evaluate(trial_group):
        now[0] += 1800.0

    driver = drive(Ledger(trial_groups(9)), evaluate, hours=1.25)
    driver.run()
    assert driver.evaluated == [[0], [1], [2]], "begun after 0, 30 and 60 minutes of 75"


def test_only_failures_in_a_row_stop_a_study(drive):
    bad = TrainingFailedError("the loss of step 3 is not finite")
    driver = drive(Ledger(trial_groups(7)), [bad, bad, None, bad, bad, None, bad])
    driver.run()
    assert len(driver.evaluated) == 7
    assert [numbers for _, numbers, _ in driver.ledger.recorded] == [[0], [1], [3], [4], [6]]
    assert driver.said[0] == (
        "failed    trial 0: layer 1, weight 0.1, scale 1: TrainingFailedError: the loss of step 3 "
        "is not finite"
    )
    driver = drive(Ledger(trial_groups(7)), [None, *(FAILURES_IN_A_ROW * [bad]), None])
    with pytest.raises(StudyError, match=r"3 trainings failed .* step 3 is not finite"):
        driver.run()
    assert len(driver.evaluated) == 1 + FAILURES_IN_A_ROW


@pytest.mark.parametrize(
    "error",
    [StoppedError("stop"), StudyError("gone"), ArtifactError("no room"), OSError("no room")],
)
def test_what_is_no_fault_of_a_training_ends_the_study_and_leaves_its_trials(drive, error):
    driver = drive(Ledger(trial_groups(3)), [error])
    with pytest.raises(type(error)):
        driver.run()
    assert driver.ledger.recorded == []
    assert driver.evaluated == [[0]]
    assert driver.ledger.stopped.is_set()


def test_a_training_fails_when_it_loses_its_workers_the_second_time(drive):
    lost = WorkerLostError("a worker was lost")
    ledger = Ledger(trial_groups(3))
    with pytest.raises(StudyError, match=r"weight 0\.1: a worker was lost\. Run the same command"):
        drive(ledger, [lost]).run()
    assert ledger.recorded == []
    ledger.trial_groups = trial_groups(2)
    drive(ledger, [lost, None]).run()
    assert [(state, numbers) for state, numbers, _ in ledger.recorded] == [("FAIL", [0])]


def test_damage_is_set_aside_once(drive, tmp_path):
    store = Home(tmp_path).store
    with store.publish(Ref("images", "a" * 20), {}) as folder:
        (folder / "file").write_text("x")
    broken = CorruptArtifactError(Ref("images", "a" * 20), tmp_path, "cut")
    driver = drive(Ledger(trial_groups(1)), [broken, None])
    driver.run()
    assert driver.evaluated == [[0], [0]]
    assert store.find(Ref("images", "a" * 20)) is None
    driver = drive(Ledger(trial_groups(1)), [broken, broken])
    with pytest.raises(CorruptArtifactError):
        driver.run()


def test_of_scales_that_are_sampled_together_only_the_bad_one_fails(drive):
    def evaluate(trial_group):
        return (
            SamplingFailedError("NaN")
            if any(t.point.ig_scale == 3.0 for t in trial_group)
            else None
        )

    trial_group = [trial(n, weight=0.5, scale=scale) for n, scale in enumerate((1.0, 3.0, 2.0))]
    driver = drive(Ledger([trial_group]), evaluate)
    driver.run()
    assert driver.evaluated == [[0, 1, 2], [0], [1], [2]]
    assert driver.ledger.recorded == [("FAIL", [1], "SamplingFailedError: NaN")]
    assert driver._failures == 0
    driver = drive(Ledger([trial_group]), lambda trial_group: SamplingFailedError("NaN"))
    driver.run()
    assert driver._failures == 1, "all of them: it is the training that failed"


def test_an_error_of_one_training_ends_those_beside_it(drive, monkeypatch):
    """Two at a time: what ends one, ends the other before its next trial group."""
    both = threading.Barrier(2)

    def evaluate(trial_group):
        both.wait(30)
        if trial_group[0].number == 0:
            return ArtifactError("no room")
        assert driver._stop.wait(30)
        return None

    driver = drive(Ledger(trial_groups(99)), evaluate)
    monkeypatch.setattr(driver, "_slots", lambda: 2)
    with pytest.raises(ArtifactError, match="no room"):
        driver.run()
    assert sorted(driver.evaluated) == [[0], [1]]


class Pipelines:
    """Stands for `dag.Pipeline` and `study.watch.Watch`: what is pruned when."""

    def __init__(self, monkeypatch, *, at_first=False, at_last=False, stopped=False):
        self.ran, self.looks, self.stopped = [], 0, stopped
        self.at_first, self.at_last = at_first, at_last
        monkeypatch.setattr(module, "Pipeline", lambda *_: self)
        monkeypatch.setattr(module, "Watch", self._watch)
        monkeypatch.setattr(module, "remember", lambda *_: None)

    def _watch(self, ledger, store, graph, trial_group, on_measured):
        watch = SimpleNamespace(
            should_prune=False, trial_group=trial_group, curve={}, targets=["all"]
        )

        def look():
            self.looks += 1
            watch.should_prune = self.at_first if not self.ran else self.at_last

        watch.look = look
        return watch

    def run(self, targets):
        self.ran.append(targets)
        if self.stopped:
            raise StoppedError("stop")

    def stop(self):
        self.halted = True


def test_what_is_bad_by_what_is_there_is_pruned_before_any_work(drive, monkeypatch):
    """Its driver was killed between the FID that decides and giving it up."""
    pipelines = Pipelines(monkeypatch, at_first=True)
    driver = drive(Ledger(trial_groups(1)))
    driver.run()
    assert pipelines.ran == []
    assert driver.ledger.recorded == [("PRUNED", [0], {})]
    assert driver.said == [
        "pruned    trial 0: layer 1, weight 0.1, FID above the median of the others at 2 "
        "checkpoints"
    ]


def test_a_training_is_built_and_looked_at_again_at_its_end(drive, monkeypatch):
    pipelines = Pipelines(monkeypatch)
    driver = drive(Ledger(trial_groups(1)))
    driver.run()
    assert (pipelines.ran, pipelines.looks) == ([["all"]], 2)
    assert driver.ledger.recorded == []
    assert driver._pipelines == set()
    Pipelines(monkeypatch, at_last=True)
    driver = drive(Ledger(trial_groups(1)))
    driver.run()
    assert driver.ledger.recorded == [("PRUNED", [0], {})]


def test_a_study_that_is_stopped_begins_nothing(drive, monkeypatch):
    pipelines = Pipelines(monkeypatch)
    driver = drive(Ledger(trial_groups(1)))
    driver._stop.set()
    with pytest.raises(StoppedError):
        driver._evaluate([trial(0)])
    assert (pipelines.ran, pipelines.looks) == ([], 0)
    pipelines = Pipelines(monkeypatch, stopped=True)
    driver = drive(Ledger(trial_groups(1)))
    with pytest.raises(StoppedError):
        driver._evaluate([trial(0)])
    assert driver.ledger.recorded == [], "a stop is no verdict"


def test_a_study_that_is_over_asks_for_no_room(drive, monkeypatch):
    ledger = Ledger(known=[trial(n, 5.0) for n in range(99)])
    driver = drive(ledger, [])
    monkeypatch.setattr(driver._session, "experiments", lambda: 1 / 0)
    driver.run()
    ledger.known.pop()
    with pytest.raises(StudyError, match="nothing can run here: division by zero"):
        driver.run()


def test_trials_that_others_work_on_are_waited_for(drive, monkeypatch):
    ledger = Ledger([None, None, [trial(0)]])
    driver = drive(ledger, [None])
    waits = []
    monkeypatch.setattr(driver._stop, "wait", waits.append)
    driver.run()
    assert (waits, driver.evaluated) == ([1.0, 1.0], [[0]])
