"""Parts of a sharded tensor: local, and gathered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Check whether `shard` has sharded the parameters."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all workers at once; return others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this worker's part of a sharded tensor, the same memory; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
