"""Listener of a pipeline: what it is told while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.graph.node import Node
    from pipelines.stages.jobs import TrainProgress


class Listener(Protocol):
    """Receives the progress of a pipeline; its methods are called from several threads."""

    def on_waiting(self, node: Node) -> None:
        """Another process builds the node."""

    def on_started(self, nodes: Sequence[Node]) -> None:
        """One task of this process builds the nodes; of a training its last checkpoint is named."""

    def on_training(self, progress: TrainProgress) -> None:
        """The training has made steps."""

    def on_finished(self, node: Node, done: int, total: int) -> None:
        """The artifact is published.

        Args:
            node: The artifact.
            done: Number of missing artifacts that are published by now.
            total: Number of artifacts that were missing.
        """


class NullListener:
    """A listener that ignores everything."""

    def on_waiting(self, node: Node) -> None:
        """Ignored."""

    def on_started(self, nodes: Sequence[Node]) -> None:
        """Ignored."""

    def on_training(self, progress: TrainProgress) -> None:
        """Ignored."""

    def on_finished(self, node: Node, done: int, total: int) -> None:
        """Ignored."""
