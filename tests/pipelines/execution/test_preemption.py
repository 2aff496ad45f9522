"""How a training worker learns that it is preempted."""

from __future__ import annotations

import threading
from time import sleep

import pytest

from experiments import experiment_to_json
from pipelines.execution import ray_train as ray_training
from pipelines.execution.ray_train import Preemption
from pipelines.graph.graph import Graph
from pipelines.graph.trajectory import resume_steps
from pipelines.stages.jobs import TrainJob
from pipelines.stages.training.worker import train_worker
from pipelines.store.folder import FolderStore
from tests.pipelines.conftest import run_inline, tiny


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
    preemption = Preemption()
    preemption.begin()
    for _ in range(30):
        now[0] += 0.1
        assert not preemption.is_preempted()
    assert len(asked) == 3
    draining[0] = True
    now[0] += 1
    assert preemption.is_preempted()
    assert preemption.is_preempted()  # and no more looks
    assert len(asked) == 4


def test_who_asks_waits_until_the_training_is_over(looks):
    preemption = Preemption()
    preemption.begin()
    assert not preemption.drain(0.01)
    assert preemption.is_preempted()
    ending = threading.Thread(target=preemption.end)
    ending.start()
    assert preemption.drain(60)
    ending.join()


def test_a_process_that_trains_nothing_does_not_keep_anybody_waiting():
    assert Preemption().drain(0.0)


def test_the_next_training_of_a_process_is_not_preempted(looks):
    preemption = Preemption()
    preemption.begin()
    preemption.drain(0.0)
    preemption.end()
    preemption.begin()
    assert not preemption.is_preempted()


class SlowTraining:
    """A training in a thread whose states take a second to publish."""

    def __init__(self, folder, monkeypatch) -> None:
        self.store, self.experiment = FolderStore(folder), tiny(train=LONG)
        self.graph = run_inline(self.store, self.experiment, [Graph(self.experiment).data])
        self.preemption, self.begun = Preemption(0.05, 0.05), threading.Event()
        commit = FolderStore._commit

        def slow(store, *arguments):
            self.begun.set()
            sleep(1.0)
            return commit(store, *arguments)

        monkeypatch.setattr(FolderStore, "_commit", slow)
        monkeypatch.setattr(ray_training, "_is_draining", lambda: True)
        self.thread = threading.Thread(target=self._train)
        self.preemption.begin()
        self.thread.start()
        assert self.begun.wait(60)

    def _train(self) -> None:
        job = TrainJob(str(self.store.root), experiment_to_json(self.experiment), (60,))
        try:
            self.outcome = train_worker(
                job,
                0,
                1,
                lambda progress: None,
                self.preemption.is_preempted,
                self.preemption.publishing,
            )
        finally:
            self.preemption.end()


LONG = {"steps": 60, "checkpoint_every": 60}


@pytest.fixture
def slow(tmp_path, monkeypatch):
    training = SlowTraining(tmp_path / "store", monkeypatch)
    yield training
    training.thread.join(60)
    assert training.outcome.preempted


def test_a_group_that_is_resized_is_waited_for_while_it_publishes(slow):
    assert slow.preemption.drain(0.05)
    assert len(resume_steps(slow.store, slow.graph)) == 1


def test_a_process_that_got_sigterm_does_not_end_while_it_publishes(slow, monkeypatch):
    ended = []
    monkeypatch.setattr(
        ray_training.os,
        "_exit",
        lambda code: ended.append((code, len(resume_steps(slow.store, slow.graph)))),
    )
    slow.preemption._drain_and_exit()
    assert ended == [(143, 1)]


def test_a_publish_that_begins_late_is_not_ended_either(monkeypatch):
    """The training was given up, and only then came to publish its state."""
    preemption, ended, published = Preemption(0.01, 0.5), [], threading.Event()
    monkeypatch.setattr(ray_training.os, "_exit", lambda code: ended.append(published.is_set()))
    preemption.begin()
    draining = threading.Thread(target=preemption._drain_and_exit)
    draining.start()
    sleep(0.2)
    with preemption.publishing():
        draining.join(1.0)
        assert draining.is_alive()
        published.set()
    draining.join(60)
    assert ended == [True]
