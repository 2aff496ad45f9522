"""The real thing in processes of its own: Ray, Ray Train over gloo, kills, two runs at once."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import descendants, title
from pipelines.__main__ import main
from pipelines.graph.graph import Graph
from pipelines.store.folder import FolderStore
from pipelines.store.locks import FileLock
from pipelines.store.register import read_register
from tests.equipment.processes import alive, is_loopback, kill_tree, listeners, wait_for
from tests.pipelines.conftest import OUTSIDE

pytestmark = pytest.mark.long

SETTINGS = {
    # Slow enough that a signal sent at one checkpoint lands before the next.
    "train.steps": 96,
    "train.checkpoint-every": 32,
    "evaluation.num-samples": 200,
    "evaluation.curve-samples": 100,
    "evaluation.shard-size": 100,
    "evaluation.groups": 10,
    "evaluation.extractor-epochs": 1,
    "evaluation.kid-subsets": 2,
    "evaluation.kid-subset-size": 50,
    "ig-scales": 1.5,
    "resources.sample-tasks": 1,
}
OPTIONS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]


class Run:
    """`igdit run digits` in a process of its own."""

    def __init__(self, home: Path, workers: int, *more: str) -> None:
        self.home, self.store = home, FolderStore(home / "store")
        command = [
            sys.executable,
            "-m",
            "pipelines",
            "run",
            "digits",
            *OPTIONS,
            *more,
            "--resources.num-workers",
            str(workers),
        ]
        self.log = home.with_suffix(".log").open("a")
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            command, env={**environment, "IGDIT_HOME": str(home)}, stdout=self.log, stderr=self.log
        )

    def finish(self) -> None:
        code = self.process.wait(timeout=240)
        assert code == 0, self.home.with_suffix(".log").read_text()[-4000:]

    def published(self, kind: str) -> list[str]:
        return [event["key"] for event in events(self.store, "published", kind)]

    def wait_for(self, condition) -> None:
        """Wait for something to come true while the driver lives."""

        def ready():
            assert self.process.poll() is None, self.home.with_suffix(".log").read_text()[-4000:]
            return condition()

        wait_for(ready)

    def wait_published(self, kind: str, count: int) -> None:
        self.wait_for(lambda: len(self.published(kind)) >= count)

    def kill(self) -> None:
        """SIGKILL the driver alone, then see its workers go by themselves.

        Ray's own agents, which do none of the work, may look for their dead node for a minute.
        """
        below = descendants(self.process.pid)
        agents = [pid for pid in below if "Agent" in title(pid)]
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not any(alive(pid) for pid in below if pid not in agents), 60)
        for pid in filter(alive, agents):
            os.kill(pid, signal.SIGKILL)

    def kill_worker(self, name: str) -> None:
        """SIGKILL a Ray worker process that runs the named task or actor."""
        name = f"ray::{name}"
        pid = wait_for(
            lambda: next((p for p in descendants(self.process.pid) if name in title(p)), 0)
        )
        os.kill(pid, signal.SIGKILL)


def events(store: FolderStore, event: str, kind: str | None = None) -> list[dict]:
    return [e for e in store.events() if e["event"] == event and kind in (None, e["kind"])]


def final_graph(store: FolderStore) -> Graph:
    return Graph(next(iter(read_register(store).experiments.values())))


def final_weights(store: FolderStore, name: str) -> bytes:
    node = final_graph(store).checkpoints[-1]
    return (store.open(node.ref).path / f"{name}.safetensors").read_bytes()


def fids(store: FolderStore) -> list[float]:
    graph = final_graph(store)
    refs = [point.evaluate.ref for point in graph.final.values()]
    paths = [store.open(ref).path / "metrics.json" for ref in refs]
    return [json.loads(path.read_text())["fid"] for path in paths]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> FolderStore:
    """The store of the same run in one process, without Ray."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    with pytest.MonkeyPatch.context() as patch:
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        patch.setenv("IGDIT_HOME", str(home))
        words = ["--resources.runner", "inline", "--resources.num-workers", "1"]
        assert main(["run", "digits", *OPTIONS, *words]) == 0
    return FolderStore(home / "store")


