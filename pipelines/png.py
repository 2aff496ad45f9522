"""PNG files from tensors, by the standard library."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def encode_png(pixels: Tensor) -> bytes:
    """An 8-bit PNG.

    Args:
        pixels: uint8 (1, H, W) for gray, (3, H, W) for colour.
    """
    channels, height, width = pixels.shape
    if channels not in (1, 3):
        raise ValueError(f"pixels must have 1 or 3 channels, but got {channels}")
    rows = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    raw = b"".join(b"\0" + row.tobytes() for row in rows)  # each row is stored unfiltered
    kind = 0 if channels == 1 else 2
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(raw, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return b"".join(
        (
            struct.pack(">I", len(content)),
            name,
            content,
            struct.pack(">I", zlib.crc32(name + content)),
        )
    )
