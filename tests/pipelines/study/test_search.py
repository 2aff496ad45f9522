"""Which points come next, and how a trial is written down: pure functions."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from experiments import LayerRange, Point, Range, SearchSpace
from pipelines.study import search as module
from pipelines.study.search import (
    at_rest,
    companions,
    distributions,
    propose,
    reserved,
    room_for,
    startup,
)
from pipelines.study.trials import (
    CurvePoint,
    Trial,
    by_training,
    curve_to_json,
    differences,
    numbered,
    parameters_of,
    read_trial,
)


def point(scale=1.0, layer=1, weight=0.5):
    return Point(aux_layer=layer, aux_weight=weight, ig_scale=scale)


def trial(number, state="COMPLETE", fid=None, **place):
    return Trial(number, point(**place), state, fid, {}, {}, "a")


def test_room_is_taken_by_what_is_complete_or_at_work():
    trials = [trial(n, state) for n, state in enumerate(("COMPLETE", "RUNNING", "PRUNED", "FAIL"))]
    assert room_for(trials, 5) == 3
    assert room_for(trials, 1) == -1


def test_a_training_is_at_rest_when_nobody_works_on_it_and_it_was_not_pruned():
    states = {
        0.1: ("COMPLETE", "COMPLETE"),
        0.2: ("COMPLETE", "FAIL"),
        0.3: ("COMPLETE", "RUNNING"),
        0.4: ("FAIL", "FAIL"),
        0.5: ("COMPLETE", "PRUNED"),
        0.6: ("PRUNED", "PRUNED"),
    }
    trials = [
        trial(0, state, weight=weight, scale=1.0 + n)
        for weight, pair in states.items()
        for n, state in enumerate(pair)
    ]
    assert [members[0].point.aux_weight for members in at_rest(trials)] == [0.1, 0.2]


def test_points_are_reserved_for_the_scales_of_trainings_at_work(study):
    """Of four scales each: one training lacks two, one that is not at work nothing."""
    trials = [
        trial(0, "RUNNING", weight=0.1),
        trial(1, "FAIL", weight=0.1, scale=2.0),
        trial(2, "PRUNED", weight=0.1, scale=3.0),
        trial(3, "COMPLETE", weight=0.2),
        *(trial(4 + n, "RUNNING", weight=0.3, scale=1.0 + n / 10) for n in range(6)),
    ]
    assert reserved(study(), trials) == 2
    assert reserved(study(mode="joint"), trials) == 0
    assert reserved(study(), []) == 0


def test_a_scale_that_failed_is_not_waited_for_and_pulls_nothing(study):
    """The minimum of the parabola through 1, 2 and 3 lies at 2.25; a scale at 1.5 failed."""
    whole = [
        trial(n, fid=fid, scale=scale)
        for n, (scale, fid) in enumerate([(1.0, 10.0), (2.0, 5.0), (3.0, 6.0)])
    ]
    five = study(scales_per_training=5)
    expected = companions(five, whole, 9)
    assert [p.ig_scale for p in expected] == [2.3]
    failed = trial(3, "FAIL", scale=1.5)
    assert companions(five, [*whole, failed], 9) == expected
    waits = trial(3, "RUNNING", scale=1.5)
    assert companions(five, [*whole, waits], 9) == []
    assert companions(five, [failed], 9) != []


def test_companions_are_scales_of_the_same_training_and_no_more_than_there_is_room(study):
    first = point(2.0, layer=2, weight=0.7)
    found = companions(study(), [first], 9)
    assert {p.training for p in found} == {(2, 0.7)}
    assert [p.ig_scale for p in found] == [1.0, 3.0]
    assert (
        companions(study(), [trial(0, "RUNNING", scale=2.0, layer=2, weight=0.7)], 1) == found[:1]
    )
    assert companions(study(), [first], 0) == []
    assert companions(study(mode="joint"), [first], 9) == []


NARROW = SearchSpace(
    aux_layer=LayerRange(low=1, high=1),
    aux_weight=Range(low=0.1, high=0.2, step=0.1),
    ig_scale=Range(low=1.0, high=1.1, step=0.1),
)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_point_that_is_known_is_not_proposed_again(study, sampler):
    given = study(space=NARROW, scales_per_training=2, sampler=sampler)
    four = [{"weight": w, "scale": s} for w in (0.1, 0.2) for s in (1.0, 1.1)]
    for free in range(4):
        trials = [trial(n, fid=1.0, **place) for n, place in enumerate(four) if n != free]
        assert propose(given, trials, []) == point(**four[free])
    assert propose(given, [trial(n, **place) for n, place in enumerate(four)], []) is None


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("state", ["FAIL", "PRUNED"])
def test_a_training_that_is_bad_is_not_proposed_again(study, sampler, state):
    given = study(space=NARROW, scales_per_training=2, sampler=sampler)
    for weight in (0.1, 0.2):
        trials = [trial(0, state, weight=weight)]
        assert propose(given, trials, []).aux_weight == pytest.approx(0.3 - weight)
        refined = [*trials, trial(1, weight=weight, scale=1.1)]
        found = {
            propose(
                study(space=NARROW, scales_per_training=2, sampler="random", seed=seed), refined, []
            ).aux_weight
            for seed in range(9)
        }
        assert found == {0.2} if weight == 0.1 else {0.1, 0.2}, "one of its scales is good"


def test_a_sampler_that_is_sure_of_itself_is_replaced_by_chance(study, monkeypatch):
    """It would name the same known point for ever."""

    class Sure(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return parameters_of(point(1.0, weight=0.1))[name]

    monkeypatch.setattr(module, "make_sampler", lambda study, seed: Sure())
    given = study(space=NARROW, scales_per_training=2, sampler="random")
    assert propose(given, [trial(0, weight=0.1)], []) not in (None, point(1.0, weight=0.1))


def test_the_first_trainings_are_those_of_the_hypercube_unless_they_are_known(study):
    given = study()
    first = startup(given)
    assert propose(given, [], []) == first[0]
    same = propose(
        given, [trial(0, scale=1.0, layer=first[0].aux_layer, weight=first[0].aux_weight)], []
    )
    assert same == first[1]
    second = first[1]
    bad = [trial(0, "FAIL", scale=3.0, layer=second.aux_layer, weight=second.aux_weight)]
    assert propose(given, bad, []).training != second.training
    assert propose(study(sampler="random"), [], []) != first[0]


def test_proposals_depend_on_the_seed_and_on_how_much_is_known(study):
    known = [trial(0, weight=0.1)]
    one, two = (propose(study(sampler="random", seed=seed), known, []) for seed in (0, 1))
    assert one == propose(study(sampler="random"), known, [])
    assert one != two
    assert one != propose(study(sampler="random"), [*known, trial(1, weight=0.2)], [])


def frozen(state=TrialState.COMPLETE, value=5.0, params=None, **attributes):
    return create_trial(
        state=state,
        value=value,
        params=params or {"aux_layer": 1, "aux_weight": 0.1 + 0.2, "ig_scale": 1.1 + 2.2},
        distributions={
            "aux_layer": optuna.distributions.IntDistribution(1, 2),
            "aux_weight": optuna.distributions.FloatDistribution(0.0, 1.0),
            "ig_scale": optuna.distributions.FloatDistribution(1.0, 4.0),
        },
        user_attrs={"igdit.owner": "abc", "igdit.fid": {"fid_low": 4.0}} | attributes,
    )


def test_numbers_of_a_trial_are_those_of_the_grid():
    """Sums of steps are not: 0.1 + 0.2 is another training than 0.3."""
    found = read_trial(frozen())
    assert found.point == point(3.3, weight=0.3)
    assert found.point.training == (1, 0.3)
    curve = {2: CurvePoint(9.5, 0.25), 10: CurvePoint(7.0, 0.5)}
    read = read_trial(frozen(**{"igdit.curve": curve_to_json(curve), "igdit.losses": 2}))
    assert (read.curve, read.losses, read.owner, read.facts) == (curve, 2, "abc", {"fid_low": 4.0})


def test_only_a_complete_trial_has_an_fid():
    """Optuna keeps the last FID of a curve as the value of a trial that was pruned."""
    assert read_trial(frozen()).fid == 5.0
    pruned = read_trial(frozen(TrialState.PRUNED))
    assert (pruned.state, pruned.fid) == ("PRUNED", None)
    assert read_trial(frozen(TrialState.RUNNING, None)).fid is None


def test_the_space_in_optunas_terms_is_the_study(study):
    space = distributions(study())
    assert (space["aux_layer"].low, space["aux_layer"].high) == (1, 2)
    weight, scale = space["aux_weight"], space["ig_scale"]
    assert (weight.low, weight.high, weight.step) == (0.1, 1.0, 0.1)
    assert (scale.low, scale.high, scale.step) == (1.0, 3.0, 0.1)


def test_trials_are_named_and_sorted_by_training():
    trials = [trial(3, weight=0.1), trial(4, weight=0.2), trial(5, weight=0.1, scale=2.0)]
    assert numbered(trials[:1]) == "trial 3"
    assert numbered(trials) == "trials 3, 4, 5"
    groups = by_training(trials)
    assert {key: [t.number for t in found] for key, found in groups.items()} == {
        (1, 0.1): [3, 5],
        (1, 0.2): [4],
    }


def test_differences_name_their_place():
    old = {"a": {"b": 1, "c": 2}, "gone": 3}
    assert differences(old, old) == []
    assert differences(old, {"a": {"b": 1, "c": 4}}) == [
        "a.c was 2 and is now 4",
        "gone was 3 and is now None",
    ]
