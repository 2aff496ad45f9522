"""Which fields of a configuration enter a key."""

from __future__ import annotations

import dataclasses
from typing import Any

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
