"""The driver: trainings once, points told as they come, failures survived."""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import shutil
import signal
import time

import pytest

from experiments import LayerRange, PruningConfig, Range, Resources, SearchSpace
from pipelines.commands.study import StudyOptions, run_study
from pipelines.common.errors import ArtifactError, StudyError, TrainingFailedError, WorkerLostError
from pipelines.console.console import make_console
from pipelines.execution.machine import room_here
from pipelines.execution.session import RunnerSession
from pipelines.stages.build import WORK
from pipelines.store.home import Home
from pipelines.store.keys import Ref
from pipelines.study.driver import Budget, StudyDriver
from pipelines.study.findings import forecast
from pipelines.study.ledger import StudyLedger
from pipelines.study.search import propose
from pipelines.study.trials import CurvePoint
from tests.pipelines.study.conftest import claimed, run

pytestmark = pytest.mark.long


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def built(home, studied) -> Home:
    """A home without a study, whose store has all that the trials of `studied` need."""
    shutil.copytree(studied.home.store.root, home.store.root)
    return home


def ledger_of(home, study):
    url = f"sqlite:///{home.root / 'study.db'}"
    return StudyLedger(study, url, home.store)


def trials_of(home, study):
    ledger = ledger_of(home, study)
    try:
        return ledger.trials()
    finally:
        ledger.close()


def executed(home, kind):
    return [e for e in home.store.events() if e["event"] == "execute" and e["kind"] == kind]


def test_a_study_trains_once_for_each_layer_and_weight(studied, study):
    home, text = studied.home, studied.output
    trials = trials_of(home, study())
    assert [t.state for t in trials] == ["COMPLETE"] * 8
    trainings = {t.point.training for t in trials}
    assert len(trainings) == 2
    assert len(executed(home, "checkpoint")) == len(trainings)
    for kind in ("images", "features", "evaluate"):
        counts = collections.Counter(e["key"] for e in executed(home, kind))
        assert set(counts.values()) == {1}, kind
    assert "a training for each point would have taken" in text
    assert "8 complete" in text


def test_a_point_that_is_also_the_end_of_the_curve_is_said_once(built, study):
    evaluation = {
        "num_samples": 20,
        "curve_samples": 20,
        "shard_size": 20,
        "groups": 5,
        "kid_subset_size": 10,
        "kid_subsets": 1,
    }
    experiment = dataclasses.replace(
        study().experiment,
        evaluation=dataclasses.replace(study().experiment.evaluation, **evaluation),
    )
    text = run(built, study(experiment=experiment, scales_per_training=2), trials="2")
    said = [line.split("]")[-1] for line in text.splitlines() if line.startswith("FID ")]
    assert len(said) == len(set(said))
    assert sum("step 6" in line for line in said) >= 2


def test_every_trial_has_its_fid_interval_curve_and_artifact(studied, study):
    home = studied.home
    for trial in trials_of(home, study()):
        assert trial.facts["fid_low"] < trial.fid < trial.facts["fid_high"]
        assert sorted(trial.curve) == [2, 4, 6]
        assert home.store.find(Ref.parse(trial.facts["evaluate"])) is not None
        assert trial.facts["point_seconds"] > 0


def test_a_finished_study_does_nothing_but_say_what_it_found(studied, study):
    before = list(studied.home.store.events())
    text = run(studied.home, study(), trials="8")
    assert list(studied.home.store.events()) == before
    assert "8 complete" in text


def test_more_trials_can_be_added_to_a_study(studied, study):
    home = studied.home
    first = trials_of(home, study())
    run(home, study(), trials="+3")
    trials = trials_of(home, study())
    assert trials[:8] == first
    assert [t.state for t in trials] == ["COMPLETE"] * 11


def test_joint_mode_reuses_a_training_that_is_there(studied, study):
    home = studied.home
    before = executed(home, "checkpoint")
    training = trials_of(home, study())[0].point.training
    joint = study(name="joint", mode="joint")
    ledger = ledger_of(home, joint)
    point = dataclasses.replace(
        propose(joint, [], []), aux_layer=training[0], aux_weight=training[1]
    )
    ledger._add([point], [])
    ledger.close()
    run(home, joint, trials="1")
    assert trials_of(home, joint)[0].state == "COMPLETE"
    assert executed(home, "checkpoint") == before


