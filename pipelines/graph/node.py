"""Nodes of the graph of stages: one artifact to be, and the key that it has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipelines.store.keys import content_key

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
"""Extractor that gives spatial features too."""
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
    """One artifact to be: what it is made from, and therefore its name."""

    kind: str
    config: dict[str, Any]
    inputs: dict[str, Node] = field(default_factory=dict)
    suffix: str = ""
    """Appended to the hash; the checkpoints of one training differ in nothing else."""

    @cached_property
    def key(self) -> str:
        """Key of the artifact."""
        return self.hash + self.suffix

    @cached_property
    def hash(self) -> str:
        """Content hash; for states of a training that of the trajectory they lie on."""
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
        return int(self.suffix[1:])

    @property
    def trained(self) -> bool:
        """Whether a training publishes it; a published checkpoint that is read is built alone."""
        return self.kind == "checkpoint" and "file_sha256" not in self.config

    @property
    def stage(self) -> str:
        """Stage of the pipeline that builds it."""
        return STAGES[self.kind]

    def __hash__(self) -> int:
        return hash((self.kind, self.key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and (self.kind, self.key) == (other.kind, other.key)


def closure(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes and everything they are made from, inputs first, each once."""
    seen: set[Node] = set()

    def visit(node: Node) -> Iterator[Node]:
        if node not in seen:
            seen.add(node)
            for source in node.inputs.values():
                yield from visit(source)
            yield node

    for node in nodes:
        yield from visit(node)


ADDED = {
    "LossConfig": {"target_guidance"},
    "OptimConfig": {"optimizer", "momentum", "precision"},
    "SamplerConfig": {"precision"},
    "TrainConfig": {"from_checkpoint", "checkpoint_sha256"},
    "EvaluationConfig": {
        "reference_sha256",
        "reference_content",
        "reference_resolution",
        "report_seed",
    },
    "DataConfig": {
        "content",
        "codec",
        "codec_sha256",
        "channels",
        "side",
        "num_classes",
        "flip",
        "resolution",
        "shard_size",
    },
}
"""Fields that came after keys had been in use. At their default they stay out of a key, so that a
new option makes nothing unreachable that was computed before there was a choice."""
NEVER = {
    "DataConfig": {
        "path",
        "classes",
        "count",
        "codec_path",
        "encoder_sha256",
        "max_broken",
        "check_statistics",
    }
}
"""Fields that never enter a key: where something lies, and what follows from its content."""


def key_part(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """The fields of a configuration that enter a key."""
    name = type(value).__name__
    added, never = ADDED.get(name, set()), NEVER.get(name, set())
    found = (
        (field, getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name not in never
    )
    return {
        field.name: key_part(item) if dataclasses.is_dataclass(item) else item
        for field, item in found
        if field.name not in added or item != field.default
    }
