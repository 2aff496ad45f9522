"""How a training worker hears that it is to leave."""

from __future__ import annotations

import threading

import pytest

from pipelines import ray_training
from pipelines.ray_training import Departure


@pytest.fixture
def looks(monkeypatch):
    """How often the cluster was asked; its answer is the last item once there is one."""
    asked, draining, now = [], [False], [0.0]

    def is_draining() -> bool:
        asked.append(now[0])
        return draining[0]

    monkeypatch.setattr(ray_training, "_is_draining", is_draining)
    monkeypatch.setattr(ray_training.time, "monotonic", lambda: now[0])
    return asked, draining, now


def test_the_cluster_is_asked_once_a_second_at_most(looks):
    asked, draining, now = looks
    departure = Departure()
    departure.begin()
    for _ in range(30):
        now[0] += 0.1
        assert not departure.notice()
    assert len(asked) == 3
    draining[0] = True
    now[0] += 1
    assert departure.notice()
    assert departure.notice()  # and no more looks
    assert len(asked) == 4


def test_who_asks_waits_until_the_training_is_over(looks):
    departure = Departure()
    departure.begin()
    assert not departure.ask(0.01)
    assert departure.notice()
    ending = threading.Thread(target=departure.end)
    ending.start()
    assert departure.ask(60)
    ending.join()


def test_a_process_that_trains_nothing_does_not_keep_anybody_waiting():
    assert Departure().ask(0.0)


def test_the_next_training_of_a_process_is_not_told_to_leave(looks):
    departure = Departure()
    departure.begin()
    departure.ask(0.0)
    departure.end()
    departure.begin()
    assert not departure.notice()