def test_table_and_plots_are_written(studied):
    import pandas as pd

    folder = studied.home.report / "study-small"
    table = pd.read_parquet(folder / "trials.parquet")
    assert len(table) == 8
    assert table["fid"].notna().all()
    assert (table["train_seconds"] > 0).all()
    for name in ("fid_by_scale.png", "fid_curves.png"):
        assert (folder / name).stat().st_size > 10_000


def session_of(ledger, home):
    """One training at a time, as a command would open it."""
    return RunnerSession(WORK, ledger.study.experiment.resources, home.scratch, 1)


def drive(home, study, wanted, evaluate=None):
    """Run a driver whose evaluation of a trial group may be replaced."""
    ledger = ledger_of(home, study)
    driver = StudyDriver(ledger, home, Budget(wanted), session_of(ledger, home), lambda text: None)
    if evaluate is not None:
        original = driver._evaluate
        driver._evaluate = lambda trial_group: evaluate(trial_group, original)
    try:
        driver.run()
    finally:
        found = ledger.trials()
        ledger.close()
    return found


def test_a_trial_that_raises_is_failed_and_the_study_goes_on(built, study):
    seen = []

    def evaluate(trial_group, original):
        seen.append(trial_group[0].point.training)
        if len(seen) == 1:
            raise TrainingFailedError("the loss of step 3 is not finite")
        return original(trial_group)

    trials = drive(built, study(), 4, evaluate)
    states = [t.state for t in trials]
    assert states == ["FAIL"] * 3 + ["COMPLETE"] * 4
    assert seen[0] not in seen[1:]


def test_a_training_whose_workers_are_lost_waits_and_fails_only_if_it_happens_again(built, study):
    """A node that went away is no fault of the training."""

    def evaluate(trial_group, original):
        lost.append([t.number for t in trial_group])
        raise WorkerLostError("a worker was lost more than 3 times")

    lost: list[list[int]] = []
    with pytest.raises(StudyError, match=r"a worker was lost.*Run the same command to continue"):
        drive(built, study(), 4, evaluate)
    assert {t.state for t in trials_of(built, study())} == {"RUNNING"}

    def again(trial_group, original):
        if trial_group[0].number in lost[0]:
            return evaluate(trial_group, original)
        return original(trial_group)

    trials = drive(built, study(), 4, again)
    assert lost == [[0, 1, 2]] * 2
    assert [t.state for t in trials] == ["FAIL"] * 3 + ["COMPLETE"] * 4


def test_the_same_command_with_more_trials_does_not_add_them_again(studied, study, monkeypatch):
    home, first = studied.home, stop_after(1)
    original = StudyDriver._evaluate
    with monkeypatch.context() as patch:
        patch.setattr(
            StudyDriver,
            "_evaluate",
            lambda self, trial_group: first(trial_group, lambda u: original(self, u)),
        )
        with pytest.raises(ArtifactError, match="enough"):
            run(home, study(), trials="+5")
    assert 8 < sum(t.state == "COMPLETE" for t in trials_of(home, study())) < 13
    text = run(home, study(), trials="+5")
    assert "of 13 trials are complete" in text
    assert [t.state for t in trials_of(home, study())] == ["COMPLETE"] * 13
    assert "13 of 13 trials are complete" in run(home, study())
    run(home, study(), trials="+1")
    assert len(trials_of(home, study())) == 14


def test_every_point_of_the_small_study_has_an_fid_of_its_own(studied, study):
    """Else none of these tests would see numbers that are entered under the wrong trial."""
    trials = trials_of(studied.home, study())
    assert len({t.fid for t in trials}) == 8
    assert len({t.curve[6].fid for t in trials}) == 2


def test_a_study_that_was_cut_short_is_not_measured_anew(home, study):
    text = run(home, study(), trials="8", hours=1e-9)
    assert "0 of 8 trials are complete: the hours are spent" in text
    assert "on noise that was not used" not in text


