"""Inspection of checkpoints: those in published formats, and igdit's own."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS, get_experiment
from ig_core.config import MODELS
from pipelines.common.remedies import FIELDS, option
from pipelines.inspection.inspection import Inspection

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.checkpoints.inspection import CheckpointFacts


def inspect_checkpoint_file(path: Path) -> Inspection:
    """Describe a checkpoint in a published format (SiT, LightningDiT, REPA).

    Raises:
        ValueError: If the file cannot be read, or holds no diffusion transformer.
    """
    from ig_core.checkpoints.inspection import inspect_checkpoint

    facts = inspect_checkpoint(path)
    lines = {
        "checkpoint": f"{facts.name}{' with' if facts.has_head else ' without'} auxiliary head",
        "parameters": f"{facts.parameters:,}",
        "weights": facts.weights,
        "time": "t = 1 is data; reversed when a run reads it"
        if facts.time_reversed
        else "t = 1 is noise, as here",
        "holds": ", ".join(facts.holds) or "tensors alone",
    }
    if facts.length:
        lines["trained"] = ", ".join(f"{name} {value:,}" for name, value in facts.length.items())
    if facts.config is not None:
        config = facts.config
        lines["architecture"] = (
            f"depth {config.depth}, width {config.width}, heads {config.num_heads}, patch "
            f"{config.patch_size}, latents {config.in_channels} x {config.input_size} x "
            f"{config.input_size}, {config.num_classes} classes"
        )
    usage = _usage(facts, path)
    if usage and not facts.problems:
        lines["use it"] = usage
    assumed = [f"{note} ({option(FIELDS[name])})" for name, note in facts.assumed.items()]
    return Inspection(lines, [*assumed, *facts.notes], list(facts.problems))


def _usage(facts: CheckpointFacts, path: Path) -> str | None:
    """Return the command or the Python call that reads a checkpoint; None if none does."""
    for name in EXPERIMENTS:
        model = get_experiment(name).model
        if facts.config == model:
            return f"igdit run {name} --train.from-checkpoint {shlex.quote(str(path))}"
    if facts.preset in MODELS:
        layer = "" if facts.has_head else ", aux_layer=None"
        return f'load_official({str(path)!r}, model_config("{facts.preset}"{layer}))'
    return None


def inspect_own_checkpoint(path: Path) -> Inspection:
    """Describe a checkpoint in the store, or one that `save_checkpoint` wrote.

    Raises:
        ValueError: If a tensor is missing or does not match the architecture.
    """
    from ig_core.checkpoints.own import MODEL_FILE, TRAINING_FILES, load_ema, read_header
    from ig_core.config import ModelConfig

    model = load_ema(path)
    config: ModelConfig = model.config
    header = read_header(path)
    source, files = header.get("imported"), {file.name for file in path.iterdir()}
    lines = {
        "checkpoint": f"igdit's own, {config.backbone} {config.depth} x {config.width} / "
        f"{config.patch_size}, auxiliary head "
        + ("none" if config.aux_layer is None else f"after block {config.aux_layer}"),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "weights": "averaged (ema)" + (", as trained (model)" if MODEL_FILE in files else ""),
        "time": "t = 1 is noise",
        "trained": f"step {header['step']:,}"
        if source is None
        else f"elsewhere: {source['file']} (SHA-256 {source['sha256']})",
    }
    notes = [] if files >= TRAINING_FILES else ["it can be sampled, but not trained further"]
    return Inspection(lines, notes, [])
