"""Runners: on Ray (`pipelines.execution.ray_tasks`), or in this process.

A runner builds artifacts and trains trajectories. Both calls block until the work is done, and come
from the pipeline's threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pipelines.common.errors import StoppedError
from pipelines.common.redaction import redact
from pipelines.common.settings import ray_address
from pipelines.execution.ray_env import prepare_ray_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from experiments import Resources
    from pipelines.execution.runner import Runner
    from pipelines.stages.jobs import Job, TrainJob, TrainOutcome, TrainProgress, Work


class InlineRunner:
    """Runner in this process, one job at a time: for debuggers and small tests."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def build(self, job: Job) -> None:
        with self._lock:
            self._check()
            self._work.build(job)

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        def post_unless_stopped(progress: TrainProgress) -> None:
            self._check()
            post(progress)

        with self._lock:
            self._check()
            return self._work.train(job, 0, 1, post_unless_stopped)

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
    work: Work,
    resources: Resources,
    scratch: Path,
    experiments: int = 1,
    given_up: threading.Event | None = None,
) -> Runner:
    """Make the runner that the resources name; import ray only for that on Ray.

    Args:
        work: Functions that it executes.
        resources: Workers of one experiment.
        scratch: Folder for files that may be lost.
        experiments: Number of experiments that run at once on a Ray that is started here.
        given_up: Event that stops the wait for nodes that are going to join.
    """
    if resources.runner == "inline":
        return InlineRunner(work)
    prepare_ray_environment()
    from pipelines.execution.ray_tasks import RayRunner

    return RayRunner(work, resources, scratch, experiments, given_up)


def describe_runner(resources: Resources) -> str:
    """Describe the runner that `make_runner` makes, for people."""
    if resources.runner == "inline":
        return "inline, in this process"
    where = ray_address()
    place = f"at {redact(where)}" if where else "on this machine"
    plural = "" if resources.num_workers == 1 else "s"
    elastic = f"{resources.min_workers} to " if resources.min_workers is not None else ""
    return f"Ray {place}, {elastic}{resources.num_workers} training worker{plural}"
