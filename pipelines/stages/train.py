"""Train stage: checkpoints of one trajectory, published as they come."""

from __future__ import annotations

import platform
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments import experiment_from_json
from pipelines.graph import Graph
from pipelines.secrets import load_secrets
from pipelines.stages.build import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ig_core.training import TrainState
    from pipelines.artifacts import Store


@dataclass(frozen=True)
class TrainJob:
    """What a training worker needs; travels by pickle."""

    store: str
    experiment: str
    """The resolved experiment, as JSON."""
    steps: tuple[int, ...]
    """Steps whose checkpoints are wanted, ascending."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells what this training published for safety from what others did."""


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
    """How a training ended: at its last step, where a loss was not finite, or early."""

    step: int
    non_finite_step: int | None = None
    left: bool = False
    """Its node was about to go: the state is published, the rest is to be trained elsewhere."""


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
    notice: Callable[[], bool] = lambda: False,
) -> TrainOutcome:
    """Train from the last published checkpoint to the last wanted one.

    Runs on every worker; with more than one the process group is up. Rank 0 publishes.

    Args:
        job: What to train.
        rank: This worker's number.
        world_size: Number of workers.
        post: Takes progress reports (rank 0 only).
        notice: Whether this worker is about to be taken away; then the state is published and all
            workers leave. Asked every few seconds at most.
    """
    import torch

    from ig_core.precision import set_tf32
    from ig_core.training import NonFiniteLossError, Share, train
    from pipelines.stages.latents import open_dataset
    from pipelines.stages.saving import Meetings, Publisher

    load_secrets()
    experiment = experiment_from_json(job.experiment)
    resources = experiment.resources
    store, graph = open_store(job.store), Graph(experiment)
    torch.set_num_threads(resources.cpus_per_worker)
    set_tf32(enabled=resources.tf32)
    stop = max(job.steps)
    start = _agree_on_start(store, graph, job.steps, world_size)
    state = _ready_state(store, graph, start, world_size)
    share = Share(rank, world_size, resources.micro_batch)
    stay = {*job.steps, *experiment.train.checkpoint_steps}
    publisher = Publisher(store, graph, job.id, stay, resources.save_minutes, rank)
    publisher.begin(start)
    if rank == 0:
        store.log("execute", "checkpoint", graph.checkpoints[-1].hash, stage="train",
                  world_size=world_size, from_step=start, to_step=stop)  # fmt: skip
    meetings = Meetings(start, world_size, state.device)
    begun = time.monotonic()
    try:
        for step in train(state, open_dataset(store, graph), experiment.loss,
                          experiment.train, share, meetings.due):  # fmt: skip
            wanted = step in job.steps
            if wanted:
                publisher.publish(state)
            meeting = meetings.due(step)
            if rank == 0 and (wanted or (meeting and step > start + 1)):
                recent = state.history[-25:, 0].mean().item()
                rate = (step - start) / (time.monotonic() - begun)
                post(TrainProgress(step, stop, recent, rate, platform.node()))
            if step == stop:
                break
            if meeting:
                orders = meetings.meet(step, leave=notice(), save=publisher.due())
                if (orders.leave or orders.save) and not wanted:
                    publisher.publish(state)
                if orders.leave:
                    return TrainOutcome(step, left=True)
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


def _ready_state(store: Store, graph: Graph, step: int, world_size: int) -> TrainState:
    """The published state of a step (a new one for step 0), ready to be trained."""
    from ig_core.checkpoints import load_checkpoint
    from ig_core.sharding import shard
    from ig_core.training import TrainState

    experiment, resources = graph.experiment, graph.experiment.resources
    in_parts = resources.sharding == "fsdp" and world_size > 1
    # A state that is sharded may not fit as a whole.
    device = "cpu" if in_parts else resources.device
    if step:
        node = graph.checkpoint(step)
        state = load_checkpoint(store.open(node.kind, node.key).path, device)
    else:
        state = TrainState.new(experiment.model, experiment.optim, experiment.train.seed, device)
    state.model.activation_checkpointing = resources.activation_checkpointing
    if resources.compile_blocks:
        state.model.compile_blocks()
    if in_parts:
        shard(state, resources.device)
    return state
