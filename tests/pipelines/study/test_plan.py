"""What a study does next: pure functions."""

import pytest

from experiments import PruningConfig, Range
from pipelines.study.search import next_scales, should_prune
from pipelines.study.trials import CurvePoint

SPACE = Range(low=1.0, high=3.0, step=0.1)


def bowl(best, depth=3.0):
    return lambda scale: 8 + depth * (scale - best) ** 2


def play(first, fid, count, space=SPACE):
    """Scales in the order in which they are evaluated."""
    known = {first: None}
    order = [first]
    while True:
        new = next_scales(known, space, count)
        order += new
        known |= dict.fromkeys(new)
        if not new and None not in known.values():
            return order
        known = {scale: fid(scale) for scale in known}


@pytest.mark.parametrize("first", [1.0, 1.1, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("best", [1.0, 1.4, 1.85, 2.6, 3.0])
def test_five_scales_come_near_the_minimum_of_a_bowl(first, best):
    order = play(first, bowl(best), 5)
    assert len(order) == len(set(order)) == 5
    assert 1.0 in order, "unguided is what a gain is measured against"
    assert min(abs(scale - best) for scale in order) <= 0.2


@pytest.mark.parametrize("count", range(1, 22))
def test_there_are_as_many_scales_as_asked_for(count):
    assert len(play(1.5, bowl(1.8), count)) == count


def test_no_more_scales_than_there_are():
    narrow = Range(low=1.0, high=1.2, step=0.1)
    assert sorted(play(1.1, bowl(1.1), 9, narrow)) == [1.0, 1.1, 1.2]


def test_a_single_scale():
    assert play(2.0, bowl(2.0), 3, Range(low=2.0, high=2.0, step=1.0)) == [2.0]


def test_refinement_waits_for_what_is_on_its_way():
    assert next_scales({1.0: 9.0, 2.0: None, 3.0: 8.0}, SPACE, 5) == []


def test_a_space_without_scale_one_begins_at_its_end_nearest_to_one():
    above = Range(low=1.5, high=2.5, step=0.5)
    assert play(2.0, bowl(2.0), 3, above)[1] == 1.5


def test_equal_fids_do_not_divide_by_zero():
    assert len(play(2.0, lambda scale: 5.0, 8)) == 8


@pytest.mark.parametrize(
    ("fids", "expected"),
    [
        ((5.0, 9.0, 10.0), 1.5),  # the best lies at the lower end: half the way to its neighbour
        ((10.0, 9.0, 5.0), 2.5),
        ((10.0, 5.0, 6.0), 2.3),  # the parabola has its minimum at 2.33
        ((6.0, 5.0, 6.0), 1.9),  # it has been looked at: beside it, below first
    ],
)
def test_the_next_scale_is_where_the_minimum_is_to_be_expected(fids, expected):
    assert next_scales(dict(zip((1.0, 2.0, 3.0), fids, strict=True)), SPACE, 5) == [expected]


def test_beyond_the_best_there_may_be_more():
    """Of scales that do not reach the ends, the end beyond the best one is looked at."""
    assert next_scales({1.5: 5.0, 2.0: 6.0, 2.2: 7.0}, SPACE, 5) == [1.0]
    assert next_scales({1.5: 7.0, 2.0: 6.0, 2.2: 5.0}, SPACE, 5) == [3.0]


RULE = PruningConfig(warmup_trainings=3, patience=2)


def curve(*fids, half_width=1.0):
    return {100 * (k + 1): CurvePoint(fid, half_width) for k, fid in enumerate(fids)}


OTHERS = [curve(50, 30, 20), curve(52, 31, 21), curve(48, 29, 19)]


def test_worse_than_the_median_beyond_the_noise_twice_in_a_row_is_bad():
    assert should_prune(curve(60, 40), OTHERS, RULE)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (curve(60), "one point never decides"),
        (curve(60, 31), "the second point is within the noise"),
        (curve(51, 40), "the first point is within the noise"),
        (curve(40, 25), "it is better"),
        (curve(60, 40, half_width=20.0), "its intervals are wide"),
    ],
)
def test_what_is_not_bad(own, why):
    assert not should_prune(own, OTHERS, RULE), why


@pytest.mark.parametrize(("above", "pruned"), [(4.5, False), (4.99, False), (5.01, True)])
def test_noise_of_both_adds_up_as_independent_errors_do(above, pruned):
    """3 and 4 make 5: neither the larger of them nor their sum."""
    others = [curve(20, 20, half_width=4.0)] * 3
    assert should_prune(curve(20 + above, 20 + above, half_width=3.0), others, RULE) == pruned


def test_wide_intervals_of_the_others_protect_too():
    wide = [{step: CurvePoint(p.fid, 20.0) for step, p in other.items()} for other in OTHERS]
    assert not should_prune(curve(60, 40), wide, RULE)


def test_nothing_is_pruned_before_there_is_something_to_compare_with():
    assert not should_prune(curve(600, 400), OTHERS[:2], RULE)
    short = [{100: other[100]} for other in OTHERS]
    assert not should_prune(curve(600, 400), short, RULE)


def test_nothing_is_pruned_when_it_is_off():
    assert not should_prune(curve(600, 400), OTHERS, PruningConfig(enabled=False))


def test_only_the_last_points_count():
    assert not should_prune(curve(90, 80, 20), OTHERS, RULE), "it has caught up"
    assert should_prune(curve(40, 80, 90), OTHERS, RULE)
