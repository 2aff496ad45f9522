"""Trials in an Optuna storage: entered whole, taken over, never twice."""

import threading
from dataclasses import replace

import optuna
import pytest
from optuna.exceptions import StorageInternalError

from experiments import DataConfig, LayerRange, Range, SearchSpace
from pipelines.common.errors import StudyError
from pipelines.graph.node import VERSIONS
from pipelines.store.folder import FolderStore
from pipelines.store.locks import FileLock
from pipelines.study.ledger import StudyLedger
from pipelines.study.search import startup
from pipelines.study.storage import read_studies
from pipelines.study.trials import CurvePoint
from tests.pipelines.study.conftest import claimed


def fid(point):
    """A landscape with its minimum at layer 1, weight 0.5, scale 1.8."""
    return (
        8
        + 3 * (point.ig_scale - 1.8) ** 2
        + 2 * (point.aux_layer - 1)
        + (point.aux_weight - 0.5) ** 2
    )


def complete(ledger, trial_group):
    for trial in trial_group:
        ledger.complete(trial, fid(trial.point), {"fid_low": 1.0, "fid_high": 2.0})


def finish(ledger, trial_group, wanted):
    """Complete a trial group, and all that comes after it."""
    while trial_group:
        complete(ledger, trial_group)
        trial_group = claimed(ledger, wanted)


def play(ledger, wanted, trial_groups=None):
    """Work on a study alone; at most so many trial groups."""
    while (trial_groups is None or trial_groups > 0) and (trial_group := claimed(ledger, wanted)):
        complete(ledger, trial_group)
        trial_groups = None if trial_groups is None else trial_groups - 1


def shown(ledger):
    return [(t.number, t.point, t.state, t.fid) for t in ledger.trials()]


@pytest.mark.parametrize("wanted", [1, 3, 4, 5, 8, 13])
def test_exactly_as_many_trials_are_completed_as_wanted(open_ledger, study, wanted):
    ledger = open_ledger(study())
    play(ledger, wanted)
    assert [t.state for t in ledger.trials()] == ["COMPLETE"] * wanted
    assert claimed(ledger, wanted) == []


def test_a_training_has_its_scales_as_trials_of_their_own(open_ledger, study):
    ledger = open_ledger(study())
    play(ledger, 8)
    points = [t.point for t in ledger.trials()]
    assert len(set(points)) == 8
    trainings = {
        p.training: [q.ig_scale for q in points if q.training == p.training] for p in points
    }
    assert [len(scales) for scales in trainings.values()] == [4, 4]
    assert all(1.0 in scales for scales in trainings.values())


def test_joint_mode_proposes_one_point_at_a_time(open_ledger, study):
    ledger = open_ledger(study(mode="joint"))
    first = claimed(ledger, 5)
    assert len(first) == 1
    complete(ledger, first)
    assert len(ledger.trials()) == 1
    play(ledger, 5)
    assert len({t.point for t in ledger.trials()}) == 5


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_the_same_seed_gives_the_same_study_and_another_seed_another(tmp_path, study, sampler):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ledger = StudyLedger(
            study(sampler=sampler, seed=seed),
            f"sqlite:///{tmp_path / name}.db",
            FolderStore(tmp_path / name),
        )
        play(ledger, 16)
        found.append(shown(ledger))
        ledger.close()
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_trials_of_a_dead_driver_are_taken_over_under_their_numbers(open_ledger, study, done):
    """And the study ends as if nothing had happened."""
    whole = open_ledger(study(name="undisturbed"))
    play(whole, 8)
    dead = open_ledger(study(name="disturbed"))
    play(dead, 8, trial_groups=2)
    trial_group = claimed(dead, 8)
    for trial in trial_group[:done]:
        dead.complete(trial, fid(trial.point), {})
    dead.close()
    heir = open_ledger(study(name="disturbed"))
    adopted = claimed(heir, 8)
    if done < len(trial_group):
        assert [t.number for t in adopted] == [t.number for t in trial_group[done:]]
    finish(heir, adopted, 8)
    play(heir, 8)
    assert shown(heir) == shown(whole)


