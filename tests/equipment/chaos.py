"""Break everything in turn while a study runs, and see that it ends as if nothing had happened.

    python -m tests.equipment.chaos [--folder FOLDER] [--trials 12]

Starts three Ray nodes, an S3, a PostgreSQL and an MLflow server on this machine, submits a small
study of the digits, and kills a training worker, a node, the job's driver (the same command then
resumes), the S3 and the PostgreSQL server for 20 s each and the MLflow server for 60 s. Then it
compares with the same study run in one process: same trials, same FIDs, no training repeated,
nothing half-published. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.local import LocalCluster
from cluster.processes import end_of, title
from pipelines.store.open import open_store
from pipelines.study.storage import read_study
from tests.equipment.verdict import findings, published, runs_in_mlflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster.services import Service
    from pipelines.store.base import Store
    from pipelines.study.trials import Trial

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "train.steps": 120,
    "train.checkpoint-every": 30,
    "evaluation.num-samples": 200,
    "evaluation.curve-samples": 200,
    "evaluation.shard-size": 200,
    "evaluation.extractor-epochs": 2,
    "evaluation.groups": 10,
    "evaluation.kid-subsets": 2,
    "evaluation.kid-subset-size": 100,
    # Halves of the batch, so that one worker and two agree bit for bit.
    "resources.micro-batch": 64,
}
LEASE_SECONDS = 30
OUTSIDE = ("IGDIT_", "RAY_", "MLFLOW_", "AWS_", "PG")
"""How variables begin that would lead the undisturbed study to a cluster."""


def command(trials: int, *resources: str) -> list[str]:
    """The study, as words after `igdit` or `igdit submit`."""
    words = [
        word for name, value in SETTINGS.items() for word in (f"--experiment.{name}", str(value))
    ]
    return [
        "study",
        "digits",
        "--trials",
        str(trials),
        "--parallel",
        "1",
        "--yes",
        "--scales-per-training",
        "2",
        *words,
        *resources,
    ]


class Chaos:
    """A study on a local cluster, and what is done to it."""

    def __init__(self, cluster: LocalCluster, trials: int, say: Callable[[str], None]) -> None:
        self.cluster, self.trials, self._say = cluster, trials, say
        self._begun = time.monotonic()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(OUTSIDE)},
            **cluster.client_environment,
            "IGDIT_LEASE_SECONDS": str(LEASE_SECONDS),
        }
        self.job: subprocess.Popen[bytes] | None = None

    def say(self, text: str) -> None:
        """Tell a person, with the time."""
        self._say(f"{time.monotonic() - self._begun:6.1f} s  {text}")

    @property
    def log(self) -> Path:
        """What the jobs printed."""
        return self.cluster.folder / "job.log"

    def submit(self) -> None:
        """Send the study, or follow it if it runs."""
        words = [
            sys.executable,
            "-m",
            "pipelines",
            "submit",
            "--python",
            sys.executable,
            *command(
                self.trials,
                "--experiment.resources.num-workers",
                "2",
                "--experiment.resources.min-workers",
                "1",
            ),
        ]
        with self.log.open("ab") as output:
            self.job = subprocess.Popen(
                words, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        self.say("submitted")

    def disturb(self, store: Store) -> None:
        """Everything, one thing after the other, each while there is work."""
        self._after_work(store, self.kill_worker)
        self._after_work(store, self.kill_node)
        self._after_work(store, self.kill_driver)
        self._after_work(store, lambda: self.outage(self.cluster.s3, 20))
        self._after_work(store, lambda: self.outage(self.cluster.postgres, 20))
        self._after_work(store, lambda: self.outage(self.cluster.mlflow, 60))

    def finish(self, seconds: float = 900) -> None:
        """Wait for the job's end.

        Raises:
            RuntimeError: it failed.
        """
        if self.job is None or self.job.wait(seconds) != 0:
            raise RuntimeError(f"the job failed:\n{end_of(self.log, 6000)}")
        self.say("finished")

    def kill_worker(self) -> None:
        """SIGKILL a process that trains."""
        pid, node = self._training()
        self.say(f"kills training worker {pid} of node {node}")
        os.kill(pid, signal.SIGKILL)

    def kill_node(self) -> None:
        """SIGKILL everything of the node on which a training runs; it comes back later."""
        _, node = self._training()
        self.say(f"kills node {node}")
        self.cluster.kill_node(node)
        time.sleep(15)
        self.cluster.start_node(node)
        self.say(f"node {node} is back")

    def kill_driver(self) -> None:
        """SIGKILL the job's driver, and submit the study again."""
        head = self.cluster.nodes[0].process
        drivers = [
            p.pid
            for p in (head.below() if head else ())
            if " study digits" in title(p.pid)
            and title(p.pid).split(" ")[1:3] == ["-m", "pipelines"]
        ]
        self.say(f"kills driver {drivers}")
        for pid in drivers:
            os.kill(pid, signal.SIGKILL)
        if self.job is not None:
            code = self.job.wait(120)
            self.say(f"the job ended with {code}")
        self.submit()

    def outage(self, service: Service, seconds: float) -> None:
        """A server is away for a while."""
        self.say(f"{service.name} is away for {seconds:g} s")
        service.stop()
        time.sleep(seconds)
        service.start()
        self.say(f"{service.name} is back")

    def _training(self) -> tuple[int, int]:
        """A process that trains, and its node."""

        def find() -> tuple[int, int] | None:
            for node in self.cluster.nodes[1:]:
                for process in node.process.below() if node.process else ():
                    if "ray::RayTrainWorker" in title(process.pid):
                        return process.pid, node.number
            return None

        return self._wait(find, "a training worker")

    def _after_work(self, store: Store, act: Callable[[], None]) -> None:
        """Do something once something more was published."""
        before = len(published(store))
        self._wait(lambda: len(published(store)) > before, "work")
        act()

    def _wait(self, find: Callable[[], Any], what: str, seconds: float = 300) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := find():
                return found
            if self.job is not None and self.job.poll() is not None:
                raise RuntimeError(
                    f"the job ended before {what} was seen:\n{end_of(self.log, 6000)}"
                )
            time.sleep(0.5)
        raise RuntimeError(f"{what} was not seen in {seconds:g} s:\n{end_of(self.log, 6000)}")


