"""Sets of uint8 images as Parquet files, and as tensors for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class ImageSet:
    """Images with their indices and labels."""

    index: Tensor
    """(N,) int64"""
    label: Tensor
    """(N,) int64"""
    image: Tensor
    """(N, C, H, W) uint8"""

    @classmethod
    def cat(cls, parts: Iterable[ImageSet]) -> ImageSet:
        """Concatenate sets."""
        columns = zip(*((p.index, p.label, p.image) for p in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


def to_uint8(x: Tensor) -> Tensor:
    """Map pixels in [-1, 1] to 0..255, rounded to nearest and clamped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """Map pixels 0..255 to float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def write_images(path: Path, images: ImageSet) -> None:
    """Write one Parquet file: columns index, label, image (raw bytes); shape in the metadata."""
    count, *shape = images.image.shape
    raw = images.image.contiguous().numpy().reshape(count, -1)
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(raw.shape[1]), count, [None, pa.py_buffer(raw.tobytes())]
    )
    table = pa.table(
        {
            "index": images.index.numpy(),
            "label": images.label.numpy(),
            "image": pixels,
        }
    ).replace_schema_metadata({"shape": ",".join(map(str, shape))})
    pq.write_table(table, path)


def read_images(paths: Iterable[Path]) -> ImageSet:
    """Read files that `write_images` wrote, one after another.

    Raises:
        ValueError: If a file was not written by `write_images`.
    """
    return ImageSet.cat(_read_one(path) for path in paths)


def _read_one(path: Path) -> ImageSet:
    try:
        table = pq.read_table(path)
        shape = tuple(map(int, table.schema.metadata[b"shape"].decode().split(",")))
        column = table["image"].combine_chunks()
        raw = b"".join(value.as_py() for value in column)
        image = np.frombuffer(bytearray(raw), dtype=np.uint8).reshape(len(column), *shape)
        index, label = (
            torch.from_numpy(table[name].to_numpy().copy()) for name in ("index", "label")
        )
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an image set: {error}") from error
    return ImageSet(index, label, torch.from_numpy(image))


class ImageDataset:
    """Images in memory as training data in [-1, 1] (the `Dataset` of `ig_core.training.loop`)."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.label)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 (B, C, H, W) and labels (B,) of the rows `index` (B,)."""
        return from_uint8(self.images.image[index]), self.images.label[index]


def contact_sheet(images: Tensor, columns: int, zoom: int = 1, gap: int = 255) -> Tensor:
    """Lay images (N, C, H, W) out in rows, one pixel of value `gap` apart.

    Returns:
        uint8 (C, height, width), each pixel repeated `zoom` times; what the last row lacks is gap.
    """
    rows = -(-len(images) // columns)
    channels, height, width = images.shape[1:]
    sheet = images.new_full((rows * columns, channels, height + 1, width + 1), gap)
    sheet[: len(images), :, :height, :width] = images
    sheet = sheet.view(rows, columns, channels, height + 1, width + 1)
    flat = sheet.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + 1), -1)
    return flat.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
