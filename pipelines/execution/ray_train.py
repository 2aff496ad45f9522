"""Training in Ray's workers: alone in a task, or in a group of Ray Train.

Import it after `ray_env.prepare_ray_environment`: Ray reads its settings when it is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
    get_context,
)
from ray.train.torch import TorchConfig, TorchTrainer

from ig_core.training.process_group import join_group, serve_store
from pipelines.common.errors import PipelineError, WorkerLostError
from pipelines.common.settings import override

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.train.backend import Backend

    from experiments import Resources
    from pipelines.stages.jobs import Train, TrainJob, TrainOutcome

RESIZE_SECONDS = 5.0
"""Seconds between two checks whether an elastic group could be larger."""
GRACE_SECONDS = 20.0
"""Seconds that a process lives after SIGTERM while it publishes nothing."""
RESULT_SECONDS = 2.0
"""Seconds that the result of a training can be fetched before its process ends."""
DRAIN_SECONDS = 120.0
"""Most seconds that a group is drained before it is resized, not counting the time in which it
publishes a state."""

logger = logging.getLogger(__name__)


class Preemption:
    """Preemption of the training in this process: a drained node, SIGTERM, or a resized group.

    A training that is preempted publishes its state and ends.
    """

    def __init__(
        self, grace_seconds: float = GRACE_SECONDS, result_seconds: float = RESULT_SECONDS
    ) -> None:
        self.grace_seconds, self.result_seconds = grace_seconds, result_seconds
        self._preempted, self._changed = threading.Event(), threading.Condition()
        self._over, self._published_at_once = True, 0
        self._next_check = 0.0

    def begin(self) -> None:
        """Note that a training starts in this process."""
        self._over = False

    def end(self) -> None:
        """Note that the training is over, and all of its states are published."""
        self._preempted.clear()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Keep the process alive while a state is published, which takes minutes if it is large.

        A thread may write one state while the next is awaited.
        """
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._changed:
            self._published_at_once += more
            self._changed.notify_all()

    @property
    def _publishing(self) -> bool:
        return self._published_at_once > 0

    def is_preempted(self) -> bool:
        """Return whether the training is to end; asks the cluster once a second at most."""
        now = time.monotonic()
        if not self._preempted.is_set() and now >= self._next_check:
            self._next_check = now + 1.0
            if _is_draining():
                self._preempted.set()
        return self._preempted.is_set()

    def drain(self, seconds: float) -> bool:
        """Preempt the training and wait for its end.

        Args:
            seconds: Time without a publish after which to stop waiting.

        Returns:
            True if the training is over.
        """
        self._preempted.set()
        with self._changed:
            while not self._over:
                self._changed.wait_for(lambda: not self._publishing)
                if not self._changed.wait_for(lambda: self._over or self._publishing, seconds):
                    return False
            return True

    def on_sigterm(self, *_: object) -> None:
        """Handle the signal: drain the training, then end the process."""
        threading.Thread(target=self._drain_and_exit, daemon=True).start()

    def _drain_and_exit(self) -> None:
        self.drain(self.grace_seconds)
        time.sleep(self.result_seconds)
        # A publish may take any time: if there is none left, SIGKILL comes anyway.
        with self._changed:
            self._changed.wait_for(lambda: not self._publishing)
            os._exit(128 + signal.SIGTERM)


preemption = Preemption()


def _is_draining() -> bool:
    """Return whether Ray drains this node (a spot instance's notice, a scale-down)."""
    # `ray.train.get_preemption_info` reads the same state, but only in a group and as a barrier of
    # all its workers. No public API tells it in a task.
    from ray._private.state import state

    try:
        return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
    except (RayError, AttributeError, RuntimeError) as error:
        logger.warning("could not ask Ray whether this node is drained: %s", error)
        return False


def train_alone(train: Train, job: TrainJob, board: Any) -> TrainOutcome:  # noqa: ANN401
    """Train with a single worker; a Ray task."""
    preemption.begin()
    before = signal.signal(signal.SIGTERM, preemption.on_sigterm)
    try:
        return train(job, 0, 1, board.write.remote, preemption.is_preempted, preemption.publishing)
    finally:
        preemption.end()
        signal.signal(signal.SIGTERM, before)