@pytest.mark.parametrize("entered", [1, 2])
def test_a_kill_while_a_trial_group_is_added_leaves_the_rest_to_the_heir(
    open_ledger, study, entered
):
    whole = open_ledger(study(name="undisturbed"))
    play(whole, 8)
    dead = open_ledger(study(name="disturbed"))
    first = [t.point for t in whole.trials()][:entered]
    dead._add(first, [])
    dead.close()
    heir = open_ledger(study(name="disturbed"))
    trial_group = claimed(heir, 8)
    assert [t.number for t in trial_group] == [0, 1, 2]
    finish(heir, trial_group, 8)
    play(heir, 8)
    assert shown(heir) == shown(whole)


def test_somebody_elses_study_of_that_name_is_refused_and_left_alone(open_ledger, study, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    theirs = optuna.create_study(storage=url, study_name="small", direction="maximize")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(ValueError, match=r"'small' in that database is not igdit's.*--name"):
        open_ledger(study())
    assert optuna.load_study(storage=url, study_name="small").user_attrs == {}
    mine = open_ledger(study(name="mine"))
    play(mine, 4)
    stored = read_studies(url, FolderStore(tmp_path / "store"))
    assert [(s.study.name, len(s.trials)) for s in stored] == [("mine", 4)]


def test_those_who_look_leave_out_what_another_version_wrote(open_ledger, study, tmp_path):
    open_ledger(study())
    newer = open_ledger(study(name="newer"))
    newer._optuna.set_user_attr("igdit.spec", {**study().fixed(), "telepathy": True})
    stored = read_studies(f"sqlite:///{tmp_path / 'study.db'}", FolderStore(tmp_path / "store"))
    assert [s.study.name for s in stored] == ["small"]


def test_an_outage_ends_at_a_stop(open_ledger, study, monkeypatch):
    ledger = open_ledger(study())
    slept = []
    monkeypatch.setattr("pipelines.study.storage.time.sleep", slept.append)

    def gone(*_):
        if len(slept) == 3:
            ledger.stopped.set()
        raise StorageInternalError("connection refused")

    monkeypatch.setattr(ledger._storage, "get_all_trials", gone)
    with pytest.raises(StudyError, match="database failed: connection refused"):
        ledger.trials()
    assert len(slept) == 3


def test_trials_of_a_living_driver_are_left_alone(open_ledger, study):
    first, second = open_ledger(study()), open_ledger(study())
    mine, yours = claimed(first, 8), claimed(second, 8)
    assert not {t.number for t in mine} & {t.number for t in yours}
    assert not {t.point for t in mine} & {t.point for t in yours}
    finish(first, mine, 8)
    finish(second, yours, 8)
    assert claimed(first, 8) == claimed(second, 8) == []
    assert [t.state for t in first.trials()] == ["COMPLETE"] * 8


def test_four_drivers_begin_a_new_database_at_once(tmp_path, study):
    errors, barrier = [], threading.Barrier(4)

    def work():
        try:
            barrier.wait()
            ledger = StudyLedger(
                study(), f"sqlite:///{tmp_path / 'new.db'}", FolderStore(tmp_path / "store")
            )
            play(ledger, 16)
            ledger.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    ledger = StudyLedger(
        study(), f"sqlite:///{tmp_path / 'new.db'}", FolderStore(tmp_path / "store")
    )
    trials = ledger.trials()
    ledger.close()
    assert [t.state for t in trials] == ["COMPLETE"] * 16
    assert len({t.point for t in trials}) == 16


def test_completing_a_trial_again_changes_nothing(open_ledger, study):
    ledger = open_ledger(study())
    (trial, *_) = claimed(ledger, 4)
    ledger.complete(trial, 5.0, {"fid_low": 4.0})
    ledger.complete(trial, 6.0, {"fid_low": 5.0})
    again = ledger.trials()[0]
    assert (again.fid, again.facts) == (5.0, {"fid_low": 4.0})


def test_pruned_and_failed_trials_make_room_for_others(open_ledger, study):
    ledger = open_ledger(study())
    ledger.prune(claimed(ledger, 8), {})
    ledger.fail(claimed(ledger, 8), "NaN")
    play(ledger, 8)
    states = [t.state for t in ledger.trials()]
    assert states.count("COMPLETE") == 8
    assert states.count("PRUNED") == states.count("FAIL") == 3


def test_curves_stand_in_optuna_and_reach_the_refined_scales(open_ledger, study):
    ledger = open_ledger(study())
    trial_group = claimed(ledger, 4)
    curve = {2: CurvePoint(30.0, 2.0), 4: CurvePoint(20.0, 1.5)}
    ledger.report(trial_group, curve)
    finish(ledger, trial_group, 4)
    assert [t.curve for t in ledger.trials()] == [curve] * 4
    optuna_trials = optuna.load_study(study_name="small", storage=ledger._storage).trials
    assert [t.intermediate_values for t in optuna_trials] == [{2: 30.0, 4: 20.0}] * 4


def test_optuna_opens_the_study_without_us(open_ledger, study, tmp_path):
    ledger = open_ledger(study())
    play(ledger, 8)
    loaded = optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert set(loaded.best_params) == {"aux_layer", "aux_weight", "ig_scale"}
    assert loaded.best_value == min(t.fid for t in ledger.trials())
    assert ledger.importances().keys() == loaded.best_params.keys()


def test_a_changed_study_is_refused_with_what_changed(open_ledger, study):
    open_ledger(study())
    with pytest.raises(ValueError, match=r"aux_weight\.high was 1\.0 and is now 2\.0.*--name"):
        open_ledger(study(space=other_space(study())))
    with pytest.raises(ValueError, match=r"experiment\.optim\.lr was 0\.02 and is now 0\.001"):
        open_ledger(study(experiment=with_rate(study().experiment, 1e-3)))
    open_ledger(study(default_trials=99))
    open_ledger(study(name="another", experiment=with_rate(study().experiment, 1e-3)))


def other_space(study):
    weight = replace(study.space.aux_weight, high=2.0)
    return replace(study.space, aux_weight=weight)


def with_rate(experiment, rate):
    return replace(experiment, optim=replace(experiment.optim, lr=rate))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "must be a database URL"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/none", r"can be reached.*127\.0\.0\.1"),
        ("sqlite:////nowhere/at/all.db", "can be reached"),
        ("oracle://me@there/db", "not installed"),
    ],
)
def test_a_bad_storage_is_one_clear_message_without_its_password(open_ledger, study, url, words):
    with pytest.raises(ValueError, match=words) as caught:
        open_ledger(study(), url)
    assert "secret" not in str(caught.value)


