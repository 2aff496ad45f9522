"""`igdit inspect`: describe a checkpoint, a codec or latents, and list their problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.parse import HELP
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console, print_facts

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.inspection.inspection import Inspection

INSPECT_HELP = """\
usage: igdit inspect PATH

Describe what is at PATH - a checkpoint (SiT, LightningDiT, REPA), a codec (SD-VAE, VA-VAE) or a
folder of latents - and list its problems. The exit code is 1 if there are problems.
"""
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def inspect_command(arguments: list[str]) -> int:
    """Run `igdit inspect`."""
    if set(HELP) & set(arguments):
        log(make_console(), INSPECT_HELP.rstrip())
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError(
            "igdit inspect needs one path: a checkpoint, a codec, or a folder of latents"
        )
    return print_inspection(inspect(Path(arguments[0])), make_console())


def inspect(path: Path) -> Inspection:
    """Describe a checkpoint, a codec or latents.

    Raises:
        ValueError: If the path does not exist, or its format is unknown.
    """
    if not path.exists():
        raise ValueError(
            f"inspect needs a checkpoint, a codec or a folder of latents, but {path} does not exist"
        )
    if path.is_dir():
        return _inspect_folder(path)
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise ValueError(
            f"inspect takes a folder or a file ending in {', '.join(CHECKPOINT_SUFFIXES)}"
            f", but got {path}"
        )
    from pipelines.inspection.checkpoint import inspect_checkpoint_file
    from pipelines.inspection.codec import inspect_other_file

    return inspect_other_file(path) or inspect_checkpoint_file(path)


def print_inspection(inspection: Inspection, console: Console) -> int:
    """Print the facts, notes and problems; returns the exit code: 1 if there are problems."""
    print_facts(inspection.facts, console)
    for note in inspection.notes:
        log(console, f"Note: {note}.")
    for problem in inspection.problems:
        log(console, f"Problem: {problem}.")
    if not inspection.problems:
        log(console, "No problem was found.")
    return 1 if inspection.problems else 0


def _inspect_folder(path: Path) -> Inspection:
    from ig_core.checkpoints.own import HEADER_FILE
    from ig_core.data.inspection import inspect_latents
    from pipelines.inspection.checkpoint import inspect_own_checkpoint
    from pipelines.inspection.codec import inspect_codec_folder, is_codec_folder
    from pipelines.inspection.latents import describe_cache, inspect_stored_latents, is_in_store

    if (path / HEADER_FILE).is_file():
        return inspect_own_checkpoint(path)
    if is_in_store(path):
        return inspect_stored_latents(path)
    if is_codec_folder(path):
        return inspect_codec_folder(path)
    return describe_cache(inspect_latents(path))