def train_in_group(
    train: Train,
    job: TrainJob,
    board: Any,  # noqa: ANN401
    resources: Resources,
    scratch: str,
    settings: dict[str, str],
) -> TrainOutcome:
    """Start a group of workers and wait for its outcome; a Ray task.

    Args:
        train: Function that each worker runs.
        job: The training.
        board: Actor to which the first worker writes its progress.
        resources: Number of workers, and the resources of each.
        scratch: Folder for files that may be lost.
        settings: Variables of Ray Train, which it reads in the process that starts a group.
    """
    override(settings)
    per_worker = {"CPU": float(resources.cpus_per_worker)}
    most, fewest = resources.num_workers, resources.min_workers
    trainer = TorchTrainer(
        _train_in_worker,  # type: ignore[arg-type]  # annotated as if it returned nothing
        train_loop_config={"train": train, "job": job, "board": board},
        torch_config=BoundTorchConfig(backend="nccl" if resources.use_gpu else "gloo"),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # typed as of older versions
            num_workers=most if fewest is None else (fewest, most),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=resources.use_gpu,
            resources_per_worker=per_worker | ({"GPU": 1.0} if resources.use_gpu else {}),
        ),
        # Checkpoints go to our store; Ray's own files are scratch.
        run_config=RunConfig(
            storage_path=f"{scratch}/ray_train",
            failure_config=FailureConfig(max_failures=resources.max_failures),
        ),
    )
    for attempts_left in reversed(range(resources.max_failures + 1)):
        try:
            result: Any = trainer.fit()
        except WorkerGroupError as error:
            raise _cause(error) from error
        except ControllerError as error:
            # A group that could not be set up (a node died meanwhile, say); Ray does not try again.
            if not attempts_left:
                raise WorkerLostError(
                    f"no group of training workers could be started: {error}"
                ) from error
            logger.warning("a group of training workers did not start; trying again: %s", error)
        else:
            return result.return_value
    raise AssertionError  # the last try returns or raises


def _cause(error: WorkerGroupError) -> Exception:
    """Return the error that a worker of a group raised, else a WorkerLostError."""
    for failure in error.worker_failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, PipelineError | ValueError):
            return cause
    return WorkerLostError(f"training workers were lost: {error}")


def _train_in_worker(config: dict[Any, Any]) -> TrainOutcome:
    context = get_context()
    preemption.begin()
    try:
        outcome: TrainOutcome = config["train"](
            config["job"],
            context.get_world_rank(),
            context.get_world_size(),
            config["board"].write.remote,
            preemption.is_preempted,
            preemption.publishing,
        )
        return outcome
    finally:
        preemption.end()


@dataclass
class BoundTorchConfig(TorchConfig):
    """Settings of Ray's torch backend whose store listens on the worker's own address only."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Class that sets the group up."""
        return _BoundTorchBackend


class _BoundTorchBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: BoundTorchConfig) -> None:  # noqa: ANN401
        worker_group.execute(_handle_sigterm)
        size = len(worker_group)
        address = worker_group.execute_single(0, _serve_store, size)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    join_group,
                    address,
                    rank,
                    size,
                    backend_config.backend,
                    backend_config.timeout_s,
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BoundTorchConfig) -> None:  # noqa: ANN401
        status = worker_group.get_latest_poll_status()
        if status is not None and not status.errors:
            # All workers live: the group is being resized, and its steps are published first.
            worker_group.execute(_drain, DRAIN_SECONDS)
        super().on_shutdown(worker_group, backend_config)


def _handle_sigterm() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, preemption.on_sigterm)


def _drain(seconds: float) -> bool:
    return preemption.drain(seconds)


def _serve_store(world_size: int) -> tuple[str, int]:
    return serve_store(ray.util.get_node_ip_address(), world_size)