def test_a_shortfall_is_said(built, study):
    space = SearchSpace(
        aux_layer=LayerRange(low=1, high=1),
        aux_weight=Range(low=0.1, high=0.1, step=0.1),
        ig_scale=Range(low=1.0, high=1.1, step=0.1),
    )
    text = run(built, study(space=space, scales_per_training=2), trials="5")
    assert "2 of 5 trials are complete: the space has no new point" in text


def test_trials_that_fail_one_after_the_other_stop_the_study(home, study):
    def evaluate(trial_group, original):
        raise TrainingFailedError("out of memory")

    with pytest.raises(StudyError, match=r"3 trainings failed one after .*out of memory"):
        drive(home, study(), 4, evaluate)
    assert {t.state for t in trials_of(home, study())} == {"FAIL"}


def test_a_store_that_cannot_be_used_stops_the_study_and_leaves_its_trials(built, study):
    def evaluate(trial_group, original):
        raise ArtifactError("no space left on device")

    with pytest.raises(ArtifactError, match="no space left"):
        drive(built, study(), 4, evaluate)
    assert {t.state for t in trials_of(built, study())} == {"RUNNING"}
    trials = drive(built, study(), 4)
    assert [t.state for t in trials] == ["COMPLETE"] * 4


def test_a_training_worse_than_the_others_is_pruned_and_keeps_its_checkpoints(home, study):
    rule = PruningConfig(warmup_trainings=1, patience=1)
    pruned_study = study(pruning=rule, name="pruned")
    ledger = ledger_of(home, pruned_study)
    good = claimed(ledger, 8)
    curve = {step: CurvePoint(1.0, 0.1) for step in (2, 4, 6)}
    ledger.report(good, curve)
    for trial in good:
        ledger.complete(trial, 1.0, {"fid_low": 0.9, "fid_high": 1.1})
    while trial_group := claimed(ledger, 4):
        for trial in trial_group:
            ledger.complete(trial, 1.0, {"fid_low": 0.9, "fid_high": 1.1})
    ledger.close()

    def evaluate(trial_group, original):
        if len(pruned) >= 2:
            raise ArtifactError("enough")
        original(trial_group)
        found = {t.number: t.state for t in trials_of(home, pruned_study)}
        pruned.append({found[t.number] for t in trial_group} == {"PRUNED"})

    pruned: list[bool] = []
    with pytest.raises(ArtifactError, match="enough"):
        drive(home, pruned_study, 8, evaluate)
    assert pruned == [True, True]
    trials = trials_of(home, pruned_study)
    assert [t.state for t in trials if t.number >= 4][:6] == ["PRUNED"] * 6
    assert home.store.list("checkpoint")


def finish_first_training(ledger):
    """Two trials of one training, complete, with a FID curve that is hard to beat."""
    good = claimed(ledger, 2)
    ledger.report(good, {step: CurvePoint(1.0, 0.1) for step in (2, 4, 6)})
    for trial in good:
        ledger.complete(trial, 1.0, {"fid_low": 0.9, "fid_high": 1.1})


def test_a_training_that_is_taken_over_is_judged_by_what_is_there(built, study):
    """Its driver was killed between the second FID and giving it up."""
    base = study()
    drive(built, base, 3)  # the artifacts are there, from a study that gives nothing up
    rule = PruningConfig(warmup_trainings=1, patience=2)
    pruned_study = study(name="pruned", seed=5, pruning=rule, scales_per_training=3)
    ledger = ledger_of(built, pruned_study)
    finish_first_training(ledger)
    ledger._add([t.point for t in trials_of(built, base)], [])
    ledger.close()
    known = len(built.store.events())
    with pytest.raises(ArtifactError, match="enough"):
        drive(built, pruned_study, 20, stop_after(1))
    later = trials_of(built, pruned_study)[2:5]
    assert [t.state for t in later] == ["PRUNED"] * 3
    assert {e["event"] for e in built.store.events()[known:]} <= {"pruned", "remembered"}


def stop_after(count):
    """An evaluation that goes on with so many trial groups, then ends the study."""
    done = []

    def evaluate(trial_group, original):
        if len(done) >= count:
            raise ArtifactError("enough")
        done.append(trial_group)
        original(trial_group)

    return evaluate


