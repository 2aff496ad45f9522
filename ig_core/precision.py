"""Autocast by the names of `ig_core.config.Precision`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ig_core.config import Precision

_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context in which the matrix products of the blocks run in the precision.

    What stays float32 is the model's business (`ig_core.layers`), the same on CPU and GPU.
    """
    dtype = _DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Make the loss scaler of fp16; for the other precisions one that does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def set_tf32(*, enabled: bool) -> None:
    """Let float32 matrix products and convolutions on a GPU round their inputs to TF32, or not.

    19 bits instead of 32: a relative 1e-3 a factor, at several times the speed. Process-wide; what
    runs on a CPU does not change.
    """
    torch.backends.cuda.matmul.allow_tf32 = enabled
    torch.backends.cudnn.allow_tf32 = enabled
