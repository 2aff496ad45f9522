"""`igdit inspect`: what a checkpoint, a codec or latents are, and what would go wrong with them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from experiments import EXPERIMENTS, get_experiment
from ig_core.config import MODELS
from pipelines.common.remedies import FIELDS, option
from pipelines.console.console import log, print_facts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

    from ig_core.checkpoints.inspection import CheckpointFacts

CHECKPOINT_FILES = (".pt", ".pth", ".ckpt", ".safetensors")


def inspect(path: Path, console: Console) -> int:
    """Print what is at a path; returns the exit code: 1 if something would go wrong.

    Raises:
        ValueError: there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise ValueError(
            f"inspect needs a checkpoint, a codec or a folder of latents, but {path} does not exist"
        )
    if path.is_dir():
        found = _folder(path)
    elif path.suffix in CHECKPOINT_FILES:
        found = _checkpoint(path)
    else:
        raise ValueError(
            f"inspect takes a folder or a file ending in {', '.join(CHECKPOINT_FILES)}"
            f", but got {path}"
        )
    facts, notes, problems = found
    print_facts(facts, console)
    _list(console, "To know", notes)
    _list(console, "Would go wrong", problems)
    if not problems:
        log(console, "Nothing was found that would go wrong.")
    return 1 if problems else 0


def _list(console: Console, title: str, lines: Iterable[str]) -> None:
    for line in lines:
        log(console, f"{title}: {line}.")


def _folder(path: Path) -> tuple[dict[str, str], list[str], list[str]]:
    from ig_core.checkpoints.own import HEADER_FILE
    from ig_core.data.inspection import inspect_latents
    from pipelines.inspection.codec import inspect_codec_folder, is_codec_folder
    from pipelines.inspection.latents import inspect_shards, inspected_cache, is_in_store

    if (path / HEADER_FILE).is_file():
        return _own_checkpoint(path)
    if is_in_store(path):
        return inspect_shards(path)
    if is_codec_folder(path):
        return inspect_codec_folder(path)
    facts = inspect_latents(path)
    return inspected_cache(facts)


def _checkpoint(path: Path) -> tuple[dict[str, str], list[str], list[str]]:
    from ig_core.checkpoints.inspection import inspect_checkpoint
    from pipelines.inspection.codec import inspect_other_file

    other = inspect_other_file(path)
    if other is not None:
        return other
    facts = inspect_checkpoint(path)
    lines = {
        "checkpoint": f"{facts.name}{' with' if facts.has_head else ' without'} auxiliary head",
        "parameters": f"{facts.parameters:,}",
        "weights": facts.weights,
        "time": "t = 1 is data in the file, turned round when it is read"
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
    use = _use(facts, path)
    if use and not facts.problems:
        lines["use it"] = use
    assumed = [f"{note} ({option(FIELDS[name])})" for name, note in facts.assumed.items()]
    return lines, [*assumed, *facts.notes], list(facts.problems)


def _use(facts: CheckpointFacts, path: Path) -> str | None:
    """The command that samples it: an experiment whose model it fits."""
    for name in EXPERIMENTS:
        model = get_experiment(name).model
        if facts.config == model:
            return f"igdit run {name} --train.from-checkpoint {shlex.quote(str(path))}"
    if facts.preset in MODELS:
        layer = "" if facts.has_head else ", aux_layer=None"
        return f'load_official({str(path)!r}, model_config("{facts.preset}"{layer}))'
    return None


def _own_checkpoint(path: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """One of the store's, or what `save_checkpoint` wrote."""
    from ig_core.checkpoints.own import MODEL_FILE, TRAINING_FILES, load_ema, read_header
    from ig_core.config import ModelConfig

    model = load_ema(path)  # every tensor is compared with the architecture
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
    notes = [] if files >= TRAINING_FILES else ["it can be sampled, not trained further"]
    return lines, notes, []
