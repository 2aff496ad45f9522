"""Garbage collection: artifacts that no root of the register needs any more.

Artifacts that a recorded run, study or evaluation leads to are kept, and the state that a training
which is not over would go on from; the rest can go. Runs hold a shared lock and collection an
exclusive one, so that nothing is deleted under a run.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.common.errors import ArtifactError
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.graph.trajectory import starting_points
from pipelines.store.register import forget_root, read_register

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from pipelines.graph.node import Node
    from pipelines.store.base import Artifact, Store
    from pipelines.store.keys import Ref
    from pipelines.store.register import Record

IN_USE = ".in-use.lock"


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """Mark the store as used by a run.

    Raises:
        ValueError: If the store cannot be used.
        ArtifactError: If garbage is being collected right now.
    """
    store.prepare()
    lock = store.lock(IN_USE, shared=True)
    if not lock.acquire():
        raise ArtifactError(f"the store {store.uri} is being collected; try again in a moment")
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Garbage:
    """Artifacts and roots that a collection deletes."""

    artifacts: tuple[Artifact, ...]
    quarantined: tuple[str, ...]
    """Names of damaged artifacts in quarantine."""
    unreadable: tuple[str, ...] = ()
    """Keys of records that cannot be read and are not forgotten: while there is one, no artifact is
    garbage, since it may be needed."""
    forgotten: tuple[str, ...] = ()
    """Titles of the roots that are forgotten."""


def find_garbage(store: Store, forget: Iterable[str] = ()) -> Garbage:
    """Find the artifacts that no root of the register needs, except those to forget.

    Args:
        store: Where to look.
        forget: Names of roots, or first characters of their keys.

    Raises:
        ValueError: If a root to forget is not recorded, or a name means several.
    """
    return _find(store, forget)[0]


def _find(store: Store, words: Iterable[str]) -> tuple[Garbage, tuple[str, ...]]:
    """Return the garbage, and the keys of the roots that are forgotten."""
    register = read_register(store)
    roots = register.roots(words)
    keys, titles, aside = tuple(roots), tuple(roots.values()), tuple(store.quarantined())
    unreadable = tuple(key for key in register.unreadable_keys if key not in roots)
    if unreadable:
        return Garbage((), aside, unreadable, titles), keys
    there = store.list()
    published = {artifact.ref for artifact in there}
    needed: set[Ref] = set()
    for record in register.records:
        if record.key not in roots:
            needed.update(node.ref for node in _needs(record, published))
    unneeded = tuple(artifact for artifact in there if artifact.ref not in needed)
    return Garbage(unneeded, aside, (), titles), keys


def _needs(record: Record, published: Collection[Ref]) -> Iterable[Node]:
    """Return what a record needs, of a store in which these artifacts are published."""
    if record.experiment is None:
        return ()
    graph = Graph(record.experiment)
    if record.images is not None:
        return closure([graph.evaluation_of(record.images, in_order=record.in_order)])
    return (*closure(graph.needed), *_resumed_from(published, graph))


def _resumed_from(published: Collection[Ref], graph: Graph) -> list[Node]:
    """Return the state that a training which is not over would start from, if there is one."""
    missing = [node.step for node in graph.checkpoints if node.ref not in published]
    return starting_points(published, graph, missing)[:1] if missing else []


def collect_garbage(
    store: Store,
    forget: Iterable[str] = (),
    announce: Callable[[Garbage], None] = lambda _: None,
) -> Garbage:
    """Forget roots and delete garbage; return what was deleted.

    Garbage is found while no run can begin.

    Args:
        store: Where to delete.
        forget: Names of roots, or first characters of their keys.
        announce: Called with the garbage before it is deleted.

    Raises:
        ArtifactError: If a run is using the store.
        ValueError: If a root to forget is not recorded, or a name means several.
    """
    lock = store.lock(IN_USE)
    if not lock.acquire():
        raise ArtifactError(f"a run is using the store {store.uri}; nothing was deleted")
    try:
        garbage, keys = _find(store, forget)
        announce(garbage)
        for key in keys:
            forget_root(store, key)
        for artifact in garbage.artifacts:
            store.delete(artifact)
        for name in garbage.quarantined:
            store.delete_quarantined(name)
        store.sweep()
    finally:
        lock.release()
    return garbage


def store_summary(store: Store) -> list[tuple[str, int, int]]:
    """Return (kind, number of artifacts, bytes) for each kind in the store."""
    totals: dict[str, tuple[int, int]] = {}
    for artifact in store.list():
        count, size = totals.get(artifact.ref.kind, (0, 0))
        totals[artifact.ref.kind] = (count + 1, size + artifact.size)
    return [(kind, count, size) for kind, (count, size) in sorted(totals.items())]
