"""Plan of an experiment: the nodes that are cached, and those that have to be built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.graph.node import Node, closure
from pipelines.graph.trajectory import published_steps
from pipelines.store.errors import CorruptArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.graph.graph import Graph
    from pipelines.store.base import Store


@dataclass(frozen=True)
class Plan:
    """Nodes in the store, and nodes to build."""

    cached: frozenset[Node]
    missing: tuple[Node, ...]
    """Nodes to build, inputs first."""


def make_plan(store: Store, targets: Iterable[Node]) -> Plan:
    """Return which of the targets, and of what they need, is missing; the store is not changed.

    Inputs of published artifacts are not needed, and not looked at.
    """
    targets = list(targets)
    absent = store.absent(node.ref for node in closure(targets))
    cached: set[Node] = set()
    missing: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node in cached or node in missing:
            return
        if node.ref not in absent and store.find(node.ref):
            cached.add(node)
            return
        for source in node.inputs.values():
            visit(source)
        missing[node] = None

    for target in targets:
        visit(target)
    return Plan(frozenset(cached), tuple(missing))


def quarantine_corrupt(store: Store, graph: Graph) -> list[Node]:
    """Check every artifact of an experiment and quarantine the damaged ones; return these.

    All checkpoints of the trajectory are checked, since a training may start from any of them. (A
    training that finds another state damaged goes on from an older one by itself.)
    """
    trajectory = [graph.checkpoint(step) for step in published_steps(store, graph)]
    found = []
    for node in dict.fromkeys((*closure(graph.needed), *trajectory)):
        try:
            if store.find(node.ref):
                store.open(node.ref)
        except CorruptArtifactError:
            store.quarantine(node.ref)
            found.append(node)
    return found
