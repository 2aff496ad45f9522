from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pipelines.console.study import Pace
from pipelines.status.activity import Build, ProcessState, Training, Trials

NOW = time.time()
TRIALS = Trials(complete=4, running=2, pruned=0, failed=0, wanted=10, at_first=2)
TRAINING = Training(
    step=5, steps=20, loss=0.5, steps_per_second=2.5, workers=1, host="far", reported_at=NOW
)
DOING = ProcessState(
    kind="study",
    name="s",
    host="h",
    pid=1,
    started=NOW,
    updated=NOW,
    phase="running",
    trials=TRIALS,
)


def pace_of(*found: ProcessState, passed: float = 60.0) -> tuple[Pace, list[ProcessState]]:
    times, now = [0.0], [*found]
    pace = Pace(lambda: now[0], lambda: times[0])
    times[0] = passed
    return pace, now


def test_what_runs_counts_by_the_part_of_it_that_is_done():
    builds = (
        Build(name="layer 1", trajectory="a", started=NOW, done=3, total=4),
        Build(name="layer 2", trajectory="b", started=NOW, done=1, total=4),
    )
    pace, _ = pace_of(replace(DOING, builds=builds))
    assert pace.share() == pytest.approx((4 + 0.75 + 0.25) / 10)
    assert pace.seconds_left() == pytest.approx(5 * 60 / 3)  # three in a minute, five are left


def test_the_bar_never_goes_back():
    build = Build(name="layer 1", trajectory="a", started=NOW, done=3, total=4)
    pace, now = pace_of(replace(DOING, builds=(build,)))
    before = pace.share()
    now[0] = replace(DOING, trials=replace(TRIALS, running=0))  # a training was pruned
    assert pace.share() == before
    now[0] = replace(DOING, trials=replace(TRIALS, complete=10, running=0))
    assert pace.share() == 1


def test_no_time_is_promised_at_the_beginning():
    pace, _ = pace_of(replace(DOING, trials=None))
    assert pace.how_far() == "0 %  time left unknown  1:00 elapsed"
    assert pace.what_runs() == "running"
    pace, _ = pace_of(replace(DOING, trials=replace(TRIALS, complete=2, running=2)))
    assert pace.seconds_left() is None


def test_it_says_which_trainings_run():
    builds = (
        Build(name="layer 1", trajectory="a", started=NOW, done=1, total=4, training=TRAINING),
        Build(name="layer 2", trajectory="b", started=NOW, waiting="train/x"),
    )
    pace, _ = pace_of(replace(DOING, builds=builds))
    text = pace.what_runs()
    assert "layer 1: step 5 of 20, loss 0.5000, 2.5 steps/s, 0:0" in text
    assert "; layer 2: waiting for train/x, which another process builds" in text
    assert "4 of 10 trials" in pace.how_far()
