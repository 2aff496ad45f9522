"""States along a training from which it can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.store.base import Store


def published_steps(store: Store, graph: Graph) -> list[int]:
    """Steps of the trajectory that have a checkpoint, ascending.

    They may come from runs of another length or with other checkpoint steps.
    """
    return sorted(_step(key) for kind, key in _states(store, graph, ("checkpoint",)))


def resume_steps(store: Store, graph: Graph) -> list[int]:
    """Steps of the trajectory that have a state to resume from, ascending."""
    return sorted(_step(key) for kind, key in _states(store, graph, ("resume",)))


def starting_points(
    names: Iterable[tuple[str, str]], graph: Graph, wanted: Iterable[int]
) -> list[Node]:
    """States from which all wanted steps can be reached, the best first.

    That is the newest; of a checkpoint and a state to resume from the checkpoint.

    Args:
        names: Kind and key of what is published.
        graph: Whose states.
        wanted: The steps; those that have a checkpoint are not made again.
    """
    states = {"checkpoint": graph.checkpoint, "resume": graph.resume}
    hashes = {kind: state(0).hash for kind, state in states.items()}
    wanted = list(wanted)
    found = [
        (_step(key), kind) for kind, key in names if hashes.get(kind) == key.rpartition("-")[0]
    ]
    # Workers that are replaced still want what those before them have published.
    there = {step for step, kind in found if kind == "checkpoint"}
    first = min((step for step in wanted if step not in there), default=max(wanted))
    best = sorted(found, key=lambda each: (each[0], each[1] == "checkpoint"), reverse=True)
    return [states[kind](step) for step, kind in best if step < first]


def starting_step(store: Store, graph: Graph, wanted: Iterable[int]) -> int:
    """Newest published step from which all wanted steps can be reached; 0: there is none."""
    points = starting_points(_states(store, graph), graph, wanted)
    return points[0].step if points else 0


def _states(
    store: Store, graph: Graph, kinds: Iterable[str] = ("checkpoint", "resume")
) -> list[tuple[str, str]]:
    """Kind and key of what is published of the trajectory."""
    hashes = {node.kind: node.hash for node in (graph.checkpoint(0), graph.resume(0))}
    return [
        (each.kind, each.key) for kind in kinds for each in store.list(kind, f"{hashes[kind]}-")
    ]


def _step(key: str) -> int:
    return int(key.rpartition("-")[2])
