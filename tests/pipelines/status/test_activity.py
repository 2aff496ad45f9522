from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import time

import pytest

from pipelines.common.errors import TrainingFailedError
from pipelines.graph.graph import Graph
from pipelines.stages.jobs import TrainProgress
from pipelines.status import activity as module
from pipelines.status.activity import (
    LAST_FILE,
    Activity,
    ProcessState,
    Training,
    read_process_state,
)
from pipelines.store.home import Home
from pipelines.store.locks import holder
from tests.pipelines.conftest import tiny


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.02)


def said(home: Home) -> list[ProcessState]:
    return [
        read_process_state(p) for p in sorted(home.activity.glob("*.json")) if p.name != LAST_FILE
    ]


def until(condition) -> None:
    """Wait for it; what it looks at may not be there yet."""

    def holds() -> bool:
        try:
            return bool(condition())
        except IndexError:
            return False

    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_secret_is_not_published(home):
    address = "s3://key:s3cretword@bucket/x"

    def build() -> None:
        with Activity(home, "run", "a") as activity:
            activity.update(news=f"lost {address}", where=f"at {address}")
            until(lambda: said(home)[0].news == "lost s3://key:***@bucket/x")
            raise ValueError(f"{address} is away")

    with pytest.raises(ValueError, match="is away"):
        build()
    written = (home.activity / LAST_FILE).read_text()
    assert "failed: s3://key:***@bucket/x is away" in written
    assert "s3cretword" not in written


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.calls = []

    def on_waiting(self, node) -> None:
        self.calls.append(("waiting", node))

    def on_training(self, progress) -> None:
        self.calls.append(("training", progress))

    def on_finished(self, node, done, total) -> None:
        self.calls.append(("finished", node, done, total))


def test_a_process_says_what_it_does_while_it_does_it(home):
    with Activity(home, "run", "tiny", "0123456789abcdef") as activity:
        (process,) = said(home)
        assert process.title == "run tiny 01234567"
        assert (process.host, process.pid, process.phase) == (
            platform.node(),
            os.getpid(),
            "starting",
        )
        (lock,) = home.activity.glob("*.lock")
        assert holder(lock).pid == os.getpid()
        activity.update(phase="running", where="here", news="FID 3")
        until(lambda: said(home)[0].phase == "running")
        assert (said(home)[0].where, said(home)[0].news) == ("here", "FID 3")
    assert [path.name for path in home.activity.iterdir()] == [LAST_FILE]
    last = read_process_state(home.activity / LAST_FILE)
    assert (last.outcome, last.news, last.title) == ("finished", "FID 3", process.title)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyboardInterrupt(), "stopped"),
        (TrainingFailedError("the loss\nwas nan"), "failed: the loss"),
        (ValueError(""), "failed: ValueError"),
        (ZeroDivisionError("secret"), "failed: ZeroDivisionError"),
    ],
)
def test_how_it_ended_is_kept(home, error, outcome):
    with pytest.raises(type(error)), Activity(home, "run", "tiny"):
        raise error
    assert read_process_state(home.activity / LAST_FILE).outcome == outcome


def test_before_and_after_nothing_is_published(home):
    activity = Activity(home, "run", "tiny")
    activity.follow(Graph(tiny()), Recorder(), "tiny").close()
    assert not home.root.exists()
    with activity:
        pass
    activity.update(phase="late")
    assert [path.name for path in home.activity.iterdir()] == [LAST_FILE]


def test_what_is_heard_is_published_and_passed_on(home):
    graph, recorder = Graph(tiny()), Recorder()
    with Activity(home, "run", "tiny") as activity:
        followed = activity.follow(graph, recorder, "a training")
        progress = TrainProgress(5, 20, 0.5, 10.0, "a-host")
        followed.on_training(progress)
        followed.on_waiting(graph.data)
        until(lambda: said(home)[0].builds[0].waiting)
        (build,) = said(home)[0].builds
        assert (build.name, build.trajectory) == ("a training", graph.checkpoint(0).hash)
        assert build.waiting == f"data/{graph.data.key}"
        assert build.training == Training(
            step=5,
            steps=20,
            loss=0.5,
            steps_per_second=10.0,
            workers=1,
            host="a-host",
            reported_at=build.training.reported_at,
        )
        followed.on_finished(graph.data, 1, 9)
        followed.on_finished(graph.checkpoints[0], 2, 9)
        until(lambda: said(home)[0].builds[0].done == 2)
        (build,) = said(home)[0].builds
        assert (build.total, build.waiting, build.training.step) == (9, "", 5)
        followed.on_finished(graph.checkpoints[-1], 3, 9)
        until(lambda: said(home)[0].builds[0].training is None)
        followed.close()
        until(lambda: said(home)[0].builds == ())
    assert recorder.calls == [
        ("training", progress),
        ("waiting", graph.data),
        ("finished", graph.data, 1, 9),
        ("finished", graph.checkpoints[0], 2, 9),
        ("finished", graph.checkpoints[-1], 3, 9),
    ]