def test_no_training_is_begun_for_points_that_another_one_is_going_to_take(open_ledger, study):
    """Two drivers, eight points of four each: two trainings, not a third one for the rest."""
    first, second = open_ledger(study()), open_ledger(study())
    mine, yours = claimed(first, 8), claimed(second, 8)
    assert len(mine) == len(yours) == 3
    third = open_ledger(study())
    assert claimed(third, 8) == []
    finish(first, mine, 8)
    assert claimed(first, 8) == []
    third.close()
    finish(second, yours, 8)
    trials = first.trials()
    assert [t.state for t in trials] == ["COMPLETE"] * 8
    assert len({t.point.training for t in trials}) == 2


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_kill_between_two_trial_groups_leaves_nothing_undone(open_ledger, study, stop_after):
    """Refinement is not the duty of the driver that was killed before it."""
    whole = open_ledger(study(name="undisturbed"))
    play(whole, 8)
    dead = open_ledger(study(name="disturbed"))
    play(dead, 8, trial_groups=stop_after)
    dead.close()
    heir = open_ledger(study(name="disturbed"))
    play(heir, 8)
    assert shown(heir) == shown(whole)


def test_an_exhausted_space_ends_the_study(open_ledger, study):
    space = SearchSpace(
        aux_layer=LayerRange(low=1, high=1),
        aux_weight=Range(low=0.1, high=0.2, step=0.1),
        ig_scale=Range(low=1.0, high=1.1, step=0.1),
    )
    ledger = open_ledger(study(space=space, scales_per_training=2))
    play(ledger, 50)
    assert len({t.point for t in ledger.trials()}) == len(ledger.trials()) == 4