class Chaos:
    """Runs of one home that are stopped or killed, one after the other."""

    def __init__(self, home: Path) -> None:
        self.home, self.store, self.runs = home, FolderStore(home / "store"), []

    def start(self, workers: int) -> Run:
        self.runs.append(Run(self.home, workers))
        return self.runs[-1]

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.runs:
            kill_tree(each.process.pid)

    @property
    def starts(self) -> list[int]:
        """Steps at which trainings started."""
        return [e["from_step"] for e in events(self.store, "execute", "checkpoint")]

    def stop_at_the_first_checkpoint(self) -> None:
        """SIGTERM to a run with one worker; its processes go, and what it published stays."""
        run = self.start(1)
        run.wait_published("checkpoint", 1)
        below = descendants(run.process.pid)
        run.process.terminate()
        assert run.process.wait(timeout=60) == 130
        wait_for(lambda: not any(alive(pid) for pid in below), 60)
        lock = FileLock(self.store.root / ".in-use.lock")
        assert lock.acquire()
        lock.release()
        self.kept = run.published("checkpoint")

    def kill_one_of_two_workers_then_the_driver(self) -> None:
        """Ray Train starts a new group, which publishes before the driver is killed too."""
        run = self.start(2)
        run.wait_for(lambda: len(self.starts) == 2)
        pids = descendants(run.process.pid)
        self.addresses = listeners([run.process.pid, *pids])
        self.titles = [title(pid) for pid in pids]
        run.kill_worker("RayTrainWorker")
        run.wait_published("checkpoint", 2)
        run.kill()

    def kill_a_builder(self) -> None:
        """Its task runs again, and the run comes to its end."""
        run = self.start(1)
        run.kill_worker("build")
        run.finish()

    def assert_equals(self, undisturbed: FolderStore, kills: int) -> None:
        """Bit-identical, each thing published once, and little done again."""
        store = self.store
        for name in ("ema", "model", "optimizer", "history"):
            assert final_weights(store, name) == final_weights(undisturbed, name)
        assert fids(store) == fids(undisturbed)
        published = collections.Counter((e["kind"], e["key"]) for e in events(store, "published"))
        assert set(published.values()) == {1}
        assert self.starts == sorted(self.starts)
        assert self.starts[0] == 0
        assert all(step % 32 == 0 and step > 0 for step in self.starts[1:])
        executed = collections.Counter(e["kind"] for e in events(store, "execute"))
        expected = collections.Counter(e["kind"] for e in events(undisturbed, "execute"))
        del executed["checkpoint"], expected["checkpoint"]
        # A kill costs at most what was being built then: one task and the driver's next one.
        assert sum(executed.values()) <= sum(expected.values()) + kills * 2
        assert FolderStore(store.root).sweep() >= 0
        assert not list((store.root / ".staging").iterdir())


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A run that was stopped, lost a worker, its driver and a builder, and came to its end."""
    with Chaos(tmp_path_factory.mktemp("disturbed") / "home") as chaos:
        chaos.stop_at_the_first_checkpoint()
        chaos.kill_one_of_two_workers_then_the_driver()
        chaos.kill_a_builder()
        yield chaos


def test_sigterm_lets_workers_go_and_keeps_what_was_published(disturbed):
    """That workers go is asserted where it happens."""
    kept = disturbed.kept
    assert kept
    assert len(kept) < len(final_graph(disturbed.store).checkpoints)
    assert disturbed.starts[:2] == [0, int(kept[-1][-8:])]


def test_two_workers_run_as_ray_train_workers_listening_on_loopback_only(disturbed):
    assert sum("RayTrainWorker" in name for name in disturbed.titles) == 2
    assert len(disturbed.addresses) >= 4
    assert [a for a in disturbed.addresses if not is_loopback(a)] == []


def test_disturbed_at_four_moments_it_ends_bit_identical_to_the_undisturbed_run(
    disturbed, undisturbed
):
    """Its steps are of one worker, of two and of one again, those of the other of no Ray at all."""
    disturbed.assert_equals(undisturbed, 4)
    # From nothing, after the stop, after a worker's death, after the driver's.
    assert len(disturbed.starts) == 4


@pytest.mark.slow
def test_killed_before_and_after_the_training_it_ends_bit_identical_too(undisturbed, tmp_path):
    with Chaos(tmp_path / "home") as chaos:
        run = chaos.start(2)
        run.wait_published("data", 1)
        run.kill()
        run = chaos.start(2)
        run.wait_published("evaluate", 5)
        run.kill()
        chaos.start(2).finish()
        chaos.assert_equals(undisturbed, 2)
        assert chaos.starts == [0]


SESSION = """
import sys, threading
from pathlib import Path
from experiments import Resources
from pipelines.execution.machine import room_here
from pipelines.execution.session import RunnerSession
from pipelines.stages.build import WORK
session = RunnerSession(WORK, Resources(num_workers=1, sample_tasks=1), Path(sys.argv[1]), 1)
asker = threading.Thread(target=session.runner)
asker.start()
asker.join()
import ray
seven = ray.remote(num_cpus=1)(lambda: 7)
print(ray.get(seven.remote(), timeout=60))
session.close()
assert not ray.is_initialized()
"""


def test_a_session_outlives_the_thread_that_asked_for_it_first(tmp_path):
    """The kernel kills what a thread started, Ray's processes among it, when that thread ends."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr[-3000:]


