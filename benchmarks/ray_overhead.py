"""Time of a step under Ray Train, one worker, against the bare loop of `ig_core`.

Unlike the other benchmarks it needs ray. Two processes train the same model in turns of some steps:
a worker of a Ray Train group, in the very loop of the pipeline (progress to the driver, notices
from the cluster, meetings, no checkpoint), and a plain process that knows nothing of Ray. Starting
the group is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

from experiments import Experiment, experiment_to_json, get_experiment
from ig_core.training.loop import train
from ig_core.training.state import TrainState
from pipelines.execution.ray_env import prepare_ray_environment
from pipelines.graph.graph import Graph
from pipelines.stages.build import WORK, build
from pipelines.stages.codec import open_dataset
from pipelines.stages.jobs import Job, TrainJob
from pipelines.stages.training.worker import train_worker
from pipelines.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

FOREVER = 10**7
WARM_UP = 2


class Turns:
    """One of two processes at a time; each writes down how long its steps took.

    By the clock on the wall, and by the CPU time of the whole process (of the threads that Ray has
    in a worker too), which does not see what else the machine does.
    """

    def __init__(self, folder: Path, mine: str, other: str) -> None:
        self.log = folder / f"{mine}.times"
        self._mine, self._other = folder / mine, folder / other
        self._since: tuple[float, float] | None = None
        self._count = 0

    def done(self, steps: int) -> None:
        """This many steps are done in all: the other one's turn, then mine again."""
        now = time.perf_counter(), time.process_time()
        if self._since is not None:
            took = [(b - a) / (steps - self._count) for a, b in zip(self._since, now, strict=True)]
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"{took[0]} {took[1]}\n")
            # Whoever opens a pipe waits for the other side.
            self._other.write_text("go", encoding="utf-8")
        self._mine.read_text(encoding="utf-8")
        self._count, self._since = steps, (time.perf_counter(), time.process_time())


def bare(folder: Path, store: str, experiment: Experiment, steps: int) -> None:
    """The plain process: `ig_core.training.loop.train`, and nothing else."""
    torch.set_num_threads(1)
    graph = Graph(experiment)
    state = TrainState.new(experiment.model, experiment.optim, experiment.train.seed)
    dataset, turns = (
        open_dataset(open_store(store, in_use=True), graph),
        Turns(folder, "bare", "group"),
    )
    for step in train(state, dataset, experiment.loss, experiment.train, flush_every=steps):
        if step % steps == 0:
            turns.done(step)


def in_ray(config: dict[str, Any]) -> None:
    """The worker of the group: the pipeline's loop; a turn ends where it asks for preemption."""
    from pipelines.execution.ray_train import preemption

    turns, rounds, count = Turns(config["folder"], "group", "bare"), config["rounds"], [0]
    reported = [0]

    def post(progress: Any) -> None:  # noqa: ANN401
        reported[0] = progress.step
        config["board"].write.remote(progress)

    def is_preempted() -> bool:
        preempted = preemption.is_preempted()
        if reported[0] % config["steps"] == 0 and reported[0]:
            turns.done(reported[0])
            count[0] += 1
        return preempted or count[0] > rounds

    train_worker(config["job"], 0, 1, post, is_preempted)


def start_group(config: dict[str, Any]) -> Callable[[], object]:
    """What trains in a Ray Train group of one worker, set up as the pipeline sets up its own."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.execution.ray_tasks import _Board
    from pipelines.execution.ray_train import BoundTorchConfig

    board: Any = ray.remote(_Board)
    trainer = TorchTrainer(
        in_ray,
        train_loop_config=config | {"board": board.options(num_cpus=0).remote()},
        torch_config=BoundTorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(config["folder"] / "ray_train")),
    )
    return trainer.fit


def read(folder: Path, name: str) -> list[tuple[float, ...]]:
    """Wall and CPU seconds a step of each turn but the first ones."""
    lines = (folder / f"{name}.times").read_text(encoding="utf-8").splitlines()[WARM_UP:]
    return [tuple(map(float, line.split())) for line in lines]


def measure(folder: Path, experiment: Experiment, rounds: int, steps: int) -> None:
    """Run both in turns and print the ratio."""
    graph, store, text = Graph(experiment), folder / "store", experiment_to_json(experiment)
    build(Job(str(store), (graph.data,), text))
    os.mkfifo(folder / "bare")
    os.mkfifo(folder / "group")
    from pipelines.execution.ray_tasks import RayRunner

    runner = RayRunner(WORK, experiment.resources, folder)
    job = TrainJob(str(store), text, (FOREVER,))
    fit = start_group({"job": job, "folder": folder, "rounds": rounds + WARM_UP, "steps": steps})
    group = threading.Thread(target=fit)
    plain = torch.multiprocessing.get_context("spawn").Process(
        target=bare, args=(folder, str(store), experiment, steps)
    )
    group.start()
    plain.start()
    # Both have done a turn's steps, and wait to be told to go on.
    (folder / "bare").write_text("go", encoding="utf-8")
    group.join()
    plain.kill()
    runner.close()
    ours, theirs = read(folder, "group"), read(folder, "bare")
    for number, clock in enumerate(("wall", "cpu")):
        pairs = [(a[number], b[number]) for a, b in zip(ours, theirs, strict=False)]
        ratios = [a / b for a, b in pairs]
        low, _, high = quantiles(ratios, n=4)
        bare_ms, ray_ms = (1e3 * median(pair[k] for pair in pairs) for k in (1, 0))
        print(
            f"batch {experiment.train.batch_size}, {len(ratios)} turns of {steps} steps, "
            f"{clock}: bare {bare_ms:.2f} ms, Ray Train {ray_ms:.2f} ms, "
            f"ratio {median(ratios):.3f} ({low:.3f}-{high:.3f})"
        )


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--steps", type=int, default=25, help="of a turn")
    arguments.add_argument("--batch", type=int, default=128)
    args = arguments.parse_args()
    prepare_ray_environment()
    digits = get_experiment("digits")
    experiment = dataclasses.replace(
        digits,
        train=dataclasses.replace(
            digits.train, steps=FOREVER, checkpoint_every=FOREVER, batch_size=args.batch
        ),
        resources=dataclasses.replace(
            digits.resources, num_workers=1, micro_batch=None, save_minutes=None
        ),
    )
    with tempfile.TemporaryDirectory(prefix="igd") as folder:
        measure(Path(folder), experiment, args.rounds, args.steps)


if __name__ == "__main__":
    main()
