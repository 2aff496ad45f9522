from __future__ import annotations

import dataclasses
import io
import os
import platform
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pipelines.console.console import make_console
from pipelines.console.progress import training_text
from pipelines.console.status import render_status, watch_status
from pipelines.graph.graph import Graph
from pipelines.status.activity import LAST_FILE, Activity, Build, ProcessState, Training, Trials
from pipelines.status.read import Status, read_status
from pipelines.store.home import Home
from pipelines.store.keys import Ref
from tests.pipelines.conftest import ROOT, run_inline, tiny, tree
from tests.pipelines.status.test_activity import leave_behind
from tests.test_house import loaded_after

WORK = """
import sys, time
from pathlib import Path
from pipelines.status.activity import Activity
from pipelines.store.home import Home
from pipelines.graph.graph import Graph
from pipelines.store.keys import Ref
from pipelines.stages.jobs import TrainProgress
from pipelines.execution.listener import NullListener
from tests.pipelines.conftest import tiny
home, name = Home(Path(sys.argv[1])), sys.argv[2]
trajectory = Ref("train", "0123456789abcdef0123")
with Activity(home, "run", name) as activity, home.store.lease(trajectory):
    followed = activity.follow(Graph(tiny()), NullListener(), name)
    followed.on_training(TrainProgress(5, 20, 0.5, 2.5, "far-away"))
    activity._write()
    print("ready")
    input()
print("over")
"""


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


def shown(status: Status, width: int = 200) -> str:
    screen = io.StringIO()
    make_console(file=screen, width=width).print(render_status(status))
    return screen.getvalue()


def status_of(home: Home, **changes) -> Status:
    return dataclasses.replace(read_status(home), **changes)


# Nothing runs


def test_an_empty_home_is_told_and_not_made(home):
    text = shown(read_status(home))
    assert text.startswith(f"Nothing is running in {home.root}")
    assert not home.root.exists()


def test_what_ended_last_is_told_with_its_result(finished):
    before = tree(finished.home.root)
    text = shown(read_status(finished.home))
    assert "Nothing is running in" in text
    assert f"Last: run tiny {finished.graph.run_key[:8]}, finished" in text
    assert f"on {platform.node()} after" in text
    assert "FID" in text
    assert "published" in text.split("last events")[1]
    assert tree(finished.home.root) == before


# Something runs


def test_two_processes_are_told_apart_and_a_killed_one_is_gone(home, child):
    first, second = child(WORK, home.root, "first"), child(WORK, home.root, "second")
    # They want the same lease: only one of them gets as far as publishing its training.
    deadline = time.monotonic() + 60
    while len(read_status(home).working) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    text = shown(read_status(home))
    assert "2 processes are running" in text
    for process, name in ((first, "run first"), (second, "run second")):
        assert name in text
        assert f"pid {process.process.pid}" in text

    first.kill()
    status = read_status(home)
    assert [d.name for d in status.working] == ["second"]
    assert [d.name for d in status.gone] == ["first"]
    text = shown(status)
    assert "1 process is running" in text
    assert f"run first died on {platform.node()}" in text
    assert second.read() == "ready"
    second.say()
    assert second.read() == "over"
    status = read_status(home)
    assert (status.working, status.last.name) == ((), "second")
    assert [d.name for d in status.gone] == ["first"]


def test_a_training_is_told_with_its_lease(home, child):
    process = child(WORK, home.root, "mine")
    assert process.read() == "ready"
    status = read_status(home)
    text = shown(status)
    assert "train   step 5 of 20, loss 0.5000, 2.5 steps/s, 0:06 left, 1 worker on far-away" in text
    (task,) = status.tasks
    assert (task.ref.kind, task.lease.pid, task.worker) == ("train", process.process.pid, None)
    assert any(
        line.split()[:1] == ["train/01234567"] and "run mine" in line for line in text.splitlines()
    )
    process.kill()
    text = shown(read_status(home))
    assert "mine at step 5 of 20" in text
    assert "train/01234567" not in text


def test_what_is_built_is_told_with_its_worker_and_what_it_is_for(home):
    from experiments import experiment_to_json

    graph = run_inline(home.store, tiny(), targets=[Graph(tiny()).data])
    for node in (graph.headline.images[0], graph.checkpoints[0], graph.resume(7), graph.data):
        with home.store.publish(
            Ref(node.kind, node.key + "0" * (node is graph.data)), {}
        ) as folder:
            (folder / "experiment.json").write_text(experiment_to_json(tiny()))
            (task,) = read_status(home).tasks
            assert (task.worker.pid, task.worker.host) == (os.getpid(), platform.node())
            assert task.ref.key.startswith(node.key)
            expected = {
                "images": "tiny, step 20, scale 1.5",
                "checkpoint": "tiny, step 10",
                "resume": "tiny, step 7",
            }
            assert task.label == expected.get(node.kind, "tiny")
            assert f"{platform.node()} pid {os.getpid()}" in shown(read_status(home))
    assert read_status(home).tasks == ()


