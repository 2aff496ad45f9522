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
    """A file whose tensors are copied one at a time.

    It is mapped anew for each of them: else all that was looked at would count as this process's
    memory until the end.
    """

    def __init__(self, path: Path, shapes: Mapping[str, torch.Size]) -> None:
        """Read the header.

        Raises:
            ValueError: it cannot be read, or the file holds other tensors than these.
        """
        self.path = path
        with self._mapped() as file:
            found = {
                name: torch.Size(file.get_slice(name).get_shape()) for name in file.offset_keys()
            }
        if found != shapes:
            wrong = sorted(dict(found.items() ^ shapes.items()))
            raise ValueError(f"{path} does not fit the model: {', '.join(wrong)}")

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        with self._mapped() as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, rank: int, world_size: int) -> None:
        """Copy a tensor into one that has memory; of one in parts only the rows of this worker."""
        mine = local(target)
        if not mine.numel():
            return
        with self._mapped() as file:
            if mine.shape == target.shape:
                mine.copy_(file.get_tensor(name))
            else:
                # Rows are dealt as by torch.chunk: as many to each, fewer to the last ones.
                start = rank * -(-target.shape[0] // world_size)
                mine.copy_(file.get_slice(name)[start : start + mine.shape[0]])

    @contextmanager
    def _mapped(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from error
