"""Choose the published state from which a training starts, the same on all of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipelines.common.errors import MissingArtifactError
from pipelines.graph.trajectory import published_states, starting_points
from pipelines.store.base import Artifact
from pipelines.store.errors import CorruptArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipelines.graph.graph import Graph
    from pipelines.graph.node import Node
    from pipelines.store.base import Store


class Team(NamedTuple):
    """Workers of a training; with more than one their process group is up."""

    rank: int
    size: int
    device: str

    def broadcast(self, numbers: Sequence[int]) -> list[int]:
        """Return the first worker's numbers on every worker; all of them pass as many."""
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
    """Open and verify the training images on every worker.

    Raises:
        CorruptArtifactError: On all workers alike, if one of them finds the artifact damaged.
    """
    opened = _try_open(store, graph.data)
    if team.agree(good=isinstance(opened, Artifact)) and isinstance(opened, Artifact):
        return opened
    raise _error(store, graph.data, opened)


def open_start(store: Store, graph: Graph, wanted: Iterable[int], team: Team) -> Artifact | None:
    """Open and verify the state to start from on every worker; None for a new one.

    The first worker chooses: workers might see different states while those of a driver that was
    killed are still publishing. A damaged state that is not a checkpoint is quarantined, and the
    next older one is taken; nothing depends on it that would have to be built again.

    Raises:
        CorruptArtifactError: On all workers alike, if one of them finds a checkpoint damaged.
    """
    first = team.rank == 0
    points = starting_points(published_states(store, graph), graph, wanted) if first else []
    while True:
        point = points.pop(0) if points else None
        choice = [0, 0] if point is None else [point.step, int(point.kind == "checkpoint")]
        step, is_checkpoint = team.broadcast(choice)
        if not step:
            return None
        node = graph.checkpoint(step) if is_checkpoint else graph.resume(step)
        opened = _try_open(store, node)
        if team.agree(good=isinstance(opened, Artifact)) and isinstance(opened, Artifact):
            return opened
        if is_checkpoint:
            raise _error(store, node, opened)
        # A state that only another machine finds damaged may be good: it stays.
        if first and isinstance(opened, CorruptArtifactError):
            store.quarantine(node.ref)


Opened = Artifact | CorruptArtifactError | MissingArtifactError


def _try_open(store: Store, node: Node) -> Opened:
    """Open an artifact, or return the error, which is raised when all workers know of it."""
    try:
        return store.open(node.ref)
    except (CorruptArtifactError, MissingArtifactError) as error:
        return error


def _error(store: Store, node: Node, opened: Opened) -> Exception:
    """Return this worker's error, or that of another worker."""
    if isinstance(opened, Exception):
        return opened
    where = store.address(node.ref)
    return CorruptArtifactError(node.ref, where, "another worker cannot use it")
