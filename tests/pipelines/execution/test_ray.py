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
from pipelines.graph.graph import Graph
from pipelines.store.folder import FolderStore
from pipelines.store.locks import FileLock
from pipelines.store.register import read_register
from tests.equipment.processes import alive, is_loopback, kill_tree, listeners, wait_for

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
def two_workers(tmp_path_factory):
    """An undisturbed run with two Ray Train workers; the addresses it listened on are kept."""
    run = Run(tmp_path_factory.mktemp("two") / "home", 2)
    try:
        run.wait_published("checkpoint", 1)
        run.addresses = listeners([run.process.pid, *descendants(run.process.pid)])
        run.titles = [title(pid) for pid in descendants(run.process.pid)]
        run.finish()
    finally:
        kill_tree(run.process.pid)
    return run


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """A run that got SIGTERM at its first checkpoint, and the one that finished it."""
    home = tmp_path_factory.mktemp("one") / "home"
    stopped = Run(home, 1)
    try:
        stopped.wait_published("checkpoint", 1)
        below = descendants(stopped.process.pid)
        stopped.process.terminate()
        assert stopped.process.wait(timeout=60) == 130
        wait_for(lambda: not any(alive(pid) for pid in below), 60)
        lock = FileLock(stopped.store.root / ".in-use.lock")
        assert lock.acquire()
        lock.release()
        stopped.kept = stopped.published("checkpoint")
        run = Run(home, 1)
        run.finish()
    finally:
        kill_tree(stopped.process.pid)
    run.stopped = stopped
    return run


def test_two_workers_run_as_ray_train_workers_listening_on_loopback_only(two_workers):
    assert sum("RayTrainWorker" in name for name in two_workers.titles) == 2
    assert len(two_workers.addresses) >= 4
    assert [a for a in two_workers.addresses if not is_loopback(a)] == []


def test_everything_is_built_once_and_a_second_run_builds_nothing(two_workers):
    before = list(two_workers.store.events())
    counts = collections.Counter((e["kind"], e["key"]) for e in before if e["event"] == "execute")
    assert set(counts.values()) == {1}
    again = Run(two_workers.home, 1, "--resources.sample-batch", "100")
    again.finish()
    assert list(two_workers.store.events()) == before


def test_one_and_two_workers_give_the_same_losses_weights_and_fid(one_worker, two_workers):
    for name in ("history", "ema", "model", "optimizer"):
        assert final_weights(one_worker.store, name) == final_weights(two_workers.store, name)
    assert fids(one_worker.store) == fids(two_workers.store)


def test_sigterm_lets_workers_go_and_keeps_what_was_published(one_worker):
    """That workers go is asserted where it happens, in the fixture."""
    kept = one_worker.stopped.kept
    assert kept
    assert len(kept) < len(final_graph(one_worker.store).checkpoints)
    starts = [e["from_step"] for e in events(one_worker.store, "execute", "checkpoint")]
    assert starts == [0, int(kept[-1][-8:])]
    published = collections.Counter(e["key"] for e in events(one_worker.store, "published"))
    assert set(published.values()) == {1}


class Chaos:
    """Runs of one home that are killed, one after the other."""

    def __init__(self, home: Path) -> None:
        self.home, self.store, self.runs = home, FolderStore(home / "store"), []

    def start(self) -> Run:
        self.runs.append(Run(self.home, 2))
        return self.runs[-1]

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.runs:
            kill_tree(each.process.pid)

    def kill_driver_in_training_then_a_worker_then_a_builder(self) -> Run:
        """Three kills; the run that survived the last two."""
        run = self.start()
        run.wait_published("checkpoint", 1)
        run.kill()

        run = self.start()
        run.wait_for(lambda: len(events(run.store, "execute", "checkpoint")) == 2)
        run.kill_worker("RayTrainWorker")  # Ray Train starts a new group
        run.wait_published("checkpoint", 2)
        run.kill_worker("build")  # its task runs again
        return run

    def assert_equals(self, undisturbed: Run, kills: int) -> None:
        """Bit-identical, each thing published once, and little done again."""
        store = self.store
        for name in ("ema", "model", "optimizer", "history"):
            assert final_weights(store, name) == final_weights(undisturbed.store, name)
        assert fids(store) == fids(undisturbed.store)
        published = collections.Counter((e["kind"], e["key"]) for e in events(store, "published"))
        assert set(published.values()) == {1}
        starts = [e["from_step"] for e in events(store, "execute", "checkpoint")]
        assert starts == sorted(starts)
        assert starts[0] == 0
        assert all(step % 32 == 0 and step > 0 for step in starts[1:])
        assert len(starts) == 3  # from nothing, after the driver's death, after a worker's
        executed = collections.Counter(e["kind"] for e in events(store, "execute"))
        expected = collections.Counter(e["kind"] for e in events(undisturbed.store, "execute"))
        del executed["checkpoint"], expected["checkpoint"]
        # A kill costs at most what was being built then: one task and the driver's next one.
        assert sum(executed.values()) <= sum(expected.values()) + kills * 2
        assert FolderStore(store.root).sweep() >= 0
        assert not list((store.root / ".staging").iterdir())


def test_killed_at_three_moments_it_ends_bit_identical_to_the_undisturbed_run(
    two_workers, tmp_path
):
    with Chaos(tmp_path / "home") as chaos:
        chaos.kill_driver_in_training_then_a_worker_then_a_builder().finish()
        chaos.assert_equals(two_workers, 3)


@pytest.mark.slow
def test_killed_at_five_moments_it_ends_bit_identical_to_the_undisturbed_run(two_workers, tmp_path):
    """The driver before and after the training too."""
    with Chaos(tmp_path / "home") as chaos:
        run = chaos.start()
        run.wait_published("data", 1)
        run.kill()
        run = chaos.kill_driver_in_training_then_a_worker_then_a_builder()
        run.wait_published("evaluate", 5)
        run.kill()
        chaos.start().finish()
        chaos.assert_equals(two_workers, 5)


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
