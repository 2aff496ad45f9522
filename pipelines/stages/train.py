"""Train stage: checkpoints of one trajectory, published as they come."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import experiment_from_json
from pipelines.graph import Graph
from pipelines.secrets import load_secrets
from pipelines.stages.build import describe, open_store, write_experiment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ig_core.training import Dataset, TrainState
    from pipelines.artifacts import Store
    from pipelines.graph import Node

REPORT_EVERY = 25
"""Steps between progress reports; losses are gathered and checked then."""


@dataclass(frozen=True)
class TrainJob:
    """What a training worker needs; travels by pickle."""

    store: str
    experiment: str
    """The resolved experiment, as JSON."""
    steps: tuple[int, ...]
    """Steps whose checkpoints are wanted, ascending."""


@dataclass(frozen=True)
class TrainProgress:
    """Where a training is."""

    step: int
    steps: int
    loss: float
    steps_per_second: float
    host: str = ""
    """Where the first worker runs."""


@dataclass(frozen=True)
class TrainOutcome:
    """How a training ended: at its last step, or where a loss was not finite."""

    step: int
    non_finite_step: int | None = None


def published_steps(store: Store, graph: Graph) -> list[int]:
    """Steps of the trajectory that have a checkpoint, ascending.

    They may come from runs of another length or with other checkpoint steps.
    """
    trajectory = graph.checkpoint(0).hash
    found = store.list("checkpoint", f"{trajectory}-")
    return sorted(int(artifact.key.rpartition("-")[2]) for artifact in found)


def starting_step(store: Store, graph: Graph, wanted: Iterable[int]) -> int:
    """Newest published step from which all wanted steps can be reached; 0: there is none."""
    first = min(wanted)
    return max((step for step in published_steps(store, graph) if step < first), default=0)


def train_worker(
    job: TrainJob,
    rank: int,
    world_size: int,
    post: Callable[[TrainProgress], None],
) -> TrainOutcome:
    """Train from the last published checkpoint to the last wanted one.

    Runs on every worker; with more than one the process group is up. Rank 0 publishes.

    Args:
        job: What to train.
        rank: This worker's number.
        world_size: Number of workers.
        post: Takes progress reports (rank 0 only).
    """
    import torch

    from ig_core.training import NonFiniteLossError, Share, train

    load_secrets()
    experiment = experiment_from_json(job.experiment)
    store, graph = open_store(job.store), Graph(experiment)
    torch.set_num_threads(experiment.resources.cpus_per_worker)
    wanted, stop = set(job.steps), max(job.steps)
    start = _agree_on_start(store, graph, job.steps, world_size)
    state = _state_at(store, graph, start)
    state.model.activation_checkpointing = experiment.resources.activation_checkpointing
    if experiment.resources.compile_blocks:
        state.model.compile_blocks()
    dataset = _dataset(store, graph)
    share = Share(rank, world_size, experiment.resources.micro_batch)
    if rank == 0:
        store.log(
            "execute",
            "checkpoint",
            graph.checkpoints[-1].hash,
            stage="train",
            world_size=world_size,
            from_step=state.step,
            to_step=stop,
        )
    begun, first = time.monotonic(), state.step
    since, from_step = begun, first
    try:
        for step in train(state, dataset, experiment.loss, experiment.train, share, REPORT_EVERY):
            if rank == 0 and step in wanted:
                work = {"work_seconds": round(time.monotonic() - since, 3),
                        "work_from_step": from_step}  # fmt: skip
                _publish(store, graph, state, work)
                since, from_step = time.monotonic(), step
            if rank == 0 and (step in wanted or step % REPORT_EVERY == 0):
                recent = state.history[-REPORT_EVERY:, 0].mean().item()
                rate = (step - first) / (time.monotonic() - begun)
                post(TrainProgress(step, stop, recent, rate, platform.node()))
            if step == stop:
                break
    except NonFiniteLossError as error:
        return TrainOutcome(state.step, error.step)
    return TrainOutcome(state.step)


def _agree_on_start(store: Store, graph: Graph, wanted: Iterable[int], world_size: int) -> int:
    """The step to start from, on rank 0's word.

    What each worker saw in the store might differ, while workers of a driver that was killed are
    still publishing.
    """
    import torch
    from torch import distributed

    start = starting_step(store, graph, wanted)
    if world_size > 1:
        message = torch.tensor([start], device=graph.experiment.resources.device)
        distributed.broadcast(message, src=0)
        start = int(message)
    return start


def _state_at(store: Store, graph: Graph, step: int) -> TrainState:
    """The published state of a step; a new one for step 0."""
    from ig_core.checkpoints import load_checkpoint
    from ig_core.training import TrainState

    experiment = graph.experiment
    device = experiment.resources.device
    if step:
        node = graph.checkpoint(step)
        return load_checkpoint(store.open(node.kind, node.key).path, device)
    return TrainState.new(experiment.model, experiment.optim, experiment.train.seed, device)


def _dataset(store: Store, graph: Graph) -> Dataset:
    from ig_core.images import ImageDataset, read_images
    from pipelines.stages.data import IMAGES

    artifact = store.open(graph.data.kind, graph.data.key)
    return ImageDataset(read_images([artifact.path / IMAGES]))


def _publish(store: Store, graph: Graph, state: TrainState, work: dict[str, float]) -> None:
    from ig_core.checkpoints import save_checkpoint

    node: Node = graph.checkpoint(state.step)
    with store.publish(node.kind, node.key, {**describe(node), **work}) as directory:
        write_experiment(graph.experiment, directory)
        save_checkpoint(state, directory)
