"""Nodes of the graph of stages: an artifact before it is built, and its key."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipelines.store.keys import Ref, content_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


VERSIONS = {
    "listing": 1,
    "latents": 1,
    "data": 1,
    "extractor": 1,
    "reference": 3,
    "checkpoint": 1,
    "resume": 1,
    "images": 1,
    "sample": 1,
    "features": 1,
    "evaluate": 3,
}
"""Kind -> version. Raise one when its builder starts to give other results for the same input, by
more than the rounding that another version of torch changes too."""
INCEPTION = "inception-v3-compat"
"""Name of the extractor that gives spatial features too."""
STAGES = {
    "listing": "data",
    "latents": "data",
    "data": "data",
    "extractor": "data",
    "reference": "data",
    "checkpoint": "train",
    "resume": "train",
    "images": "sample",
    "sample": "sample",
    "features": "evaluate",
    "evaluate": "evaluate",
}
"""Kind -> stage of the pipeline (data -> train -> sample -> evaluate)."""


@dataclass(frozen=True)
class Node:
    """Artifact before it is built: its configuration and inputs, which determine its key."""

    kind: str
    config: dict[str, Any]
    inputs: dict[str, Node] = field(default_factory=dict)
    at_step: int | None = None
    """Training step of a state of a training; the states of one training differ in nothing else."""

    @cached_property
    def ref(self) -> Ref:
        """Name of the artifact."""
        return Ref.of(self.kind, self.hash, self.at_step)

    @property
    def key(self) -> str:
        """Key of the artifact."""
        return self.ref.key

    @cached_property
    def hash(self) -> str:
        """Content hash; of a state of a training that of its trajectory."""
        return content_key(
            {
                "kind": self.kind,
                "version": VERSIONS[self.kind],
                "config": self.config,
                "inputs": {name: node.key for name, node in self.inputs.items()},
            }
        )

    @property
    def step(self) -> int:
        """Training step of a checkpoint or of a state to resume from."""
        return self.ref.step

    @property
    def trained(self) -> bool:
        """True if a training publishes it; a published checkpoint that is read is built alone."""
        return self.kind == "checkpoint" and "file_sha256" not in self.config

    @property
    def stage(self) -> str:
        """Stage of the pipeline that builds it."""
        return STAGES[self.kind]

    def __hash__(self) -> int:
        return hash(self.ref)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.ref == other.ref


def closure(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield nodes and everything that they are made from, inputs first, each once."""
    seen: set[Node] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node not in seen:
            seen.add(node)
            for source in node.inputs.values():
                yield from visit(source)
            yield node

    for node in nodes:
        yield from visit(node)


def key_part(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the fields of a configuration that enter a key: all but those marked `NOT_IN_KEY`."""
    found = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.metadata.get("key", True)
    }
    return {
        name: key_part(item) if dataclasses.is_dataclass(item) else item
        for name, item in found.items()
    }
