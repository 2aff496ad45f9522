"""Read tensors from files, safely: safetensors, torch checkpoints; compare names and shapes."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Shapes = Mapping[str, tuple[int, ...]]
    """Name of a tensor -> its shape."""

MAX_SHOWN_PROBLEMS = 20
"""Problems that a message lists."""


class TensorHeader(NamedTuple):
    """Description of a tensor in the header of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: F32, BF16, I64, ..."""


@contextmanager
def open_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file, mapped: tensors that are not asked for take no memory.

    Args:
        path: The file.
        framework: Kind of the tensors: pt (torch, which has bfloat16) or numpy.

    Raises:
        ValueError: If the file, or what is asked of it inside `with`, cannot be read.
    """
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read: it is not a safetensors file, or damaged: {error}"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read names, shapes and types of the tensors in a safetensors file, in their order there.

    Raises:
        ValueError: If the file cannot be read.
    """
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        return {
            name: TensorHeader(tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def require_shapes(path: Path, found: Shapes, wanted: Shapes) -> None:
    """Raise ValueError unless a file holds tensors of these names and shapes, and no others."""
    problems = shape_mismatches(found, wanted)
    if problems:
        raise ValueError(f"{path} does not fit the model: {preview_problems(problems)}")


def shape_mismatches(found: Shapes, wanted: Shapes) -> list[str]:
    """List missing names, unexpected names and shapes that differ, in the order of the names."""
    problems = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            problems.append(f"missing {name}")
        elif name not in wanted:
            problems.append(f"unexpected {name}")
        elif tuple(found[name]) != tuple(wanted[name]):
            problems.append(
                f"{name} has shape {tuple(found[name])} instead of {tuple(wanted[name])}"
            )
    return problems


def preview_problems(problems: Sequence[str]) -> str:
    """Join the first problems in one line, and count the others."""
    rest = len(problems) - MAX_SHOWN_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    return "; ".join(problems[:MAX_SHOWN_PROBLEMS]) + more


class _NumpyType:
    """The pickled type of a NumPy number; stands for `numpy.dtype`, which can do more."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


def _numpy_number(kind: _NumpyType, data: object) -> int | float | bool:
    """Read a pickled NumPy number as a plain one; stands for `numpy.core.multiarray.scalar`."""
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
"""Classes that a published pickle may hold besides tensors and plain containers: `args`, and
numbers of NumPy (a loss, a FID), which become plain ones."""


def read_file(path: Path) -> Any:  # noqa: ANN401
    """Read tensors and plain values of a file; code in it is refused, not run.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
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


def _is_safetensors(path: Path) -> bool:
    """Check whether a file begins as safetensors: the length of a header, and its brace."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _first_line(error: Exception) -> str:
    """Return torch's message without its advice to read the file unsafely."""
    lines = str(error).strip().splitlines() or [""]
    refused = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0])
    refused = refused.partition(". ")[0]
    return f"{type(error).__name__}: {refused.strip()[:200]}"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a weights file, safetensors or a torch checkpoint of tensors; runs nothing in it.

    Raises:
        ValueError: If the file is neither, or holds more than tensors.
    """
    try:
        tensors = read_file(Path(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a weights file: neither safetensors nor a torch checkpoint of tensors "
            f"alone ({error})"
        ) from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f"{path} is not a weights file: it must hold tensors by name")
    return {name: value.contiguous() for name, value in tensors.items()}
