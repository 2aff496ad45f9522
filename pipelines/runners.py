"""Where work runs: on Ray, or in this process. The only module that imports ray.

A runner does two things: build one artifact, and train one trajectory. Both block until the work
is done and are called from the pipeline's threads.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.stages.build import Job, build
from pipelines.stages.train import TrainJob, TrainOutcome, TrainProgress, train_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from experiments import Resources


class WorkerLostError(RuntimeError):
    """Workers died more often than the resources allow."""


class Runner(Protocol):
    """Executes work; errors of the work itself come out as they were raised."""

    def build(self, job: Job) -> None:
        """Build and publish one artifact."""

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        """Train and publish checkpoints; `post` gets progress while it runs."""

    def close(self) -> None:
        """Let go of what was started."""


class InlineRunner:
    """Everything in this process, one thing at a time: for debuggers and small tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def build(self, job: Job) -> None:
        with self._lock:
            build(job)

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        with self._lock:
            return train_worker(job, 0, 1, post)

    def close(self) -> None:
        pass


def make_runner(resources: Resources, scratch: Path) -> Runner:
    """The runner that the resources ask for."""
    return InlineRunner() if resources.runner == "inline" else RayRunner(resources, scratch)


class RayRunner:
    """Ray tasks for artifacts; Ray Train for trainings with more than one worker.

    With `RAY_ADDRESS` set it joins that cluster. Otherwise it starts Ray on this machine, bound to
    loopback, and stops it at the end.
    """

    def __init__(self, resources: Resources, scratch: Path) -> None:
        self.resources, self.scratch = resources, scratch
        ray = _import_ray()
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="error")
        else:
            workers = resources.num_workers * resources.cpus_per_worker + resources.sample_tasks
            ray.init(
                # More slots than cores on a laptop: evaluation goes on beside the training.
                num_cpus=max(os.cpu_count() or 1, workers),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=200 * 2**20,
                _node_ip_address="127.0.0.1",
                **_scratch_option(scratch),
            )
        gpus = 1 if resources.use_gpu else 0
        self._ray = ray
        # A killed worker is replaced; an error of the work itself is not tried again.
        self._build = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=resources.max_failures)(
            build
        )

    def build(self, job: Job) -> None:
        self._get(self._build.remote(job))

    def train(self, job: TrainJob, post: Callable[[TrainProgress], None]) -> TrainOutcome:
        board = self._ray.remote(num_cpus=0)(_Board).remote()
        stop = threading.Event()
        relay = threading.Thread(target=self._relay, args=(board, post, stop), daemon=True)
        relay.start()
        try:
            if self.resources.num_workers == 1:
                return self._train_in_task(job, board)
            return self._train_in_group(job, board)
        finally:
            stop.set()
            relay.join()
            self._ray.kill(board)

    def _train_in_task(self, job: TrainJob, board: Any) -> TrainOutcome:  # noqa: ANN401
        remote = self._ray.remote(
            num_cpus=self.resources.cpus_per_worker,
            num_gpus=1 if self.resources.use_gpu else 0,
            max_retries=self.resources.max_failures,
        )(_train_alone)
        return self._get(remote.remote(job, board))

    def _train_in_group(self, job: TrainJob, board: Any) -> TrainOutcome:  # noqa: ANN401
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = self.resources
        per_worker = {"CPU": float(resources.cpus_per_worker)}
        trainer = TorchTrainer(
            _train_in_worker,  # type: ignore[arg-type]  # annotated as if it returned nothing
            train_loop_config={"job": job, "board": board},
            torch_config=TorchConfig(backend="nccl" if resources.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.num_workers,
                use_gpu=resources.use_gpu,
                resources_per_worker=per_worker | ({"GPU": 1.0} if resources.use_gpu else {}),
            ),
            # Checkpoints go to our store; what Ray keeps for itself is scratch.
            run_config=RunConfig(
                storage_path=str(self.scratch / "ray_train"),
                failure_config=FailureConfig(max_failures=resources.max_failures),
            ),
        )
        result: Any = trainer.fit()
        return result.return_value

    def _relay(
        self,
        board: Any,  # noqa: ANN401
        post: Callable[[TrainProgress], None],
        stop: threading.Event,
    ) -> None:
        last = None
        while not stop.wait(0.5):
            try:
                now = self._ray.get(board.read.remote())
            except self._ray.exceptions.RayError:
                return  # progress is a courtesy; the work reports its own end
            if now is not None and now != last:
                last = now
                post(now)

    def _get(self, reference: Any) -> Any:  # noqa: ANN401
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError) as error:
            raise WorkerLostError(f"a worker died more than {self.resources.max_failures} times: "
                                  f"{error}") from error  # fmt: skip

    def close(self) -> None:
        self._ray.shutdown()


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


def _train_in_worker(config: dict[Any, Any]) -> TrainOutcome:
    from ray.train import get_context

    context = get_context()
    return train_worker(config["job"], context.get_world_rank(), context.get_world_size(),
                        config["board"].write.remote)  # fmt: skip


def _import_ray() -> Any:  # noqa: ANN401
    """Import ray with usage reports off and, for a local cluster, loopback addresses only."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if not os.environ.get("RAY_ADDRESS"):
        # Without it Ray replaces 127.0.0.1 by the host's outward address, whatever it is told.
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def _scratch_option(scratch: Path) -> dict[str, str]:
    """Ray's session folder, if its socket paths stay below the 107 bytes that Linux allows."""
    folder = scratch / "ray"
    return {"_temp_dir": str(folder)} if len(os.fsencode(folder)) <= 40 else {}