def undisturbed(folder: Path, trials: int) -> list[Trial]:
    """The trials of the same study, run in one process."""
    home = folder / "undisturbed"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OUTSIDE)}
    words = command(
        trials, "--experiment.resources.runner", "inline", "--experiment.resources.num-workers", "1"
    )
    with (folder / "undisturbed.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-m", "pipelines", *words],
            cwd=ROOT,
            check=True,
            env={**environment, "IGDIT_HOME": str(home)},
            stdout=log,
            stderr=log,
        )
    return read_study(
        f"sqlite:///{home / 'study.db'}", open_store(str(home / "store")), "digits"
    ).trials


@contextmanager
def as_a_node(cluster: LocalCluster) -> Iterator[None]:
    """The environment of a node, with its secrets, and a cache of one's own."""
    lines = cluster.secrets.read_text(encoding="utf-8").splitlines()
    found = {
        **cluster.node_environment,
        **dict(line.split("=", 1) for line in lines),
        "IGDIT_CACHE": str(cluster.folder / "cache-of-chaos"),
    }
    before = dict(os.environ)
    os.environ.update(found)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(folder: Path, trials: int, say: Callable[[str], None]) -> list[str]:
    """All of it; returns what is not as it should be."""
    cluster = LocalCluster(folder)
    cluster.start(3, 2, ("s3", "postgres", "mlflow"))
    try:
        chaos = Chaos(cluster, trials, say)
        with as_a_node(cluster):
            store = open_store(cluster.client_environment["IGDIT_STORE"])
            chaos.submit()
            try:
                chaos.disturb(store)
                chaos.finish()
            finally:
                if chaos.job is not None:
                    chaos.job.kill()
            got = read_study(cluster.postgres.url, store, "digits").trials
            shown = runs_in_mlflow(cluster.mlflow.url)
            wrong = findings(store, got, undisturbed(folder, trials))
            if shown != trials:
                wrong.append(f"MLflow shows {shown} trials instead of {trials}")
            say(
                f"{len(got)} trials, {len(published(store))} artifacts, "
                f"{len(wrong)} things are not as they should be"
            )
            return wrong
    finally:
        cluster.stop()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.equipment.chaos",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="where all of it lies; it must be new")
    parser.add_argument("--trials", type=int, default=12)
    chosen = parser.parse_args()
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="igdit-"))
    wrong = run(folder, chosen.trials, lambda text: print(text, flush=True))
    for each in wrong:
        print(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
