"""States are published while the training goes on."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from experiments import experiment_to_json
from ig_core.checkpoints.own import PackedCheckpoint, load_checkpoint
from pipelines.common.errors import ArtifactError
from pipelines.graph.graph import Graph
from pipelines.graph.trajectory import published_steps, resume_steps
from pipelines.stages.jobs import TrainJob, TrainOutcome
from pipelines.stages.training import publisher as saving
from pipelines.stages.training.worker import train_worker
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
from tests.ig_core.training.test_loop import assert_same
from tests.pipelines.conftest import events, run_inline, tiny
from tests.pipelines.stages.training.test_publisher import ALWAYS, trained

LONG = tiny(train={"steps": 60, "checkpoint_every": 20}, resources={"save_minutes": None})


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """Workers meet after every step, however fast they are."""
    monkeypatch.setattr(saving, "MEETING_STEPS", 1)


@pytest.fixture
def held(monkeypatch):
    """No state is written until the event is set."""
    go_on, write = threading.Event(), PackedCheckpoint.write

    def write_later(packed, directory):
        assert go_on.wait(60)
        write(packed, directory)

    monkeypatch.setattr(PackedCheckpoint, "write", write_later)
    return go_on


def at_meeting(number: int, act) -> object:
    """A preemption that never comes, and does something when it is asked for the n-th time."""
    asked = []

    def is_preempted() -> bool:
        asked.append(1)
        if len(asked) == number:
            act()
        return False

    return is_preempted


def test_what_is_written_is_the_state_of_its_step_however_far_the_training_went(tmp_path, held):
    store, graph = FolderStore(tmp_path / "store"), Graph(LONG)

    def let_go() -> None:
        assert published_steps(store, graph) == []
        held.set()

    trained(store, LONG, is_preempted=at_meeting(35, let_go))  # fifteen steps after it was taken
    assert published_steps(store, graph) == [20, 40, 60]
    whole = FolderStore(tmp_path / "whole")
    trained(whole, LONG)
    for step in (20, 40, 60):
        key = graph.checkpoint(step).key
        found, expected = (
            load_checkpoint(each.open(Ref("checkpoint", key)).path) for each in (store, whole)
        )
        assert_same(found, expected)


def test_no_state_is_taken_for_safety_while_one_is_being_written(tmp_path, held):
    store = FolderStore(tmp_path)
    experiment = tiny(train={"steps": 60, "checkpoint_every": 60}, resources=ALWAYS)
    graph, _ = trained(store, experiment, is_preempted=at_meeting(40, held.set))
    saved = [int(event["key"][-8:]) for event in events(store, "published", "resume")]
    assert saved[0] == 1
    assert saved[1] > 40
    assert (published_steps(store, graph), resume_steps(store, graph)) == ([60], [])


def test_a_training_that_breaks_still_publishes_what_it_was_writing(tmp_path, held):
    store, graph = FolderStore(tmp_path), Graph(LONG)

    def break_down() -> None:
        threading.Timer(0.5, held.set).start()
        raise ConnectionError("the other worker is gone")

    with pytest.raises(ConnectionError):
        trained(store, LONG, is_preempted=at_meeting(30, break_down))
    assert published_steps(store, graph) == [20]


def test_a_write_that_failed_ends_the_training_at_the_next_meeting(tmp_path, monkeypatch):
    def fail(packed, directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackedCheckpoint, "write", fail)
    seen = []
    experiment = tiny(train={"steps": 500, "checkpoint_every": 5}, resources={"save_minutes": None})
    job_steps = (5, 500)
    graph = run_inline(FolderStore(tmp_path), experiment, [Graph(experiment).data])
    job = TrainJob(str(tmp_path), experiment_to_json(experiment), job_steps)
    with pytest.raises(ArtifactError, match="No space left"):
        train_worker(job, 0, 1, lambda progress: seen.append(progress.step))
    assert seen[-1] < 500
    assert published_steps(FolderStore(tmp_path), graph) == []


def test_who_is_told_to_leave_waits_for_what_is_being_written(tmp_path, held):
    """However long it takes, and however long the step in between."""
    holds, publishing = [], threading.Condition()

    @contextmanager
    def hold():
        with publishing:
            holds.append(1)
        yield
        with publishing:
            holds.pop()

    during = []

    def look() -> None:
        during.append(len(holds))
        held.set()

    store = FolderStore(tmp_path)
    trained(store, LONG, is_preempted=at_meeting(30, look), publishing=hold)
    assert during == [1]
    assert holds == []


def test_a_state_that_cannot_be_written_ends_the_training_and_the_rest_resumes(
    tmp_path, monkeypatch
):
    store, graph = (
        FolderStore(tmp_path),
        run_inline(FolderStore(tmp_path), LONG, [Graph(LONG).data]),
    )
    write, tried = PackedCheckpoint.write, []

    def fail_once(packed, directory):
        tried.append(packed.header["step"])
        if len(tried) == 2:
            raise OSError(28, "No space left on device")
        write(packed, directory)

    monkeypatch.setattr(PackedCheckpoint, "write", fail_once)
    job = TrainJob(str(store.root), experiment_to_json(LONG), (20, 40, 60))
    with pytest.raises(ArtifactError, match="No space left"):
        train_worker(job, 0, 1, lambda progress: None)
    assert published_steps(store, graph) == [20]
    assert train_worker(job, 0, 1, lambda progress: None) == TrainOutcome(60)
    assert tried == [20, 40, 40, 60]
    assert [event["from_step"] for event in events(store, "execute", "checkpoint")] == [0, 20]