def test_a_failed_or_pruned_training_is_not_proposed_again(open_ledger, study):
    ledger = open_ledger(study())
    bad = [claimed(ledger, 30), claimed(ledger, 30)]
    ledger.fail(bad[0], "NaN")
    ledger.prune(bad[1], {})
    play(ledger, 30)
    trainings = {trial_group[0].point.training for trial_group in bad}
    assert not trainings & {t.point.training for t in ledger.trials()[len(bad[0] + bad[1]) :]}


def test_a_failed_scale_does_not_keep_its_training_from_being_refined(open_ledger, study):
    ledger = open_ledger(study())
    trial_group = claimed(ledger, 8)
    ledger.fail(trial_group[-1:], "not finite")
    complete(ledger, trial_group[:-1])
    (more,) = claimed(ledger, 8)
    assert more.point.training == trial_group[0].point.training


def test_drivers_of_another_store_are_refused(open_ledger, study, tmp_path):
    open_ledger(study())
    with pytest.raises(ValueError, match="belongs to another store"):
        StudyLedger(
            study(), f"sqlite:///{tmp_path / 'study.db'}", FolderStore(tmp_path / "elsewhere")
        )


def test_code_that_gives_other_results_is_refused(open_ledger, study, monkeypatch):
    open_ledger(study())
    monkeypatch.setitem(VERSIONS, "features", 99)
    with pytest.raises(ValueError, match="belongs to code that gives other results"):
        open_ledger(study())


def test_the_same_space_and_weights_may_be_named_otherwise(open_ledger, study, tmp_path):
    open_ledger(study())
    space = study().space
    open_ledger(study(space=replace(space, aux_layer=LayerRange(low=1))))  # 2 is the top of depth 3

    def judged_by(path):
        evaluation = replace(
            study().experiment.evaluation,
            extractor="inception-v3-compat",
            extractor_weights=str(path),
            weights_sha256="ab" * 32,
        )
        return study(name="moved", experiment=replace(study().experiment, evaluation=evaluation))

    open_ledger(judged_by(tmp_path / "here.pth"))
    ledger = open_ledger(judged_by(tmp_path / "there.pth"))
    known = ledger._optuna.user_attrs["igdit.spec"]
    assert type(study()).from_fixed("moved", known).fixed() == known


def test_data_are_the_same_wherever_they_and_their_labels_lie(open_ledger, study, tmp_path):
    def learnt_from(folder, **changes):
        data = DataConfig(
            source="images",
            path=str(folder),
            content="cd" * 32,
            count=7,
            codec="sd-vae",
            codec_path=str(folder / "vae"),
            codec_sha256="ef" * 32,
            channels=4,
            side=8,
            num_classes=10,
            resolution=64,
            **changes,
        )
        base = study().experiment
        evaluation = replace(
            base.evaluation,
            extractor="inception-v3-compat",
            extractor_weights="w.pth",
            weights_sha256="ab" * 32,
            reference="r.npz",
            reference_sha256="ab" * 32,
        )
        model = replace(base.model, in_channels=4, input_size=8)
        return study(
            name="moved", experiment=replace(base, data=data, model=model, evaluation=evaluation)
        )

    open_ledger(learnt_from(tmp_path / "here"))
    open_ledger(learnt_from(tmp_path / "there", classes="labels.json", check_statistics=False))
    with pytest.raises(ValueError, match=r"encoder_sha256 was None and is now '00"):
        open_ledger(learnt_from(tmp_path / "here", encoder_sha256="00" * 32))


def test_trials_beyond_what_is_wanted_wait_until_more_are(open_ledger, study):
    dead = open_ledger(study())
    trial_group = claimed(dead, 8)
    dead.complete(trial_group[0], fid(trial_group[0].point), {})
    dead.close()
    heir = open_ledger(study())
    assert claimed(heir, 1) == []
    assert [t.number for t in claimed(heir, 2)] == [trial_group[1].number]
    play(heir, 2)
    assert [t.state for t in heir.trials()] == ["COMPLETE", "RUNNING", "RUNNING"]


def test_an_entry_whose_answer_was_lost_is_not_made_twice(open_ledger, study, monkeypatch):
    """The database went away after it had entered the trial, before it said so."""
    ledger = open_ledger(study())
    original, lost = ledger._optuna.add_trial, []

    def add_trial(trial):
        original(trial)
        if not lost:
            lost.append(trial)
            raise StorageInternalError("server closed the connection unexpectedly")

    monkeypatch.setattr(ledger._optuna, "add_trial", add_trial)
    monkeypatch.setattr("pipelines.study.storage.time.sleep", lambda seconds: None)
    trial_group = claimed(ledger, 8)
    assert lost
    assert [t.number for t in trial_group] == [t.number for t in ledger.trials()] == [0, 1, 2]
    assert len({t.point for t in trial_group}) == 3


