"""Checkpoint formats: the own one, the published ones, and sharded states."""

from ig_core.checkpoints.official import load_official, save_official
from ig_core.checkpoints.own import (
    load_checkpoint,
    load_ema,
    load_history,
    pack_checkpoint,
    save_checkpoint,
    save_weights,
)

__all__ = [
    "load_checkpoint",
    "load_ema",
    "load_history",
    "load_official",
    "pack_checkpoint",
    "save_checkpoint",
    "save_official",
    "save_weights",
]
