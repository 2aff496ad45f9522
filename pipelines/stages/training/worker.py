"""Train stage: train one trajectory in a worker, and publish its checkpoints on the way."""

from __future__ import annotations

import platform
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from experiments import experiment_from_json
from pipelines.common.memory import explaining_memory
from pipelines.common.redaction import load_secrets
from pipelines.graph.graph import Graph
from pipelines.stages.jobs import TrainJob, TrainOutcome, TrainProgress
from pipelines.stages.training.start import Team, open_data, open_start
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.keys import Ref
from pipelines.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from experiments import Experiment
    from ig_core.training.batches import Dataset, DrawnDataset
    from ig_core.training.state import TrainState
    from ig_core.transformer import DiffusionTransformer
    from pipelines.stages.training.publisher import Publisher
    from pipelines.store.base import Artifact


def train_worker(
    job: TrainJob,
    rank: int,
    world_size: int,
    post: Callable[[TrainProgress], None],
    is_preempted: Callable[[], bool] = lambda: False,
    publishing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TrainOutcome:
    """Train from the last published state to the last wanted step.

    Runs on every worker; with more than one the process group is up. Rank 0 publishes.

    Args:
        job: What to train.
        rank: This worker's number.
        world_size: Number of workers.
        post: Takes progress reports (rank 0 only).
        is_preempted: Returns True if this worker is about to be taken away; then the state is
            published and all workers end. Called every few seconds at most.
        publishing: Context in which a state is published and this worker must not be ended.
    """
    import torch

    from ig_core.precision import set_tf32
    from pipelines.stages.codec import open_dataset
    from pipelines.stages.training.publisher import Publisher

    load_secrets()
    experiment = experiment_from_json(job.experiment)
    resources = experiment.resources
    store, graph = open_store(job.store, in_use=True), Graph(experiment)
    torch.set_num_threads(resources.cpus_per_worker)
    set_tf32(enabled=resources.tf32)
    with store.using(), explaining_memory("checkpoint", resources):
        team = Team(rank, world_size, resources.device)
        try:
            open_data(store, graph, team)
            decided = round(time.time(), 3)
            start = open_start(store, graph, job.steps, team)
        except CorruptArtifactError as error:
            return TrainOutcome(0, damaged=error)
        state, dataset = _prepare_state(experiment, start, world_size), open_dataset(store, graph)
        kept = {*job.steps, *experiment.train.checkpoint_steps}
        publisher = Publisher(store, graph, job.id, kept, resources.save_minutes, team, publishing)
        publisher.begin(start)
        if rank == 0:
            store.log(
                "execute",
                Ref("checkpoint", graph.checkpoints[-1].hash),
                stage="train",
                world_size=world_size,
                from_step=state.step,
                to_step=max(job.steps),
                decided=decided,
            )
        with publisher:
            return _train_on(job, experiment, state, dataset, publisher, post, is_preempted)


def _train_on(
    job: TrainJob,
    experiment: Experiment,
    state: TrainState,
    dataset: Dataset | DrawnDataset,
    publisher: Publisher,
    post: Callable[[TrainProgress], None],
    is_preempted: Callable[[], bool],
) -> TrainOutcome:
    from ig_core.training.batches import WorkerShare
    from ig_core.training.loop import NonFiniteLossError, train
    from pipelines.stages.training.publisher import Meetings

    team, start, stop = publisher.team, state.step, max(job.steps)
    share = WorkerShare(team.rank, team.size, experiment.resources.micro_batch)
    meetings = Meetings(start, team.size, state.device)
    started = time.monotonic()
    try:
        for step in train(state, dataset, experiment.loss, experiment.train, share, meetings.due):
            wanted = step in job.steps
            if wanted:
                publisher.publish(state)
            meeting = meetings.due(step)
            if team.rank == 0 and (wanted or (meeting and step > start + 1)):
                recent = state.history[-25:, 0].mean().item()
                rate = (step - start) / (time.monotonic() - started)
                post(TrainProgress(step, stop, recent, rate, platform.node()))
            if step == stop:
                publisher.settle()
                break
            if meeting:
                orders = meetings.meet(step, drain=is_preempted(), save=publisher.due())
                if (orders.drain or orders.save) and not wanted:
                    publisher.publish(state)
                if orders.drain:
                    publisher.settle()
                    return TrainOutcome(step, preempted=True)
    except NonFiniteLossError as error:
        return TrainOutcome(state.step, error.step)
    return TrainOutcome(state.step)


def _prepare_state(experiment: Experiment, start: Artifact | None, world_size: int) -> TrainState:
    """Load the published state, or make a new one for None, ready to be trained."""
    from ig_core.checkpoints.own import load_checkpoint
    from ig_core.checkpoints.sharded import load_sharded
    from ig_core.training.sharding import shard
    from ig_core.training.state import TrainState

    resources = experiment.resources
    in_parts = resources.sharding == "fsdp" and world_size > 1
    device = "cpu" if in_parts else resources.device

    def prepare(model: DiffusionTransformer) -> None:
        model.activation_checkpointing = resources.activation_checkpointing
        if resources.compile_blocks:
            model.compile_blocks()

    if start is not None and in_parts:
        return load_sharded(start.path, resources.device, prepare)
    if start is not None:
        state = load_checkpoint(start.path, device)
    else:
        state = TrainState.new(experiment.model, experiment.optim, experiment.train.seed, device)
    prepare(state.model)
    if in_parts:
        shard(state, resources.device)
    return state
