"""Garbage collection: what no recorded experiment needs any more.

Every run leaves its resolved experiment in the store. Artifacts that one of them leads to are kept,
and the state that a training which is not over would go on from; the rest can go. Runs hold a
shared lock and collection an exclusive one, so that nothing is deleted under a run.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import Experiment, experiment_from_json, experiment_to_json
from pipelines.errors import ArtifactError
from pipelines.graph import Graph, closure
from pipelines.stages.starting import starting_points

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pipelines.artifacts import Artifact, Store
    from pipelines.graph import Node


IN_USE = ".in-use.lock"
RUNS, SHOWN = ".runs/", ".shown/"


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Mark the store as used by a run.

    Raises:
        ValueError: the store cannot be used.
        ArtifactError: it is being collected right now.
    """
    store.prepare()
    lock = store.lock(IN_USE, shared=True)
    if not lock.acquire():
        raise ArtifactError(f"the store {store.uri} is being collected; try again in a moment")
    try:
        yield
    finally:
        lock.release()


def remember(store: Store, experiment: Experiment, run_key: str, *, shown: bool = False) -> None:
    """Record an experiment as a root of garbage collection.

    Args:
        store: Where.
        experiment: What is run.
        run_key: Its key, which does not depend on its name.
        shown: Whether it has a page of its own in MLflow, under its name: not one of a study's.
    """
    names = [f"{RUNS}{run_key}.json"]
    if shown:
        names.append(f"{SHOWN}{run_key}.{experiment.name}.json")
    for name in names:
        store.write_record(name, experiment_to_json(experiment))


def recorded_runs(store: Store) -> dict[str, Experiment]:
    """Experiments that were run, by run key.

    Raises:
        ValueError: a record cannot be read (so that nothing is taken for garbage by mistake).
    """
    return _records(store, RUNS)


def shown_runs(store: Store) -> list[tuple[str, Experiment]]:
    """Run key and experiment of what has a page of its own, under each of its names.

    Raises:
        ValueError: a record cannot be read.
    """
    records = _records(store, SHOWN)
    return [(name.partition(".")[0], experiment) for name, experiment in records.items()]


def _records(store: Store, folder: str) -> dict[str, Experiment]:
    runs = {}
    for name, text in store.records(folder).items():
        if not name.endswith(".json"):
            continue
        try:
            runs[name.removesuffix(".json")] = experiment_from_json(text)
        except ValueError as error:
            raise ValueError(f"the record {store.uri}/{folder}{name} cannot be read: "
                             f"{error}") from error  # fmt: skip
    return runs


@dataclass(frozen=True)
class Garbage:
    """What can go."""

    artifacts: tuple[Artifact, ...]
    set_aside: tuple[str, ...]
    """Damaged artifacts that were rebuilt."""


def find_garbage(store: Store, forget: tuple[str, ...] = ()) -> Garbage:
    """Artifacts that no recorded run leads to, except through the forgotten ones.

    Raises:
        ValueError: a run to forget is not recorded, or a record cannot be read.
    """
    runs = recorded_runs(store)
    kept = dict(runs)
    for prefix in forget:
        matching = [key for key in runs if key.startswith(prefix)]
        if len(matching) != 1:
            raise ValueError(f"--forget must name one recorded run ({', '.join(runs)}), but got "
                             f"{prefix!r}")  # fmt: skip
        kept.pop(matching[0], None)
    there = store.list()
    names = [(artifact.kind, artifact.key) for artifact in there]
    needed: set[tuple[str, str]] = set()
    for experiment in kept.values():
        graph = Graph(experiment)
        nodes = (*closure(graph.needed), *_resumed_from(names, graph))
        needed.update((node.kind, node.key) for node in nodes)
    unneeded = tuple(a for a, name in zip(there, names, strict=True) if name not in needed)
    return Garbage(unneeded, tuple(store.set_aside()))


def _resumed_from(names: Collection[tuple[str, str]], graph: Graph) -> list[Node]:
    """The state that a training which is not over would start from, if there is one."""
    published = set(names)
    missing = [n.step for n in graph.checkpoints if (n.kind, n.key) not in published]
    return starting_points(names, graph, missing)[:1] if missing else []


def collect_garbage(store: Store, forget: tuple[str, ...] = ()) -> Garbage:
    """Delete garbage and forget runs; returns what was deleted.

    What is garbage is decided while no run can begin.

    Raises:
        ArtifactError: a run is using the store.
        ValueError: a run to forget is not recorded, or a record cannot be read.
    """
    lock = store.lock(IN_USE)
    if not lock.acquire():
        raise ArtifactError(f"a run is using the store {store.uri}; nothing was deleted")
    try:
        garbage = find_garbage(store, forget)
        for prefix in forget:
            for folder in (RUNS, SHOWN):
                for name in store.records(folder):
                    if name.startswith(prefix):
                        store.remove_record(folder + name)
        for artifact in garbage.artifacts:
            store.delete(artifact)
        for name in garbage.set_aside:
            store.discard(name)
        store.sweep()
    finally:
        lock.release()
    return garbage


def store_summary(store: Store) -> list[tuple[str, int, int]]:
    """(kind, number of artifacts, bytes) for each kind in the store."""
    totals: dict[str, tuple[int, int]] = {}
    for artifact in store.list():
        count, size = totals.get(artifact.kind, (0, 0))
        totals[artifact.kind] = (count + 1, size + artifact.size)
    return [(kind, count, size) for kind, (count, size) in sorted(totals.items())]
