"""Names of artifacts: one spelling, one parser."""

from __future__ import annotations

import pickle

import pytest

from pipelines.store.keys import Ref

TRAJECTORY = "0123456789abcdef0123"
STATE = Ref("checkpoint", f"{TRAJECTORY}-00001000")


def test_a_name_is_read_back_as_it_was_written():
    assert str(STATE) == f"checkpoint/{TRAJECTORY}-00001000"
    assert Ref.parse(str(STATE)) == Ref.parse_flat(STATE.flat) == STATE
    assert pickle.loads(pickle.dumps(STATE)) == STATE
    assert STATE.short == "checkpoint/01234567"


def test_a_state_is_named_by_its_trajectory_and_its_step():
    assert Ref.of("checkpoint", TRAJECTORY, 1000) == STATE
    assert (STATE.hash, STATE.step) == (TRAJECTORY, 1000)
    last = Ref.of("resume", TRAJECTORY, 123_456_789)
    assert (last.key, last.step) == (f"{TRAJECTORY}-123456789", 123_456_789)


def test_what_is_no_state_has_no_step():
    for key in (TRAJECTORY, "a-b", "00001000"):
        ref = Ref("data", key)
        assert ref.hash == key
        with pytest.raises(ValueError, match=f"must end in -STEP, but got data/{key}"):
            assert ref.step


def test_names_are_in_the_order_of_kind_and_key():
    assert sorted([Ref("images", "a"), Ref("data", "b"), Ref("data", "a")]) == [
        Ref("data", "a"),
        Ref("data", "b"),
        Ref("images", "a"),
    ]


@pytest.mark.parametrize("text", ["", "data", "data/", "/a", "data/../a", "data/a/b", "da ta/a"])
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ValueError, match=r"must be KIND/KEY, but got"):
        Ref.parse(text)
