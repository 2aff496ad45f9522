"""Where work runs: on Ray (`pipelines.ray_runner`), or in this process.

A runner does two things: build one artifact, and train one trajectory. Both block until the work
is done and are called from the pipeline's threads.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Protocol

from ig_core.validation import require
from pipelines.discretion import discreet
from pipelines.errors import StoppedError
from pipelines.settings import ray_address, set_defaults
from pipelines.stages.build import Job, build
from pipelines.stages.train import TrainJob, TrainOutcome, TrainProgress, train_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from experiments import Resources

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A group that was sized by what a lost node had is given up after so long, and sized anew.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Else Ray aborts with a stack trace where SIGTERM is to end a run in good order.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
"""What Ray reads when it is imported, wherever it runs."""


class Runner(Protocol):
    """Executes work; errors of the work itself come out as they were raised."""

    def build(self, job: Job) -> None:
        """Build and publish one artifact."""

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        """Train and publish checkpoints; `post` gets progress while it runs."""

    def stop(self) -> None:
        """Make calls that are running end soon with `StoppedError`, and their workers with them."""

    def room(self) -> int:
        """Experiments with these resources that fit at once, at least 1."""

    def close(self) -> None:
        """Let go of what was started; no call may be running."""


class InlineRunner:
    """Everything in this process, one thing at a time: for debuggers and small tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def build(self, job: Job) -> None:
        with self._lock:
            self._check()
            build(job)

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        def post_unless_stopped(progress: TrainProgress) -> None:
            self._check()
            post(progress)

        with self._lock:
            self._check()
            return train_worker(job, 0, 1, post_unless_stopped)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise StoppedError("the work was stopped")

    def stop(self) -> None:
        self._stopped.set()

    def room(self) -> int:
        return 1

    def close(self) -> None:
        pass


def make_runner(
    resources: Resources,
    scratch: Path,
    experiments: int = 1,
    given_up: threading.Event | None = None,
) -> Runner:
    """The runner that the resources ask for; ray is imported only if it is Ray's.

    Args:
        resources: Workers of one experiment.
        scratch: Folder for what may be lost.
        experiments: How many experiments are to run at once on what is started here.
        given_up: Set when nobody waits any more for nodes that are to come.
    """
    if resources.runner == "inline":
        return InlineRunner()
    prepare_ray_environment()
    from pipelines.ray_runner import RayRunner

    return RayRunner(resources, scratch, experiments, given_up)


class RunnerSession:
    """What several pipelines of one process run on at once, started when the first one needs it.

    It is started, kept and ended by a thread of its own: the kernel ends Ray's processes when the
    thread that started them ends.
    """

    def __init__(self, resources: Resources, scratch: Path, experiments: int | None) -> None:
        """Prepare a session.

        Args:
            resources: Workers of each experiment.
            scratch: Folder for what may be lost.
            experiments: How many are to run at once; None: as many as there is room for.

        Raises:
            ValueError: that many cannot run at once.
        """
        alone = resources.runner == "inline"
        require(
            not alone or experiments in (None, 1),
            "parallel",
            experiments,
            "1 with the inline runner, which does one thing at a time",
        )
        self._resources, self._scratch, self._experiments = resources, scratch, experiments
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._ready, self._closed = threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._error: BaseException | None = None

    def runner(self) -> Runner:
        """A runner for one pipeline, from any thread; raises what starting raised."""
        with self._lock:
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep, name="runner-session", daemon=True
                )
                self._keeper.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return make_runner(self._resources, self._scratch, given_up=self._given_up)

    def experiments(self) -> int:
        """Experiments that run at once; asks a cluster, if there is one, and so connects to it."""
        if self._experiments is None:
            on_cluster = self._resources.runner == "ray" and ray_address()
            self._experiments = self.runner().room() if on_cluster else room_here(self._resources)
        return self._experiments

    def give_up(self) -> None:
        """Let nobody wait any more for nodes that are to come."""
        self._given_up.set()

    def close(self) -> None:
        """End what was started; no pipeline may be running."""
        self.give_up()
        self._closed.set()
        if self._keeper is not None:
            self._keeper.join()

    def _keep(self) -> None:
        try:
            session = make_runner(
                self._resources, self._scratch, self._experiments or 1, self._given_up
            )
        except BaseException as error:  # noqa: BLE001 - raised to those who wait for it
            self._error = error
            return
        finally:
            self._ready.set()
        self._closed.wait()
        session.close()


def room_here(resources: Resources) -> int:
    """Experiments that this machine has cores and GPUs for, at least 1."""
    if resources.runner == "inline":
        return 1
    room = cores_here() // (resources.fewest_workers * resources.cpus_per_worker)
    if resources.use_gpu:
        import torch

        # One is left for sampling, or no curve would be known before a training ends.
        room = min(room, (torch.cuda.device_count() - 1) // resources.fewest_workers)
    return max(1, room)


def cores_here() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def require_cores(resources: Resources) -> None:
    """Refuse more training workers than this machine has cores for, if it is to be this machine.

    A cluster is asked for what it has when it is joined.

    Raises:
        ValueError: it has fewer.
    """
    wanted, cores = resources.fewest_workers * resources.cpus_per_worker, cores_here()
    if resources.runner == "inline" or ray_address() or wanted <= cores:
        return
    option = f"num-workers {cores // resources.cpus_per_worker}"
    if resources.cpus_per_worker > cores:
        option = f"cpus-per-worker {cores}"
    raise ValueError(
        f"resources ask for {wanted} CPUs to train on (num_workers={resources.fewest_workers}, "
        f"cpus_per_worker={resources.cpus_per_worker}), but this machine has {cores}: "
        f"--resources.{option} gives the same results, or RAY_ADDRESS joins a cluster"
    )


def describe_runner(resources: Resources) -> str:
    """What `make_runner` is about to start, for people."""
    if resources.runner == "inline":
        return "everything in this process"
    where = ray_address()
    place = f"at {discreet(where)}" if where else "on this machine"
    elastic = f"{resources.min_workers} to " if resources.min_workers is not None else ""
    return f"Ray {place}, training workers: {elastic}{resources.num_workers}"


def prepare_ray_environment() -> None:
    """Set what Ray reads when it is imported: no usage reports; loopback if it is to be local."""
    settings = dict(RAY_SETTINGS)
    if not ray_address():
        # Without the first Ray replaces 127.0.0.1 by the host's outward address, whatever it is
        # told; without the last gloo listens where the host's name resolves to.
        settings |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        }
    set_defaults(settings)
