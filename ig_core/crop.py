"""Encoded images to training pixels: decoded, judged, cropped to the centre as ADM does."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


class Pixels(NamedTuple):
    """A training image."""

    image: NDArray[np.uint8] | None
    """(3, size, size); None: it cannot be used."""
    fault: str | None
    """What is wrong with it; an image that has pixels all the same was converted."""


def read_pixels(data: bytes, size: int) -> Pixels:
    """Decode an image file and crop it to `size` x `size`.

    Grey images, palettes and transparent ones become RGB as Pillow does it, which is what published
    models were trained on. So do CMYK images, but that is said, since their colours are a guess.
    Images of more than 8 bits are not used: Pillow would clip them.

    Args:
        data: The file.
        size: Side in pixels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            deep = mode[0] in "IF" or any("16" in str(tile[3]) for tile in image.tile)
            if deep:
                return Pixels(None, f"more than 8 bits a channel (mode {mode})")
            image.load()
            pixels = center_crop(image.convert("RGB"), size)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <_io")[0]  # Pillow adds the address of the buffer
        return Pixels(None, f"cannot be decoded: {reason}")
    return Pixels(pixels, "is CMYK, converted to RGB" if mode == "CMYK" else None)


def center_crop(image: Image, size: int) -> NDArray[np.uint8]:
    """The middle of an image as ADM crops it (Dhariwal and Nichol 2021, image_datasets).

    Halved by boxes of 2x2 pixels as long as the shorter side is at least twice `size`, resized by
    bicubic interpolation until it is `size`, then cropped.

    Returns:
        uint8 (3, size, size).
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    cropped = pixels[top : top + size, left : left + size]
    return np.ascontiguousarray(cropped.transpose(2, 0, 1))
