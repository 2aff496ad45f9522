"""What does not fit between the tensors of a file and those of an architecture."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Shapes = Mapping[str, tuple[int, ...]]


SHOWN = 20
"""Misfits that a message lists."""


def shape_misfits(found: Shapes, wanted: Shapes) -> list[str]:
    """Names that are missing, names that are left over, and shapes that differ."""
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys())]
    return problems + [
        f"{name} has shape {found[name]} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]


def listed(problems: Sequence[str]) -> str:
    """The first of them in one line, and how many more there are."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


class _NumpyType:
    """The pickled type of a NumPy number; stands for `numpy.dtype`, which can do more."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


def _numpy_number(kind: _NumpyType, data: object) -> int | float | bool:
    """A pickled NumPy number as a plain one; stands for `numpy.core.multiarray.scalar`."""
    found = np.dtype(kind.name)
    if kind.order == ">":
        found = found.newbyteorder(">")
    if found.kind not in "biuf" or not isinstance(data, bytes) or len(data) != found.itemsize:
        raise ValueError(f"a NumPy value must be one number, but is {found}")
    number: int | float | bool = np.frombuffer(data, found)[0].item()
    return number


ALLOWED_CLASSES: list[Any] = [
    argparse.Namespace,
    (_NumpyType, "numpy.dtype"),
    (_numpy_number, "numpy.core.multiarray.scalar"),
    (_numpy_number, "numpy._core.multiarray.scalar"),
]
"""All that a published pickle may hold besides tensors and plain containers: `args`, and numbers of
NumPy (a loss, a FID), which become plain ones."""


def read_file(path: Path) -> Any:  # noqa: ANN401
    """Tensors and plain values of a file; code in it is refused, not run.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped: of a file that holds model, average and optimizer only one part is read.
        with torch.serialization.safe_globals(ALLOWED_CLASSES):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors "
            f"and plain values ({_first_line(error)}); where it was written, save the weights "
            f"alone: torch.save({{'ema': checkpoint['ema']}}, FILE)"
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What torch says, without its advice to read the file unsafely."""
    lines = str(error).strip().splitlines() or [""]
    refused = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0])
    refused = refused.partition(". ")[0]
    return f"{type(error).__name__}: {refused.strip()[:200]}"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a weights file, safetensors or a torch checkpoint of tensors; runs nothing in it.

    Raises:
        ValueError: the file is neither, or holds more than tensors.
    """
    try:
        try:
            return load_file(path)
        except SafetensorError:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice is to run what the file holds
        raise ValueError(
            f"{path} is not a weights file: neither safetensors nor a torch "
            f"checkpoint of tensors alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a weights file: {error}") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{path} is not a weights file: it must hold tensors by name")
    return {name: value.contiguous() for name, value in tensors.items()}
