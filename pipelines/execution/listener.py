"""Listener to the progress of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.graph.node import Node
    from pipelines.stages.jobs import TrainProgress


class Listener(Protocol):
    """Receives the progress of a pipeline; its methods are called from several threads."""

    def on_waiting(self, node: Node) -> None:
        """Handle that another process builds the node."""

    def on_started(self, nodes: Sequence[Node]) -> None:
        """Handle that a task here builds the nodes; of a training the last checkpoint is passed."""

    def on_training(self, progress: TrainProgress) -> None:
        """Handle that the training has made steps."""

    def on_finished(self, node: Node, done: int, total: int) -> None:
        """Handle that the artifact is published.

        Args:
            node: The artifact.
            done: Number of missing artifacts that are published by now.
            total: Number of artifacts that were missing.
        """


class NullListener:
    """Listener that ignores everything."""

    def on_waiting(self, node: Node) -> None:
        """Ignore it."""

    def on_started(self, nodes: Sequence[Node]) -> None:
        """Ignore it."""

    def on_training(self, progress: TrainProgress) -> None:
        """Ignore it."""

    def on_finished(self, node: Node, done: int, total: int) -> None:
        """Ignore it."""