@pytest.mark.slow
def test_two_runs_at_once_build_each_artifact_once(tmp_path):
    """With a Ray each; `test_dag` has two processes without one."""
    home = tmp_path / "home"
    runs = [Run(home, 1), Run(home, 1)]
    try:
        for run in runs:
            run.finish()
    finally:
        for run in runs:
            kill_tree(run.process.pid)
    executed = events(FolderStore(home / "store"), "execute")
    counts = collections.Counter((event["kind"], event["key"]) for event in executed)
    assert set(counts.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_gets_sigterm_publishes_and_another_continues(tmp_path, workers):
    run = Run(tmp_path / "home", workers, "--train.steps", "400", "--train.checkpoint-every", "400")
    try:
        run.wait_for(lambda: events(run.store, "execute", "checkpoint"))
        name = "ray::train_alone" if workers == 1 else "ray::RayTrainWorker"
        pid = next(p for p in descendants(run.process.pid) if name in title(p))
        os.kill(pid, signal.SIGTERM)
        run.finish()
    finally:
        kill_tree(run.process.pid)
    starts = [e["from_step"] for e in events(run.store, "execute", "checkpoint")]
    left, published = (
        [int(e["key"][-8:]) for e in events(run.store, "published", kind)]
        for kind in ("resume", "checkpoint")
    )
    assert 0 < starts[1] < 400
    assert starts == [0, left[0]]
    assert published == [400]


STUDY_SETTINGS = {
    **{name: value for name, value in SETTINGS.items() if name != "ig-scales"},
    "train.steps": 96,
    "train.checkpoint-every": 48,
    "resources.num-workers": 1,
}
STUDY_OPTIONS = [
    "--trials",
    "2",
    "--parallel",
    "1",
    "--scales-per-training",
    "2",
    *(
        word
        for name, value in STUDY_SETTINGS.items()
        for word in (f"--experiment.{name}", str(value))
    ),
]


@pytest.mark.slow
def test_sigterm_ends_a_study_in_good_order_and_it_resumes(tmp_path):
    """`ray job stop` does that; Ray would abort with a stack trace."""
    home = tmp_path / "home"
    command = [sys.executable, "-m", "pipelines", "study", "digits", *STUDY_OPTIONS]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"IGDIT_HOME": str(home)}
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        store = FolderStore(home / "store")
        wait_for(lambda: events(store, "published", "checkpoint"))
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 130, text
        assert "stopped; run the same command to continue" in text
        assert "SIGTERM received" not in text
        wait_for(lambda: not any(alive(pid) for pid in below if "Agent" not in title(pid)), 60)
    finally:
        kill_tree(process.pid)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 complete" in done.stdout
    assert len(events(store, "execute", "checkpoint")) == 2
