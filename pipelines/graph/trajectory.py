"""Trajectory of a training: its published states, and those from which it can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.store.base import Store
    from pipelines.store.keys import Ref


def published_steps(store: Store, graph: Graph) -> list[int]:
    """Return the steps of the trajectory that have a checkpoint, ascending.

    They may come from runs of another length or with other checkpoint steps.
    """
    return sorted(ref.step for ref in published_states(store, graph, ("checkpoint",)))


def resume_steps(store: Store, graph: Graph) -> list[int]:
    """Return the steps of the trajectory that have a state to resume from, ascending."""
    return sorted(ref.step for ref in published_states(store, graph, ("resume",)))


def starting_points(published: Iterable[Ref], graph: Graph, wanted: Iterable[int]) -> list[Node]:
    """Return the states from which all wanted steps can be reached, the newest first.

    Of a checkpoint and a state to resume from at one step the checkpoint comes first.

    Args:
        published: Names of published artifacts, of any kind and training.
        graph: Graph of the training.
        wanted: Steps to reach; those that have a checkpoint are not trained again.
    """
    states = {"checkpoint": graph.checkpoint, "resume": graph.resume}
    hashes = {kind: state(0).hash for kind, state in states.items()}
    wanted = list(wanted)
    found = [ref for ref in published if hashes.get(ref.kind) == ref.hash]
    # Workers that are replaced still want what those before them have published.
    there = {ref.step for ref in found if ref.kind == "checkpoint"}
    first = min((step for step in wanted if step not in there), default=max(wanted))
    best = sorted(found, key=lambda ref: (ref.step, ref.kind == "checkpoint"), reverse=True)
    return [states[ref.kind](ref.step) for ref in best if ref.step < first]


def starting_step(store: Store, graph: Graph, wanted: Iterable[int]) -> int:
    """Return the newest published step from which all wanted steps can be reached; else 0."""
    points = starting_points(published_states(store, graph), graph, wanted)
    return points[0].step if points else 0


def published_states(
    store: Store, graph: Graph, kinds: Iterable[str] = ("checkpoint", "resume")
) -> list[Ref]:
    """List the published states of the trajectory."""
    hashes = {node.kind: node.hash for node in (graph.checkpoint(0), graph.resume(0))}
    return [each.ref for kind in kinds for each in store.list(kind, f"{hashes[kind]}-")]
