"""Workers come and go, on a Ray cluster of several nodes of this machine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from experiments import experiment_to_json
from ig_core.checkpoints.own import load_history
from pipelines.graph.graph import Graph
from pipelines.graph.trajectory import resume_steps
from pipelines.stages.jobs import TrainJob
from pipelines.stages.training.worker import train_worker
from pipelines.store.folder import FolderStore
from pipelines.store.register import read_register
from tests.equipment.processes import kill_tree, wait_for
from tests.equipment.ray_nodes import Nodes
from tests.pipelines.conftest import events

SETTINGS = {
    # It is stopped when all has been seen, however fast the machine.
    "train.steps": 100_000,
    "train.checkpoint-every": 100_000,
    "train.batch-size": 127,
    "evaluation.extractor-epochs": 1,
    "resources.min-workers": 1,
    "resources.num-workers": 3,
    "resources.save-minutes": 0.05,
}


def start(cluster: Nodes, home: Path, settings: dict) -> subprocess.Popen:
    """`igdit run digits` on the cluster."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    log = home.with_suffix(".log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", "digits", *options],
        env={**cluster.environment, "IGDIT_HOME": str(home)},
        stdout=log,
        stderr=log,
    )


def the_run(store: FolderStore) -> Graph:
    """The graph of the only experiment of a store."""
    (experiment,) = read_register(store).experiments.values()
    return Graph(experiment)


def newest(store: FolderStore) -> int:
    """Step of the newest state; there is no checkpoint before the test is over."""
    return max(resume_steps(store, the_run(store)), default=0)


def sizes(store: FolderStore) -> list[int]:
    """World sizes of the groups that trained, in order."""
    return [event["world_size"] for event in events(store, "execute", "checkpoint")]


def trained_alone(store: FolderStore, graph: Graph, steps: int, folder: Path) -> torch.Tensor:
    """Loss history of one undisturbed worker."""
    experiment = dataclasses.replace(
        graph.experiment,
        train=dataclasses.replace(graph.experiment.train, steps=steps, checkpoint_every=steps),
        resources=dataclasses.replace(graph.experiment.resources, min_workers=None, num_workers=1),
    )
    alone = FolderStore(folder)
    data = store.open(graph.data.ref).path
    with alone.publish(graph.data.ref, {}) as directory:
        for file in data.iterdir():
            if file.name != "MANIFEST.json":
                (directory / file.name).write_bytes(file.read_bytes())
    train_worker(
        TrainJob(str(folder), experiment_to_json(experiment), (steps,)), 0, 1, lambda progress: None
    )
    return load_history(alone.open(graph.checkpoint(steps).ref).path)


class Watched:
    """A run on a cluster, and what a test waits for while it lives."""

    def __init__(self, cluster: Nodes, home: Path, settings: dict) -> None:
        self.cluster, self.home, self.store = cluster, home, FolderStore(home / "store")
        self.driver = start(cluster, home, settings)

    def wait_for(self, condition):
        def ready():
            assert self.driver.poll() is None, self.home.with_suffix(".log").read_text()[-4000:]
            return condition()

        return wait_for(ready, 200)

    def without(self, *names: str) -> int:
        """A node with CPUs on which none of these tasks and actors run."""
        return next(
            number
            for number in self.cluster.alive_workers
            if not any(self.cluster.runs(number, name) for name in names)
        )

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        kill_tree(self.driver.pid)


HEADS = ("TrainController", "train_in_group")
"""What looks after a group: stays with the driver, on a node that is not lost."""