def test_locks_of_dead_drivers_are_swept_away(open_ledger, study, tmp_path):
    left = tmp_path / "store" / ".drivers" / "driver-0123456789ab.lock"
    left.parent.mkdir(parents=True)
    left.touch()
    alive = open_ledger(study())
    open_ledger(study())
    names = {path.name for path in left.parent.glob("driver-*.lock")}
    assert left.name not in names
    assert f"driver-{alive.driver}.lock" in names


def test_a_look_at_its_beginning_does_not_cost_a_driver_its_trials(open_ledger, study, monkeypatch):
    """Whoever clears up after the dead has its lock for a moment."""
    real, looks = FileLock.acquire, [False]

    def acquire(lock):
        return looks.pop() if looks and "driver-" in lock.path.name else real(lock)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    first = open_ledger(study())
    assert not looks
    mine, yours = claimed(first, 8), claimed(open_ledger(study()), 8)
    assert not {t.number for t in mine} & {t.number for t in yours}


def test_a_study_keeps_its_identity(open_ledger, study):
    first = open_ledger(study())
    again = open_ledger(study(default_trials=99))
    assert first.identity == again.identity
    assert open_ledger(study(name="another")).identity != first.identity


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("low", "high", "count"), [(1, 2, 2), (1, 2, 4), (1, 2, 7)])
def test_the_first_trainings_are_spread_over_layers_and_weights(study, seed, low, high, count):
    points = startup(study(seed=seed, startup_trainings=count))
    layers = [p.aux_layer for p in points]
    assert set(layers) == set(range(low, high + 1))
    assert max(layers.count(layer) for layer in set(layers)) <= -(-count // 2)
    weights = sorted(p.aux_weight for p in points)
    assert weights[0] <= 0.1 + 0.9 / count
    assert weights[-1] >= 1.0 - 0.9 / count
    assert len(set(weights)) == count
    assert points == startup(study(seed=seed, startup_trainings=count))
    assert points != startup(study(seed=seed + 1, startup_trainings=count)) or count < 3


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_every_layer_is_looked_at_before_the_sampler_takes_over(open_ledger, study, sampler):
    given = study(sampler=sampler, startup_trainings=3)
    ledger = open_ledger(given)
    play(ledger, 20)
    trainings = list(dict.fromkeys(t.point.training for t in ledger.trials()))
    assert trainings[:3] == [p.training for p in startup(given)]
    assert {layer for layer, _ in trainings[:3]} == {1, 2}


def test_the_goal_is_the_most_that_was_ever_asked_for(open_ledger, study):
    ledger = open_ledger(study())
    assert [ledger.goal(n) for n in (0, 8, 4, 0, 12, 8)] == [0, 8, 8, 8, 12, 12]
    assert open_ledger(study()).goal(0) == 12


def test_losses_of_workers_are_counted_for_the_training(open_ledger, study):
    """A scale that joined later knows of none; the training was lost all the same."""
    ledger = open_ledger(study())
    trial_group = claimed(ledger, 8)
    assert ledger.lost(trial_group[:1]) == 1
    assert ledger.lost(ledger.trials()) == 2
    assert [t.losses for t in ledger.trials()] == [2, 2, 2]
    assert ledger.lost(ledger.trials()) == 3


def test_room_that_trainings_at_work_will_need_is_not_given_to_another(open_ledger, study):
    """Of five points four are for the training at work: one is left for another."""
    first, second, third = (open_ledger(study()) for _ in range(3))
    assert len(claimed(first, 5)) == 3
    assert [len(claimed(ledger, 5)) for ledger in (second, third)] == [1, 0]
    assert third.claim(5) is None, "what they leave may be taken"
    complete(first, [t for t in first.trials() if t.owner == first.driver])
    assert [t.point.training for t in claimed(third, 5)] == [first.trials()[0].point.training]
