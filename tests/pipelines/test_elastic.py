"""Workers come and go, on a Ray cluster of several nodes of this machine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments import experiment_from_json, experiment_to_json
from ig_core.checkpoints import load_history
from pipelines.artifacts import Store
from pipelines.graph import Graph
from pipelines.stages.train import TrainJob, published_steps, train_worker
from tests.pipelines.conftest import events
from tests.processes import kill_tree, wait_for
from tests.ray_nodes import Cluster

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


def start(cluster: Cluster, home: Path, settings: dict) -> subprocess.Popen:
    """`igdit run digits` on the cluster."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    log = home.with_suffix(".log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", "digits", *options],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address, "IGDIT_HOME": str(home)},
        stdout=log, stderr=log,
    )  # fmt: skip


def the_run(store: Store) -> Graph:
    """The graph of the only experiment of a store."""
    (path,) = (store.root / ".runs").glob("*.json")
    return Graph(experiment_from_json(path.read_text()))


def newest(store: Store) -> int:
    """Newest published step."""
    return max(published_steps(store, the_run(store)), default=0)


def sizes(store: Store) -> list[int]:
    """World sizes of the groups that trained, in order."""
    return [event["world_size"] for event in events(store, "execute", "checkpoint")]


def trained_alone(store: Store, graph: Graph, steps: int, folder: Path) -> torch.Tensor:
    """Loss history of one undisturbed worker."""
    experiment = dataclasses.replace(
        graph.experiment,
        train=dataclasses.replace(graph.experiment.train, steps=steps, checkpoint_every=steps),
        resources=dataclasses.replace(graph.experiment.resources, min_workers=None, num_workers=1),
    )
    alone = Store(folder)
    data = store.open("data", graph.data.key).path
    with alone.publish("data", graph.data.key, {}) as directory:
        for file in data.iterdir():
            if file.name != "MANIFEST.json":
                (directory / file.name).write_bytes(file.read_bytes())
    train_worker(
        TrainJob(str(folder), experiment_to_json(experiment), (steps,)), 0, 1, lambda progress: None
    )
    return load_history(alone.open("checkpoint", graph.checkpoint(steps).key).path)


@pytest.mark.slow
def test_one_three_two_workers_train_as_one(tmp_path):
    home, store = tmp_path / "home", Store(tmp_path / "home" / "store")
    with Cluster(6411) as cluster:
        cluster.start("2", 0)
        cluster.start("3", 1)
        cluster.wait_cpus(1)
        driver = start(cluster, home, SETTINGS)

        def seen(condition):
            def ready():
                assert driver.poll() is None, home.with_suffix(".log").read_text()[-4000:]
                return condition()

            return wait_for(ready, 200)

        try:
            seen(lambda: sizes(store) == [1] and newest(store))
            for host in ("4", "5"):
                cluster.start(host, 1)
            seen(lambda: sizes(store)[-1] == 3)
            grown = newest(store)
            seen(lambda: newest(store) > grown)
            victim = next(
                host for host in ("5", "4", "3")
                if not cluster.runs(host, "TrainController")
                and not cluster.runs(host, "train_in_group")
            )  # fmt: skip
            before = newest(store)
            cluster.kill(victim)
            seen(lambda: sizes(store)[-1] == 2)
            shrunk = events(store, "execute", "checkpoint")[-1]["from_step"]
            seen(lambda: newest(store) > shrunk)
            driver.terminate()
            driver.wait(60)
        finally:
            kill_tree(driver.pid)

    executed = events(store, "execute", "checkpoint")
    assert sizes(store)[0] == 1
    assert 3 in sizes(store)
    starts = [event["from_step"] for event in executed]
    assert starts == sorted(starts)
    # A lost node costs what was trained since the last published state, growing costs nothing.
    assert shrunk >= before
    graph, last = the_run(store), newest(store)
    history = load_history(store.open("checkpoint", graph.checkpoint(last).key).path)
    assert len(history) == last > shrunk
    alone = trained_alone(store, graph, last, tmp_path / "alone")
    difference = (history[:, 0] - alone[:, 0]).abs().max().item()
    print(f"{last} steps, {sizes(store)}, from {starts}: largest difference {difference:.2e}")
    torch.testing.assert_close(history[:, 0], alone[:, 0], rtol=1e-2, atol=1e-3)