@pytest.mark.slow
def test_workers_come_and_go_and_the_loss_is_that_of_one(tmp_path, short_folder):
    """1 -> 3 (nodes join, maybe one by one) -> 2 (one is killed) -> 1 (one is about to go)."""
    with Nodes(short_folder) as cluster:
        cluster.start(2)
        with Watched(cluster, tmp_path / "home", SETTINGS) as run:
            store = run.store
            run.wait_for(lambda: sizes(store) == [1] and newest(store))
            for number in (2, 3):
                cluster.start_node(number)
            run.wait_for(lambda: sizes(store)[-1] == 3)
            grown = newest(store)
            run.wait_for(lambda: newest(store) > grown)

            before_kill = newest(store)
            cluster.kill_node(run.without(*HEADS))
            run.wait_for(lambda: sizes(store)[-1] == 2)
            shrunk = events(store, "execute", "checkpoint")[-1]["from_step"]
            run.wait_for(lambda: newest(store) > shrunk)

            going = run.without(*HEADS)
            cluster.drain(going, 60)
            run.wait_for(lambda: not cluster.runs(going, "RayTrainWorker"))
            left_at = newest(store)
            cluster.kill_node(going)
            run.wait_for(lambda: sizes(store)[-1] == 1)
            run.wait_for(lambda: newest(store) > left_at)
            run.driver.terminate()
            run.driver.wait(60)

    starts = [event["from_step"] for event in events(store, "execute", "checkpoint")]
    assert starts == sorted(starts)
    # A kill costs what was trained since the last published state, a notice nothing.
    assert shrunk >= before_kill
    assert starts[-1] == left_at
    graph, last = the_run(store), newest(store)
    history = load_history(store.open(graph.resume(last).ref).path)
    assert len(history) == last > left_at
    alone = trained_alone(store, graph, last, tmp_path / "alone")
    # Rounding of sums in another order, over the some hundred steps that this takes.
    torch.testing.assert_close(history[:, 0], alone[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_training_waits_for_nodes_that_are_to_come(tmp_path, short_folder):
    settings = {
        **SETTINGS,
        "resources.min-workers": "None",
        "resources.num-workers": 2,
        "resources.wait-minutes": 3,
    }
    with Nodes(short_folder) as cluster:
        cluster.start(2)
        with Watched(cluster, tmp_path / "home", settings) as run:
            said = tmp_path / "home.log"
            run.wait_for(lambda: "a training needs 2 CPUs" in said.read_text())
            assert not (tmp_path / "home" / "store" / "checkpoint").exists()
            cluster.start_node(2)
            run.wait_for(lambda: sizes(run.store) == [2])


def unfinished(store: FolderStore) -> set[str]:
    """Shards of images that were begun and are not published."""
    begun, published = (
        {e["key"] for e in events(store, event, "images")} for event in ("execute", "published")
    )
    return begun - published


SAMPLED = {
    "train.steps": 40,
    "train.checkpoint-every": 40,
    "evaluation.num-samples": 2000,
    "evaluation.curve-samples": 200,
    "evaluation.shard-size": 1000,
    "evaluation.extractor-epochs": 1,
    "evaluation.kid-subsets": 2,
    "evaluation.kid-subset-size": 100,
    "ig-scales": 1.5,
    "resources.num-workers": 1,
    "resources.sample-tasks": 2,
}


@pytest.mark.slow
def test_shards_that_were_lost_with_a_node_are_made_elsewhere(tmp_path, short_folder):
    with Nodes(short_folder) as cluster:
        cluster.start(3)
        with Watched(cluster, tmp_path / "home", SAMPLED) as run:
            store = run.store
            run.wait_for(lambda: any(cluster.runs(node, "_Board") for node in (1, 2)))
            victim = run.without("_Board")
            # Both nodes sample, so that what the victim does is begun and not published.
            run.wait_for(lambda: len(unfinished(store)) == 2 and cluster.runs(victim, "build"))
            cluster.kill_node(victim)
            assert run.driver.wait(300) == 0, (tmp_path / "home.log").read_text()[-4000:]
    graph = the_run(store)
    for point in graph.final.values():
        assert store.find(point.evaluate.ref)
    executed = Counter((e["kind"], e["key"]) for e in events(store, "execute"))
    assert set(executed.values()) <= {1, 2}
    assert 2 in executed.values()
    published = Counter((e["kind"], e["key"]) for e in events(store, "published"))
    assert set(published.values()) == {1}