def test_a_trial_that_was_pruned_has_the_last_fid_of_its_curve(built, study):
    import optuna

    rule = PruningConfig(warmup_trainings=1, patience=1)
    pruned_study = study(name="pruned", pruning=rule, scales_per_training=2)
    ledger = ledger_of(built, pruned_study)
    finish_first_training(ledger)
    ledger.close()
    with pytest.raises(ArtifactError, match="enough"):
        drive(built, pruned_study, 20, stop_after(1))
    url = f"sqlite:///{built.root / 'study.db'}"
    pruned = [
        t
        for t in optuna.load_study(study_name="pruned", storage=url).trials
        if t.state.name == "PRUNED"
    ]
    assert pruned
    for trial in pruned:
        assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]


def test_a_scale_whose_samples_are_not_finite_fails_alone(home, study, monkeypatch):
    from ig_core.sampling import NonFiniteSampleError
    from pipelines.stages import sample

    original = sample.sample_images

    def sample_images(model, index, seed, guidances, sampler):
        if any(guidance.ig_scale == 3.0 for guidance in guidances):
            raise NonFiniteSampleError("NaN at step 1")
        return original(model, index, seed, guidances, sampler)

    monkeypatch.setattr(sample, "sample_images", sample_images)
    trials = drive(home, study(), 12)
    failed = [t for t in trials if t.state == "FAIL"]
    assert {t.point.ig_scale for t in failed} == {3.0}
    assert sum(t.state == "COMPLETE" for t in trials) == 12


def test_what_was_found_is_shown_when_an_error_ends_the_study(built, study, monkeypatch):
    console = make_console(file=io.StringIO(), width=200)
    first = stop_after(2)
    original = StudyDriver._evaluate
    monkeypatch.setattr(
        StudyDriver,
        "_evaluate",
        lambda self, trial_group: first(trial_group, lambda u: original(self, u)),
    )
    with pytest.raises(ArtifactError, match="enough"):
        run_study(study(), StudyOptions(parallel=1), built, console)
    text = console.file.getvalue()
    assert "Findings so far" in text
    assert "4 complete" in text


def test_the_inline_runner_takes_one_training_at_a_time(home, study):
    with pytest.raises(ValueError, match="parallel must be 1 with the inline runner"):
        run_study(study(), StudyOptions(parallel=2), home, make_console(file=io.StringIO()))


@pytest.mark.parametrize(("gpus", "room"), [(0, 1), (1, 1), (6, 2), (7, 3), (80, 4)])
def test_there_is_room_for_as_many_trainings_as_there_are_cores_and_gpus(monkeypatch, gpus, room):
    import torch

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(17)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert room_here(Resources(num_workers=2, cpus_per_worker=2, use_gpu=True)) == room
    assert room_here(Resources(num_workers=2, cpus_per_worker=2)) == 4
    assert room_here(Resources(num_workers=2, cpus_per_worker=20)) == 1


def test_the_best_point_is_reported_on_noise_that_had_no_part_in_the_choice(studied, study):
    from pipelines.study.findings import findings, holdout_of

    home, text = studied.home, studied.output
    assert "The best point on noise that was not used to choose it: FID" in text
    trials = trials_of(home, study())
    found = findings(study(), trials, {}, home.store)
    m = found.holdout.measurement
    assert (m.guidance.ig_scale, m.fingerprint.noise_seed) == (found.best.point.ig_scale, 1)
    assert m.fid != found.best.fid
    assert f"FID {m.fid:.2f} (" in text
    _, runs, _ = runs_of(home)
    assert runs[str(found.best.number)].data.metrics["fid_report"] == m.fid
    assert "fid_report" not in runs[""].data.metrics, "the study's run has no number of its own"
    if m.guidance.ig_scale != 1:
        assert found.holdout.gain is not None
    known = len(home.store.events())
    run(home, study())
    assert len(home.store.events()) == known, "it is measured once"
    graph, chosen = holdout_of(study(), found.best)
    node = graph.holdout(chosen)[chosen].evaluate
    home.store.quarantine(node.ref)
    assert findings(study(), trials, {}, home.store).holdout is None


