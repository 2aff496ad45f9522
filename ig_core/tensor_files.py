"""Safetensors files that are mapped, not read: what is not asked for takes no memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from ig_core.sharding import local

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor


class TensorFile:
    """An open file, whose tensors are copied one at a time."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401
        self._file = file

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes by name; reads the header only."""
        return {name: torch.Size(self._file.get_slice(name).get_shape())
                for name in self._file.keys()}  # fmt: skip

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        return self._file.get_tensor(name).clone()

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, rank: int, world_size: int) -> None:
        """Copy a tensor into one that has memory; of one in parts only the rows of this worker."""
        mine = local(target)
        if mine.shape == target.shape:
            mine.copy_(self._file.get_tensor(name))
        elif mine.numel():
            # Rows are dealt as by torch.chunk: as many to each, fewer to the last ones.
            start = rank * -(-target.shape[0] // world_size)
            mine.copy_(self._file.get_slice(name)[start : start + mine.shape[0]])


@contextmanager
def tensor_file(path: Path, shapes: Mapping[str, torch.Size]) -> Iterator[TensorFile]:
    """A file that holds exactly these tensors.

    Raises:
        ValueError: it cannot be read, or holds others.
    """
    try:
        with safe_open(path, framework="pt") as file:
            opened = TensorFile(file)
            if (found := opened.shapes()) != shapes:
                wrong = sorted(dict(found.items() ^ shapes.items()))
                raise ValueError(f"{path} does not fit the model: {', '.join(wrong)}")
            yield opened
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