def test_a_training_that_reports_its_last_step_is_over(home):
    with Activity(home, "run", "tiny") as activity:
        followed = activity.follow(Graph(tiny()), Recorder(), "tiny")
        followed.on_training(TrainProgress(20, 20, 0.5, 10.0))
        assert activity._process_state.builds[0].training is None


def test_several_pieces_of_work_are_published_side_by_side(home):
    with Activity(home, "study", "s") as activity:
        first = activity.follow(Graph(tiny()), Recorder(), "one")
        activity.follow(Graph(tiny()), Recorder(), "two")
        first.close()
        until(lambda: [w.name for w in said(home)[0].builds] == ["two"])


def test_the_file_is_written_at_most_once_a_pause(home, monkeypatch):
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.2)
    written = []
    real = module.replace_text
    monkeypatch.setattr(module, "replace_text", lambda *a: (written.append(a), real(*a)))
    with Activity(home, "run", "tiny") as activity:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            activity.update(news=str(time.monotonic()))
    assert len(written) <= 1 + 3 + 1


def test_a_full_disk_is_not_noticed(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "replace_text", full)
    with Activity(home, "run", "tiny") as activity:
        activity.update(news="fine")
        time.sleep(0.1)


def test_a_folder_that_cannot_be_made_is_not_noticed(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with Activity(Home(tmp_path / "file"), "run", "tiny") as activity:
        activity.update(news="fine")


def test_a_look_at_its_beginning_does_not_make_it_look_dead(home, monkeypatch):
    """Whoever looks whether it lives holds its lock for a moment."""
    real, looks = module.FileLock.acquire, [False, False]
    monkeypatch.setattr(
        module.FileLock, "acquire", lambda lock: looks.pop() if looks else real(lock)
    )
    with Activity(home, "run", "tiny"):
        (lock,) = home.activity.glob("*.lock")
        assert holder(lock).pid == os.getpid()


def test_what_would_look_dead_is_not_shown(home, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Activity(home, "run", "tiny") as activity:
        activity.update(news="fine")
        time.sleep(0.1)
        assert said(home) == []
    assert read_process_state(home.activity / LAST_FILE).news == "fine"


# What the dead leave behind


def leave_behind(home: Home, *, file: str, age: float = 0.0, **changes) -> None:
    """The files of a process that was killed."""
    home.activity.mkdir(parents=True, exist_ok=True)
    process = ProcessState(kind="run", name="tiny", host="h", pid=1, started=1.0, updated=2.0)
    path = home.activity / f"{file}.json"
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(process, **changes))))
    path.with_suffix(".lock").touch()
    os.utime(path, (time.time() - age, time.time() - age))


def test_the_same_work_begun_again_takes_the_place_of_the_dead(home):
    leave_behind(home, file="same", key="aaaa")
    leave_behind(home, file="other", key="bbbb")
    leave_behind(home, file="old", key="cccc", age=25 * 3600)
    (home.activity / "foreign.json").write_text("[]")
    with Activity(home, "run", "tiny", "aaaa") as activity:
        names = {p.name for p in home.activity.iterdir()}
        assert names == {
            f"{activity._id}.json",
            f"{activity._id}.lock",
            "other.json",
            "other.lock",
            "foreign.json",
        }


def test_the_same_work_at_the_same_time_is_left_alone(home):
    with Activity(home, "run", "tiny", "aaaa"), Activity(home, "run", "tiny", "aaaa"):
        assert len(said(home)) == 2


# Reading


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"kind": "run"}',
        b'{"unknown": 1}',
        b"[" * 100_000,
        b" " * (module.MAX_FILE_BYTES + 1),
    ],
    ids=["empty", "cut", "list", "binary", "incomplete", "unknown", "deep", "large"],
)
def test_what_is_no_activity_is_a_value_error(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(ValueError):
        read_process_state(path)


def test_what_is_not_there_is_none(tmp_path):
    assert read_process_state(tmp_path / "x.json") is None