def test_a_target_ends_the_study(built, study):
    run(built, study(), trials="8", target_fid=1e9)
    assert len(trials_of(built, study())) == 3, "the first scales of the first training"
    assert runs_of(built)[1][""].info.status == "FINISHED"
    run(built, study(), trials="8")
    assert len(trials_of(built, study())) == 8


def test_expensive_work_is_not_begun_without_being_asked(studied, study):
    home = studied.home
    with pytest.raises(ValueError, match=r"worker-hours, more than --ask-above .*--yes"):
        run(home, study(), trials="100", ask_above=1e-6)
    assert len(trials_of(home, study())) == 8
    run(home, study(), trials="9", ask_above=0.0, yes=True)
    assert len(trials_of(home, study())) == 9


def test_the_forecast_counts_what_is_left(studied, study):
    assert "8 trials, 2 trainings" in studied.output
    again = run(studied.home, study())
    assert "0 trials, 0 trainings, 0 images; worker-hours 0.00" in again


def test_the_forecast_counts_what_confirming_takes(home, study):
    cost = forecast(study(), home.store, [], 8, confirm_seeds=3)
    assert (cost.trials, cost.trainings) == (8, 2 + 3 * 3)
    assert cost.images == 8 * 40 + 2 * 3 * 20 + 2 * 40 + 9 * 40


@pytest.mark.parametrize("value", ["many", "-3", "+", ""])
def test_the_number_of_trials_is_a_number(value):
    with pytest.raises(ValueError, match=r"trials must be a number, or \+NUMBER"):
        StudyOptions(trials=value)


def runs_of(home):
    """MLflow's runs by trial number ("" for the parent)."""
    from pipelines.tracking.client import MlflowTracker

    client = MlflowTracker(home.tracking_uri, home.mlartifacts).client
    experiment = client.get_experiment_by_name("study-small")
    runs = client.search_runs([experiment.experiment_id])
    return client, {run.data.tags.get("igdit.trial", ""): run for run in runs}, len(runs)


def test_each_trial_is_one_run_below_the_study_however_often_it_is_synced(studied, study):
    home = studied.home
    run(home, study(), trials="9")
    client, runs, count = runs_of(home)
    trials = trials_of(home, study())
    assert count == 10
    assert set(runs) == {"", *(str(t.number) for t in trials)}
    parent = runs[""]
    assert parent.info.status == "FINISHED"
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"trials.parquet", "fid_by_scale.png", "fid_curves.png"} <= files
    keys = None
    for trial in trials:
        mine = runs[str(trial.number)]
        assert mine.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert mine.info.status == "FINISHED"
        assert mine.data.params["ig_scale"] == str(trial.point.ig_scale)
        assert mine.data.params["aux_layer"] == str(trial.point.aux_layer)
        assert mine.data.metrics["fid"] == trial.fid, "its own number, not the curve's"
        assert [m.value for m in client.get_metric_history(mine.info.run_id, "fid")] == [trial.fid]
        curve = client.get_metric_history(mine.info.run_id, "fid_curve")
        assert {(m.step, m.value) for m in curve} == {(s, p.fid) for s, p in trial.curve.items()}
        assert len(curve) == 3
        keys = keys or set(mine.data.params)
        assert set(mine.data.params) == keys
        point = trial.point
        name = f"L{point.aux_layer} w{point.aux_weight:g} s{point.ig_scale:g} #{trial.number}"
        assert mine.info.run_name == name
        sheets = {item.path for item in client.list_artifacts(mine.info.run_id)}
        assert sheets == {"samples.png", "images"}
        images = [item.path for item in client.list_artifacts(mine.info.run_id, "images")]
        assert [path.startswith("images/samples+step+6+") for path in images] == [True, True]


