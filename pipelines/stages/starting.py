"""From which published state a training starts, so that all of its workers agree on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipelines.artifacts import Artifact
from pipelines.errors import CorruptArtifactError, MissingArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipelines.artifacts import Store
    from pipelines.graph import Graph, Node


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


class Team(NamedTuple):
    """The workers of a training; with more than one their process group is up."""

    rank: int
    size: int
    device: str

    def broadcast(self, numbers: Sequence[int]) -> list[int]:
        """Return the first worker's numbers on every worker; all pass as many."""
        import torch
        from torch import distributed

        message = torch.tensor(numbers, device=self.device)
        if self.size > 1:
            distributed.broadcast(message, src=0)
        return [int(number) for number in message]

    def agree(self, *, good: bool) -> bool:
        """Return whether all workers pass True; every worker waits for all of them."""
        import torch
        from torch import distributed

        votes = torch.tensor([int(good)], device=self.device)
        if self.size > 1:
            distributed.all_reduce(votes, op=distributed.ReduceOp.MIN)
        return bool(votes.item())


def open_data(store: Store, graph: Graph, team: Team) -> Artifact:
    """The training images, checked by every worker.

    Raises:
        CorruptArtifactError: on all workers alike, if one of them finds it damaged.
    """
    mine = _look(store, graph.data)
    if team.agree(good=isinstance(mine, Artifact)) and isinstance(mine, Artifact):
        return mine
    raise _damage(store, graph.data, mine)


def open_start(store: Store, graph: Graph, wanted: Iterable[int], team: Team) -> Artifact | None:
    """The state to start from, checked by every worker; None: a new one.

    The first worker chooses: what each of them sees might differ, while workers of a driver that
    was killed are still publishing. A damaged state that is no checkpoint is set aside, and the
    next older one is taken; nothing else would be made of it if it were built again.

    Raises:
        CorruptArtifactError: on all workers alike, if one of them finds a checkpoint damaged.
    """
    first = team.rank == 0
    points = starting_points(_states(store, graph), graph, wanted) if first else []
    while True:
        point = points.pop(0) if points else None
        choice = [0, 0] if point is None else [point.step, int(point.kind == "checkpoint")]
        step, is_checkpoint = team.broadcast(choice)
        if not step:
            return None
        node = graph.checkpoint(step) if is_checkpoint else graph.resume(step)
        mine = _look(store, node)
        if team.agree(good=isinstance(mine, Artifact)) and isinstance(mine, Artifact):
            return mine
        if is_checkpoint:
            raise _damage(store, node, mine)
        # What is bad on another machine only may be good: it is left where it is.
        if first and isinstance(mine, CorruptArtifactError):
            store.quarantine(node.kind, node.key)


Look = Artifact | CorruptArtifactError | MissingArtifactError


def _look(store: Store, node: Node) -> Look:
    """The artifact, or what is wrong with it: to be raised when all workers know of it."""
    try:
        return store.open(node.kind, node.key)
    except (CorruptArtifactError, MissingArtifactError) as error:
        return error


def _damage(store: Store, node: Node, mine: Look) -> Exception:
    if isinstance(mine, Exception):
        return mine
    where = store.address(node.kind, node.key)
    return CorruptArtifactError(node.kind, node.key, where, "another worker cannot use it")