def test_locks_of_the_dead_are_no_tasks(home):
    for path in (".leases/train-abc", ".staging/images-abc-123.lock"):
        (home.store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (home.store.root / path).write_text("1 here\n")
    assert read_status(home).tasks == ()


def test_a_study_is_told_with_its_trials_and_its_pace(home):
    now = time.time()
    trials = Trials(complete=7, running=2, pruned=1, failed=0, wanted=12, at_first=2)
    build = Build(
        name="layer 1, weight 0.5",
        trajectory="abc",
        started=now - 60,
        done=6,
        total=18,
        waiting="data/abcd",
    )
    process = ProcessState(
        kind="study",
        name="s",
        host="h",
        pid=7,
        started=now - 100,
        updated=now - 3,
        phase="running",
        where="Ray",
        trials=trials,
        builds=(build,),
        news="FID 4",
    )
    text = shown(status_of(home, working=(process,), now=now))
    for part in (
        "study s: running for 1:40, on h (pid 7), updated 3 s ago",
        "trials    7 of 12 complete, 2 running, 1 pruned, about 1:40 left at this pace",
        "layer 1, weight 0.5: 6 of 18 artifacts, about 2:00 left at this pace",
        "waiting for data/abcd, which another process builds",
        "last      FID 4",
    ):
        assert part in text
    assert "failed" not in text


def test_a_training_that_says_nothing_is_not_said_to_move(home):
    now = time.time()
    training = Training(
        step=10,
        steps=20,
        loss=float("nan"),
        steps_per_second=2.0,
        workers=4,
        host="h",
        reported_at=now - 120,
    )
    text = training_text(training, now)
    assert "0:00 left" in text
    assert "4 workers, the first on h (reported 2 min ago)" in text


# What cannot be trusted


def test_foreign_files_are_left_out_with_a_note(home):
    leave_behind(home, file="good")
    (home.activity / "cut.json").write_text('{"kind": "ru')
    (home.activity / "foreign.json").write_text('{"kind": "run", "colour": "red"}')
    (home.activity / LAST_FILE).write_bytes(b"\xff\xff")
    (home.activity / "folder.json").mkdir()
    status = read_status(home)
    assert [d.name for d in status.gone] == ["tiny"]
    text = shown(status)
    for name in ("cut.json", "foreign.json", LAST_FILE, "folder.json"):
        assert f"note: {name} is left out" in text


def test_what_others_wrote_does_not_command_the_terminal(home):
    leave_behind(home, file="evil", name="[red]\x1b[2Jx[/red]", host="\x1b]0;t\x07", key="k")
    text = shown(read_status(home))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text


def test_events_that_cannot_be_read_are_left_out(home):
    home.store.log("published", Ref("images", "abcdefgh"))
    with (home.store.root / "events.jsonl").open("a") as file:
        file.write('{"time": "x"}\n[]\n{"time": 1')
    assert [e["key"] for e in read_status(home).events] == ["abcdefgh"]


def test_the_end_of_a_long_log_is_read(home):
    home.store.root.mkdir(parents=True)
    line = '{"time": 1.0, "event": "published", "kind": "images", "key": "old"}\n'
    (home.store.root / "events.jsonl").write_text(line * 100_000)
    home.store.log("published", Ref("images", "new"))
    started = time.monotonic()
    events = read_status(home).events
    assert time.monotonic() - started < 0.5
    assert [e["key"] for e in events] == ["old"] * 4 + ["new"]


def test_it_fits_a_narrow_terminal(home):
    with Activity(home, "run", "a-very-long-name-" * 5), home.store.lease(Ref("train", "a" * 20)):
        assert max(map(len, shown(read_status(home), 60).splitlines())) <= 60


# The command


def test_the_command_needs_no_heavy_library():
    loaded = loaded_after(
        "import os, tempfile; os.environ['IGDIT_HOME'] = tempfile.mkdtemp()\n"
        "import contextlib, io\nfrom pipelines.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['status'])"
    )
    assert not loaded & {"ray", "mlflow", "torch", "optuna", "pandas", "matplotlib"}


def test_the_command_reads_a_folder_that_cannot_be_written(finished, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "pipelines", "status", "--watch"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "IGDIT_HOME": str(finished.home.root)},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "Nothing is running in" in run.stdout


def test_watching_looks_again_and_again(home, monkeypatch):
    screen, looks = io.StringIO(), []

    def stop(seconds):
        looks.append(seconds)
        home.store.log("published", Ref("images", f"look{len(looks)}"))
        if len(looks) == 3:
            raise KeyboardInterrupt

    # In that module alone: other threads of the tests sleep too.
    monkeypatch.setattr("pipelines.console.status.time", SimpleNamespace(sleep=stop))
    with pytest.raises(KeyboardInterrupt):
        watch_status(home, make_console(file=screen, width=100, terminal=True), 0.5)
    assert looks == [0.5] * 3
    assert "look2" in screen.getvalue()
