"""Garbage collection: what no recorded experiment needs any more.

Every run leaves its resolved experiment in the store. Artifacts that one of them leads to are kept,
and the state that a training which is not over would go on from; the rest can go. Runs hold a
shared lock and collection an exclusive one, so that nothing is deleted under a run.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments import Experiment, experiment_from_json, experiment_to_json
from pipelines.common.errors import ArtifactError
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.graph.trajectory import starting_points
from pipelines.store.command_times import forget_commands

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pipelines.graph.node import Node
    from pipelines.store.base import Artifact, Store
    from pipelines.store.keys import Ref

logger = logging.getLogger(__name__)

IN_USE = ".in-use.lock"
RUNS, SHOWN = ".runs/", ".shown/"
_warned: set[tuple[str, str]] = set()
"""Addresses of records, and why they were passed over: each is said once."""


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
        if store.write_record(name, experiment_to_json(experiment)):
            continue
        folder, _, rest = name.rpartition("/")
        if rest in _read_records(store, f"{folder}/", only=rest)[1]:
            # It says nothing any more; what it recorded has this key, and so is this experiment.
            store.remove_record(name)
            store.write_record(name, experiment_to_json(experiment))


def recorded_runs(store: Store) -> dict[str, Experiment]:
    """Experiments that were run, by run key; records that cannot be read are warned of."""
    return {_stem(name): experiment for name, experiment in _readable(store, RUNS).items()}


def unreadable_runs(store: Store) -> dict[str, str]:
    """Run keys of records that cannot be read, with the reasons: nobody knows what they need."""
    return {_stem(name): reason for name, reason in _read_records(store, RUNS)[1].items()}


def shown_runs(store: Store) -> list[tuple[str, Experiment]]:
    """Run key and experiment of what has a page of its own, under each of its names.

    Records that cannot be read are warned of.
    """
    return [
        (name.partition(".")[0], experiment) for name, experiment in _readable(store, SHOWN).items()
    ]


def warn_of_record(store: Store, name: str, reason: object, remedy: str) -> None:
    """Log, once a process, that a record cannot be read and is passed over.

    Args:
        store: Where it lies.
        name: Its name in the store.
        reason: Why it cannot be read.
        remedy: What removes it.
    """
    text = f"the record {store.uri}/{name} cannot be read and is passed over: {reason}. {remedy}"
    if (store.uri, text) not in _warned:
        _warned.add((store.uri, text))
        logger.warning("%s", text)


def _stem(name: str) -> str:
    return name.removesuffix(".json")


def _readable(store: Store, folder: str) -> dict[str, Experiment]:
    found, unreadable = _read_records(store, folder)
    for name, reason in unreadable.items():
        key = name.partition(".")[0]
        remedy = (
            f"Run that experiment again to write it anew, or remove it: igdit store gc "
            f"--forget {key} --delete"
        )
        warn_of_record(store, folder + name, reason, remedy)
    return found


def _read_records(
    store: Store, folder: str, only: str | None = None
) -> tuple[dict[str, Experiment], dict[str, str]]:
    """Experiments of a folder by name, and of what is no experiment the reason."""
    found, unreadable = {}, {}
    for name, text in store.records(folder).items():
        if not name.endswith(".json") or only not in (None, name):
            continue
        try:
            found[name] = experiment_from_json(text)
        except ValueError as error:
            unreadable[name] = str(error)
    return found, unreadable


@dataclass(frozen=True)
class Garbage:
    """What can go."""

    artifacts: tuple[Artifact, ...]
    set_aside: tuple[str, ...]
    """Damaged artifacts that were rebuilt."""
    unreadable: tuple[str, ...] = ()
    """Keys of records that cannot be read and are not forgotten: while there is one, no artifact is
    garbage, since it may be needed."""


def find_garbage(store: Store, forget: tuple[str, ...] = ()) -> Garbage:
    """Artifacts that no recorded run leads to, except through the forgotten ones.

    Raises:
        ValueError: a run to forget is not recorded.
    """
    runs, unreadable = recorded_runs(store), unreadable_runs(store)
    forgotten = _forgotten(store, forget)
    aside = tuple(store.set_aside())
    unknown = tuple(key for key in unreadable if key not in forgotten)
    if unknown:
        return Garbage((), aside, unknown)
    there = store.list()
    published = {artifact.ref for artifact in there}
    needed: set[Ref] = set()
    for key, experiment in runs.items():
        if key not in forgotten:
            graph = Graph(experiment)
            nodes = (*closure(graph.needed), *_resumed_from(published, graph))
            needed.update(node.ref for node in nodes)
    return Garbage(tuple(a for a in there if a.ref not in needed), aside)


def _forgotten(store: Store, prefixes: tuple[str, ...]) -> set[str]:
    """Keys of the records that are named by their first digits, whether they can be read or not.

    Raises:
        ValueError: some digits are those of none, or of several.
    """
    names = [name for folder in (RUNS, SHOWN) for name in store.records(folder)]
    keys = dict.fromkeys(name.partition(".")[0] for name in names)
    forgotten = set()
    for prefix in prefixes:
        matching = [key for key in keys if key.startswith(prefix)]
        if len(matching) != 1:
            raise ValueError(
                f"--forget must name one recorded run ({', '.join(keys)}), but got {prefix!r}"
            )
        forgotten.add(matching[0])
    return forgotten


def _resumed_from(published: Collection[Ref], graph: Graph) -> list[Node]:
    """The state that a training which is not over would start from, if there is one."""
    missing = [node.step for node in graph.checkpoints if node.ref not in published]
    return starting_points(published, graph, missing)[:1] if missing else []


def collect_garbage(store: Store, forget: tuple[str, ...] = ()) -> Garbage:
    """Delete garbage and forget runs; returns what was deleted.

    What is garbage is decided while no run can begin.

    Raises:
        ArtifactError: a run is using the store.
        ValueError: a run to forget is not recorded.
    """
    lock = store.lock(IN_USE)
    if not lock.acquire():
        raise ArtifactError(f"a run is using the store {store.uri}; nothing was deleted")
    try:
        garbage = find_garbage(store, forget)
        forgotten = _forgotten(store, forget)
        for folder in (RUNS, SHOWN):
            for name in store.records(folder):
                if name.partition(".")[0] in forgotten:
                    store.remove_record(folder + name)
                    forget_commands(store, name.partition(".")[0])
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
        count, size = totals.get(artifact.ref.kind, (0, 0))
        totals[artifact.ref.kind] = (count + 1, size + artifact.size)
    return [(kind, count, size) for kind, (count, size) in sorted(totals.items())]
