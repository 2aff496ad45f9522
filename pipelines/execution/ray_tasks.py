"""Runner on Ray: tasks that build artifacts, and trainings.

Import it after `ray_env.prepare_ray_environment`: Ray reads its settings when it is imported.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.common.errors import StoppedError, WorkerLostError
from pipelines.common.memory import explaining_memory
from pipelines.common.settings import ray_address, ray_train_settings
from pipelines.execution.machine import require_cores
from pipelines.execution.ray_train import train_alone, train_in_group

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from experiments import Resources
    from pipelines.stages.jobs import Job, TrainJob, TrainOutcome, TrainProgress, Work


logger = logging.getLogger(__name__)
GPU_KINDS = {"latents", "images", "features", "reference"}
"""Kinds of artifacts whose builders use a GPU."""


class RayRunner:
    """Runner on Ray tasks, and on Ray Train for trainings with more than one worker.

    With `RAY_ADDRESS` set it joins that cluster. Otherwise it starts Ray on this machine, bound to
    loopback, with room for `experiments` at once, and stops it at the end. A connection that this
    process has already is used and kept.
    """

    def __init__(
        self,
        work: Work,
        resources: Resources,
        scratch: Path,
        experiments: int = 1,
        given_up: threading.Event | None = None,
    ) -> None:
        self.work, self.resources, self.scratch = work, resources, scratch
        self._stopped = threading.Event()
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            on_sigterm = signal.getsignal(signal.SIGTERM)
            _connect(resources, scratch, experiments)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # ray.init replaced it
        self._await_resources(given_up or threading.Event())

    def _await_resources(self, given_up: threading.Event) -> None:
        """Wait for the resources of a training; Ray itself would wait forever and log nothing.

        Raises:
            ValueError: If the resources are not there in time.
            StoppedError: If `given_up` is set meanwhile.
        """
        minutes = self.resources.wait_minutes
        lacks = self._lacks()
        if lacks and minutes == 0:
            hint = "; --resources.wait-minutes waits for nodes that are going to join"
            raise ValueError(f"resources ask for {lacks}{hint * bool(ray_address())}")
        if not lacks:
            return
        logger.warning("waiting up to %g minutes for nodes: a training needs %s", minutes, lacks)
        sampling = {"CPU": 1, "GPU": self._bundle()["GPU"]}
        bundles = [self._bundle()] * self.resources.num_workers + [sampling]
        until = time.monotonic() + 60 * minutes
        try:
            for second in itertools.count():
                if second % 10 == 0:  # a cluster has one request, and another driver may replace it
                    request_resources(bundles=bundles)
                if given_up.wait(1.0):
                    raise StoppedError("waiting for the cluster's nodes was stopped")
                lacks = self._lacks()
                if not lacks:
                    return
                if time.monotonic() >= until:
                    raise ValueError(f"resources ask for {lacks} after {minutes:g} minutes")
        finally:  # a request stays until it is withdrawn; from now on the work keeps the nodes
            request_resources(bundles=[])

    def _lacks(self) -> str:
        """Describe the resources that the cluster lacks; empty if it has enough."""
        available = ray.cluster_resources()
        return ", ".join(
            f"{need} {kind}s to train on, but the cluster has {available.get(kind, 0):g}"
            for kind, need in self._needs().items()
            if need > available.get(kind, 0)
        )

    def _bundle(self) -> dict[str, int]:
        """Return the resources of one training worker."""
        return {"CPU": self.resources.cpus_per_worker, "GPU": int(self.resources.use_gpu)}

    def _needs(self) -> dict[str, int]:
        """Return the resources of the fewest workers that a training takes."""
        return {
            kind: self.resources.fewest_workers * count for kind, count in self._bundle().items()
        }

    def room(self) -> int:
        # One of each is left for sampling, or there would be no FID before a training ends.
        available = ray.cluster_resources()
        return max(
            1,
            min(
                (int(available.get(kind, 0)) - 1) // need
                for kind, need in self._needs().items()
                if need
            ),
        )

    def build(self, job: Job) -> None:
        on_gpu = self.resources.use_gpu and job.nodes[0].kind in GPU_KINDS
        # A killed worker is replaced; work that raises is not tried again.
        task = ray.remote(
            num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=self.resources.max_failures
        )(self.work.build)
        with explaining_memory(job.nodes[0].kind, self.resources):
            self._get(task.remote(job))

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        board: Any = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=_here()).remote()
        done = threading.Event()
        relay = threading.Thread(target=self._relay, args=(board, post, done), daemon=True)
        relay.start()
        try:
            with explaining_memory("checkpoint", self.resources):
                outcome: TrainOutcome = self._get(self._start_training(job, board))
                while outcome.preempted:  # its node is drained, and others continue the training
                    outcome = self._get(self._start_training(job, board))
                return outcome
        finally:
            done.set()
            relay.join()
            ray.kill(board)

    def _start_training(self, job: TrainJob, board: Any) -> Any:  # noqa: ANN401
        resources = self.resources
        retries = resources.max_failures
        if resources.num_workers == 1:
            gpus = 1 if resources.use_gpu else 0
            # Each call in a new process: one that got SIGTERM is about to end.
            alone = ray.remote(
                num_cpus=resources.cpus_per_worker, num_gpus=gpus, max_retries=retries, max_calls=1
            )(train_alone)
            return alone.remote(self.work.train, job, board)
        # A task of its own controls the group, so that it can be cancelled. It runs beside the
        # driver, so that the loss of another node cannot end it while workers live.
        group: Any = ray.remote(train_in_group)
        group = group.options(num_cpus=0, max_retries=retries, scheduling_strategy=_here())
        return group.remote(
            self.work.train, job, board, resources, str(self.scratch), ray_train_settings()
        )

    def _relay(
        self,
        board: Any,  # noqa: ANN401
        post: Callable[[TrainProgress], None],
        done: threading.Event,
    ) -> None:
        last = None
        while not done.wait(0.5):
            try:
                progress = ray.get(board.read.remote())
            except RayError:
                return  # only progress is lost: the task itself reports how it ends
            if progress is not None and progress != last:
                last = progress
                post(progress)

    def _get(self, reference: Any) -> Any:  # noqa: ANN401
        try:
            while not self._stopped.is_set():
                ready, _ = ray.wait([reference], timeout=0.2)
                if ready:
                    return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise WorkerLostError(
                f"a worker was lost more than {self.resources.max_failures} times: {error}"
            ) from error
        ray.cancel(reference, force=True)
        raise StoppedError("the work was stopped")

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        if self._connected_here:
            ray.shutdown()


class _Board:
    """Actor of Ray that holds the progress of a training for the driver."""

    def __init__(self) -> None:
        self.progress: TrainProgress | None = None

    def write(self, progress: TrainProgress) -> None:
        self.progress = progress

    def read(self) -> TrainProgress | None:
        return self.progress


def _here() -> NodeAffinitySchedulingStrategy:
    """Schedule on the driver's node if possible."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _connect(resources: Resources, scratch: Path, experiments: int) -> None:
    """Join the cluster of `RAY_ADDRESS`, or start Ray here."""
    address = ray_address()
    if address:
        _check_answers(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    require_cores(resources)
    ray.init(
        "local",  # not a cluster that somebody else started on this machine
        # May be more slots than cores: samples are made beside the training.
        num_cpus=experiments
        * (resources.num_workers * resources.cpus_per_worker + resources.sample_tasks),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
        _node_ip_address="127.0.0.1",
        **_scratch_option(scratch),
    )


def _check_answers(address: str) -> None:
    """Raise ValueError if nothing listens at HOST:PORT; Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise ValueError(
                f"RAY_ADDRESS must be that of a running cluster, but {address} does "
                f"not answer: {error}"
            ) from error


def _scratch_option(scratch: Path) -> dict[str, Any]:
    """Return Ray's option for a session folder if its socket paths fit into Linux's 107 bytes."""
    folder = scratch / "ray"
    return {"_temp_dir": str(folder)} if len(os.fsencode(folder)) <= 40 else {}
