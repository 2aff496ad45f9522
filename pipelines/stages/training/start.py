"""From which published state a training starts, so that all of its workers agree on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipelines.common.errors import MissingArtifactError
from pipelines.graph.trajectory import _states, starting_points
from pipelines.store.base import Artifact
from pipelines.store.errors import CorruptArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.store.base import Store


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
        CorruptArtifactError: On all workers alike, if one of them finds the artifact damaged.
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
        CorruptArtifactError: On all workers alike, if one of them finds a checkpoint damaged.
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
            store.quarantine(node.ref)


Look = Artifact | CorruptArtifactError | MissingArtifactError


def _look(store: Store, node: Node) -> Look:
    """The artifact, or what is wrong with it: to be raised when all workers know of it."""
    try:
        return store.open(node.ref)
    except (CorruptArtifactError, MissingArtifactError) as error:
        return error


def _damage(store: Store, node: Node, mine: Look) -> Exception:
    if isinstance(mine, Exception):
        return mine
    where = store.address(node.ref)
    return CorruptArtifactError(node.ref, where, "another worker cannot use it")
