"""What it costs to find that a stage is done: per cached artifact, in a folder and in a bucket.

    python -m benchmarks.orchestration [--store s3://BUCKET/PREFIX]

Without --store: a folder, and a bucket on a server of its own on loopback (needs moto). An
experiment in small is run once; then, as a process that knows nothing yet,

    plan     decides of every artifact of the experiment whether it is there
    open     opens every artifact and checks its files, which lie on this machine
    fetch    the same with an empty cache (bucket only)
    rerun    runs the finished experiment again, without report and MLflow
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import Experiment, get_experiment
from pipelines.execution.listener import NullListener
from pipelines.execution.runners import InlineRunner
from pipelines.execution.scheduler import Pipeline
from pipelines.graph.graph import Graph
from pipelines.graph.node import Node, closure
from pipelines.graph.plan import make_plan
from pipelines.results.measurements import collect
from pipelines.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.store.base import Store


def small() -> Experiment:
    """Digits, as few of everything as will do: the cost of a cached stage is not in its size."""
    digits, replace = get_experiment("digits"), dataclasses.replace
    return replace(
        digits,
        name="orchestration",
        model=replace(digits.model, depth=2, width=32, num_heads=2, aux_layer=1),
        train=replace(digits.train, steps=4, checkpoint_every=1, batch_size=16),
        sampler=replace(digits.sampler, num_steps=2),
        evaluation=replace(
            digits.evaluation,
            num_samples=100,
            curve_samples=100,
            groups=5,
            extractor_epochs=1,
            kid_subsets=2,
            kid_subset_size=50,
        ),
        ig_scales=(1.2, 1.4, 1.6),
        resources=replace(digits.resources, runner="inline", num_workers=1),
    )


def build(store: Store, experiment: Experiment) -> list[Node]:
    """Bring the experiment into the store; returns all of its artifacts."""
    store.prepare()
    graph = Graph(experiment)
    Pipeline(store, experiment, InlineRunner, NullListener()).run(graph.targets)
    targets = collect(store, graph).targets
    Pipeline(store, experiment, InlineRunner, NullListener()).run(targets)
    return list(closure(targets))


def milliseconds(act: Callable[[], object], count: int, rounds: int = 5) -> list[float]:
    """Wall time for each artifact, in each round."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        act()
        found.append(1000 * (time.perf_counter() - begun) / count)
    return found


def measure(uri: str) -> None:
    """Measure one store and print a line for each thing."""
    experiment = small()
    nodes = build(open_store(uri), experiment)
    graph = Graph(experiment)

    def open_all() -> None:
        store = open_store(uri)
        for node in nodes:
            store.open(node.ref)

    def fetch_all() -> None:
        with tempfile.TemporaryDirectory() as empty:
            os.environ["IGDIT_CACHE"] = empty
            open_all()

    def rerun() -> None:
        store = open_store(uri)
        targets = collect(store, graph).targets
        Pipeline(store, experiment, InlineRunner, NullListener()).run(targets)
        collect(store, graph)

    tasks: dict[str, Callable[[], object]] = {
        "plan": lambda: [make_plan(open_store(uri), nodes)],
        "open": open_all,
        "rerun": rerun,
    }
    if "://" in uri:
        tasks["fetch"] = fetch_all
    cache = os.environ.get("IGDIT_CACHE")
    for name, act in tasks.items():
        found = milliseconds(act, len(nodes))
        print(
            f"{name:7} {statistics.median(found):8.2f} ms an artifact "
            f"({min(found):.2f} .. {max(found):.2f}), {len(nodes)} artifacts"
        )
        if cache is not None:
            os.environ["IGDIT_CACHE"] = cache


def main() -> None:
    """Measure a folder and a bucket, or one store that is given."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--store", help="a store to measure; it is written to")
    given = parser.parse_args().store
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IGDIT_CACHE"] = f"{folder}/cache"
        if given:
            print(given)
            measure(given)
            return
        print("folder")
        measure(f"{folder}/store")
        from cluster.services import S3

        server = S3(Path(folder), secret_key="not-a-secret")
        server.start()
        try:
            server.make_bucket("lab")
            os.environ |= {
                "AWS_ENDPOINT_URL": server.url,
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
            }
            print("bucket on loopback")
            measure("s3://lab/benchmark")
        finally:
            server.close()


if __name__ == "__main__":
    main()