def test_parameters_of_trials_are_what_is_compared_and_of_the_study_what_is_common(studied):
    _, runs, _ = runs_of(studied.home)
    common = {
        "experiment",
        "ig_interval",
        "cfg_interval",
        "codec",
        "target_guidance",
        "optimizer",
        "precision",
        "lr",
        "ema_decay",
        "batch_size",
        "steps",
        "seed",
        "sampler",
        "num_samples",
        "protocol",
        "checkpoint",
    }
    compared = {"aux_layer", "aux_weight", "ig_scale", "cfg_scale", "model"}
    parent = runs.pop("")
    assert set(parent.data.params) == common | {"cfg_scale", "model"}
    for mine in runs.values():
        assert set(mine.data.params) == compared
        tags = mine.data.tags
        assert {
            f"igdit.{name}": parent.data.params[name] for name in common
        }.items() <= tags.items()
        assert tags["mlflow.loggedImages"] == "True"
        assert parent.info.start_time <= mine.info.start_time <= mine.info.end_time
        assert mine.info.end_time <= parent.info.end_time


def test_a_study_that_somebody_works_on_is_running(studied, study):
    """Nobody says it is finished while it has trials that are under way."""
    from pipelines.tracking.client import MlflowTracker
    from pipelines.tracking.study import StudyTracker

    home = studied.home
    ledger = ledger_of(home, study())
    claimed(ledger, 12)
    tracker = MlflowTracker(home.tracking_uri, home.mlartifacts)
    StudyTracker(tracker, study(), ledger.identity, home.store).sync(ledger.trials(), finished=True)
    ledger.close()
    assert runs_of(home)[1][""].info.status == "RUNNING"


def test_trials_that_failed_are_shown_as_failed(home, study):
    from pipelines.tracking.client import MlflowTracker
    from pipelines.tracking.study import StudyTracker

    ledger = ledger_of(home, study())
    ledger.fail(claimed(ledger, 8), "NaN")
    tracker = StudyTracker(
        MlflowTracker(home.tracking_uri, home.mlartifacts), study(), ledger.identity, home.store
    )
    tracker.sync(ledger.trials(), finished=False)
    _, runs, _ = runs_of(home)
    assert {runs[number].info.status for number in runs if number} == {"FAILED"}
    assert runs[""].info.status == "RUNNING"
    # Without any number nothing says when they ended: the first look does, and stays.
    tracker.sync(ledger.trials(), finished=False, thorough=True)
    ledger.close()
    again = runs_of(home)[1]
    assert {n: run.info.end_time for n, run in again.items()} == {
        n: run.info.end_time for n, run in runs.items()
    }


def test_the_answer_is_confirmed_on_other_seeds(studied, study):
    import pandas as pd

    home = studied.home
    text = run(home, study(), trials="8", confirm_seeds=2)
    assert "Confirmed with 2 other training seeds" in text
    table = pd.read_parquet(home.report / "study-small" / "confirmed.parquet")
    layers = {t.point.aux_layer for t in trials_of(home, study())}
    assert len(table) == 2 * (1 + len(layers))
    assert set(table["seed"]) == {1, 2}
    baseline = table[table["candidate"] == "no auxiliary loss, unguided"]
    assert (baseline["gain"] == 0).all()
    assert len(executed(home, "checkpoint")) == 2 + len(table)
    assert (home.report / "study-small" / "fid_confirmed.png").stat().st_size > 10_000


def test_what_trials_run_on_is_closed_after_an_interrupt_only_when_they_have_let_go(
    home, study, monkeypatch
):
    """A session that is closed under a trial takes what it runs on away from it."""
    happened, ledger = [], ledger_of(home, study())

    def work(driver):
        time.sleep(0.5)  # so that the main thread waits for this one
        os.kill(os.getpid(), signal.SIGINT)
        assert driver._stop.wait(60)
        time.sleep(0.3)  # what a step takes to end
        happened.append("let go")

    monkeypatch.setattr(StudyDriver, "_work", work)
    monkeypatch.setattr(RunnerSession, "close", lambda _: happened.append("closed"))
    with pytest.raises(KeyboardInterrupt):
        StudyDriver(ledger, home, Budget(8), session_of(ledger, home), print).run()
    ledger.close()
    assert happened == ["let go", "closed"]


def test_a_session_that_cannot_start_says_so_to_everyone(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("resources ask for 9 GPUs")

    monkeypatch.setattr("pipelines.execution.session.make_runner", fail)
    session = RunnerSession(WORK, Resources(num_workers=1), tmp_path, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="9 GPUs"):
            session.runner()
    session.close()
