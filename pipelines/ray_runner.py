"""Ray tasks and Ray Train. The only module that imports ray.

Import it after `runners.prepare_ray_environment`: Ray reads its settings when it is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from ig_core.process_group import join_group, serve_store
from pipelines.errors import PipelineError, StoppedError, WorkerLostError
from pipelines.stages.build import Job, build
from pipelines.stages.train import TrainJob, TrainOutcome, TrainProgress, train_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from experiments import Resources


GPU_KINDS = {"images", "features", "reference"}
"""Kinds of artifacts whose builders use a GPU."""


class RayRunner:
    """Ray tasks for artifacts; Ray Train for trainings with more than one worker.

    With `RAY_ADDRESS` set it joins that cluster. Otherwise it starts Ray on this machine, bound to
    loopback, with room for `experiments` at once, and stops it at the end. Where this process is
    connected already, it uses that and leaves it be.
    """

    def __init__(self, resources: Resources, scratch: Path, experiments: int = 1) -> None:
        self.resources, self.scratch = resources, scratch
        self._stopped = threading.Event()
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            on_sigterm = signal.getsignal(signal.SIGTERM)
            _connect(resources, scratch, experiments)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # ray put its own there
        self._check_resources()

    def _check_resources(self) -> None:
        """Raise ValueError if the cluster can never run what is asked for: Ray would wait."""
        there = ray.cluster_resources()
        for kind, need in self._needs().items():
            if need > there.get(kind, 0):
                raise ValueError(f"resources ask for {need} {kind}s to train on, but the cluster "
                                 f"has {there.get(kind, 0):g}")  # fmt: skip

    def _needs(self) -> dict[str, int]:
        """What the workers of a training hold."""
        workers = self.resources.num_workers
        return {"CPU": workers * self.resources.cpus_per_worker,
                "GPU": workers if self.resources.use_gpu else 0}  # fmt: skip

    def room(self) -> int:
        # One of each is left for sampling, or no curve would be known before a training ends.
        there = ray.cluster_resources()
        return max(1, min((int(there.get(kind, 0)) - 1) // need
                          for kind, need in self._needs().items() if need))  # fmt: skip

    def build(self, job: Job) -> None:
        on_gpu = self.resources.use_gpu and job.nodes[0].kind in GPU_KINDS
        # A killed worker is replaced; an error of the work itself is not tried again.
        task = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0,
                          max_retries=self.resources.max_failures)(build)  # fmt: skip
        self._get(task.remote(job))

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        board: Any = ray.remote(num_cpus=0)(_Board).remote()
        done = threading.Event()
        relay = threading.Thread(target=self._relay, args=(board, post, done), daemon=True)
        relay.start()
        try:
            return self._get(self._start_training(job, board))
        finally:
            done.set()
            relay.join()
            ray.kill(board)

    def _start_training(self, job: TrainJob, board: Any) -> Any:  # noqa: ANN401
        resources = self.resources
        retries = resources.max_failures
        if resources.num_workers == 1:
            gpus = 1 if resources.use_gpu else 0
            alone = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=gpus,
                               max_retries=retries)(_train_alone)  # fmt: skip
            return alone.remote(job, board)
        # The group is looked after by a task of its own, so that it can be cancelled.
        group = ray.remote(num_cpus=0, max_retries=retries)(_train_in_group)
        return group.remote(job, board, resources, str(self.scratch))

    def _relay(
        self,
        board: Any,  # noqa: ANN401
        post: Callable[[TrainProgress], None],
        done: threading.Event,
    ) -> None:
        last = None
        while not done.wait(0.5):
            try:
                now = ray.get(board.read.remote())
            except RayError:
                return  # progress is a courtesy; the work reports its own end
            if now is not None and now != last:
                last = now
                post(now)

    def _get(self, reference: Any) -> Any:  # noqa: ANN401
        try:
            while not self._stopped.is_set():
                ready, _ = ray.wait([reference], timeout=0.2)
                if ready:
                    return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise WorkerLostError(f"a worker was lost more than {self.resources.max_failures} "
                                  f"times: {error}") from error  # fmt: skip
        ray.cancel(reference, force=True)
        raise StoppedError("the work was stopped")

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        if self._connected_here:
            ray.shutdown()


class _Board:
    """Where a training worker leaves its progress for the driver; a Ray actor."""

    def __init__(self) -> None:
        self.progress: TrainProgress | None = None

    def write(self, progress: TrainProgress) -> None:
        self.progress = progress

    def read(self) -> TrainProgress | None:
        return self.progress


def _train_alone(job: TrainJob, board: Any) -> TrainOutcome:  # noqa: ANN401
    return train_worker(job, 0, 1, board.write.remote)


def _train_in_group(
    job: TrainJob,
    board: Any,  # noqa: ANN401
    resources: Resources,
    scratch: str,
) -> TrainOutcome:
    per_worker = {"CPU": float(resources.cpus_per_worker)}
    trainer = TorchTrainer(
        _train_in_worker,  # type: ignore[arg-type]  # annotated as if it returned nothing
        train_loop_config={"job": job, "board": board},
        torch_config=BoundTorchConfig(backend="nccl" if resources.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker=per_worker | ({"GPU": 1.0} if resources.use_gpu else {}),
        ),
        # Checkpoints go to our store; what Ray keeps for itself is scratch.
        run_config=RunConfig(
            storage_path=f"{scratch}/ray_train",
            failure_config=FailureConfig(max_failures=resources.max_failures),
        ),
    )
    try:
        result: Any = trainer.fit()
    except WorkerGroupError as error:
        raise _cause(error) from error
    return result.return_value


def _cause(error: WorkerGroupError) -> Exception:
    """What a group of workers died of: its own error if one raised, else that they died."""
    for failure in error.worker_failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, PipelineError | ValueError):
            return cause
    return WorkerLostError(f"training workers were lost: {error}")


def _train_in_worker(config: dict[Any, Any]) -> TrainOutcome:
    context = get_context()
    return train_worker(config["job"], context.get_world_rank(), context.get_world_size(),
                        config["board"].write.remote)  # fmt: skip


def _connect(resources: Resources, scratch: Path, experiments: int) -> None:
    """Join the cluster of `RAY_ADDRESS`, or start Ray here."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        "local",  # not a cluster that somebody else started on this machine
        # Maybe more slots than cores: evaluation goes on beside the training.
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
            raise ValueError(f"RAY_ADDRESS must be that of a running cluster, but {address} does "
                             f"not answer: {error}") from error  # fmt: skip


def _scratch_option(scratch: Path) -> dict[str, Any]:
    """Ray's session folder, if its socket paths stay below the 107 bytes that Linux allows."""
    folder = scratch / "ray"
    return {"_temp_dir": str(folder)} if len(os.fsencode(folder)) <= 40 else {}


@dataclass
class BoundTorchConfig(TorchConfig):
    """Ray's torch backend, but its store listens on the worker's own address only."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the group up."""
        return _BoundTorchBackend


class _BoundTorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: BoundTorchConfig) -> None:  # noqa: ANN401
        size = len(worker_group)
        address = worker_group.execute_single(0, _serve_store, size)
        ray.get([
            worker_group.execute_single_async(rank, join_group, address, rank, size,
                                              backend_config.backend, backend_config.timeout_s)
            for rank in range(size)
        ])  # fmt: skip


def _serve_store(world_size: int) -> tuple[str, int]:
    return serve_store(ray.util.get_node_ip_address(), world_size)
