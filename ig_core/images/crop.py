"""Encoded images to training pixels: decoded, judged, cropped to the centre as ADM does."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ig_core.files.extras import extra

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Mode = Literal["RGB", "L"]
"""Channels of the pixels: colours, or grey."""
MAX_ASPECT_RATIO = 100
"""Largest ratio of an image's sides: ADM resizes all of it before it crops."""

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "PPM",
    "GIF",
    "TIFF",
    "AVIF",
    "HEIF",
    "JPEG2000",
    "JXL",
    "TGA",
    "DDS",
    "PSD",
)
"""Formats that are decoded, by Pillow's names. Content tells a format, not the file's name: a
PostScript file called `.png` would start Ghostscript."""
ORIENTATION_TAG = 0x0112
"""EXIF tag of an image's orientation; 1 is upright."""
MAX_PIXELS = 2**27
"""Pixels of the largest image that is decoded (0.4 GB): a file of kilobytes may declare more than
fits into any memory."""


class Pixels(NamedTuple):
    """A training image."""

    image: NDArray[np.uint8] | None
    """(3, size, size), grey (1, size, size); None: it cannot be used."""
    fault: str | None
    """Fault of the image; one that has pixels all the same was converted."""
    oriented: bool = False
    """Viewers would turn it, by its EXIF data; the pixels are as they are stored."""


def read_pixels(data: bytes, size: int, mode: Mode = "RGB") -> Pixels:
    """Decode an image file and crop it to `size` x `size`.

    Grey images, palettes and transparent ones become RGB as Pillow does it, which is what published
    models were trained on. So do CMYK images, but that is said, since their colours are a guess.
    An EXIF orientation is not applied, as ADM's and torchvision's loaders do not either (Pillow
    applies that of a TIFF, which is part of the image).

    Images of more than 8 bits are not used: Pillow would clip them. Nor are those that are over 100
    times as long as wide, or have over 134 million pixels.

    Args:
        data: The file.
        size: Side in pixels.
        mode: What they become.

    Raises:
        MemoryError: If the machine lacks memory, which is not a fault of the image.
    """
    with extra("imagenet"):
        from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            stored = image.mode
            if _is_deep(image):
                return Pixels(None, f"more than 8 bits a channel (mode {stored})")
            if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
                return Pixels(
                    None,
                    f"is {image.width} x {image.height}: over {MAX_ASPECT_RATIO} times as long "
                    f"as wide",
                )
            if image.width * image.height > MAX_PIXELS:
                return Pixels(
                    None, f"is {image.width} x {image.height}: over {MAX_PIXELS:,} pixels"
                )
            image.load()
            oriented = _is_oriented(image)
            pixels = center_crop(image.convert(mode), size)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file makes a decoder raise anything
        reason = str(error).partition(" <_io")[0]  # Pillow adds the address of the buffer
        return Pixels(None, f"cannot be decoded: {reason or type(error).__name__}")
    fault = f"is CMYK, converted to {mode}" if stored == "CMYK" else None
    return Pixels(pixels, fault, oriented)


@functools.cache
def _formats() -> tuple[str, ...]:
    """List the members of `FORMATS` that the installed Pillow can read."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_oriented(image: ImageFile) -> bool:
    """Check whether EXIF data ask viewers to turn or mirror a loaded image."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1) in range(2, 9)
    except Exception:  # noqa: BLE001 - whatever is wrong with them, the pixels are not
        return False


def _is_deep(image: ImageFile) -> bool:
    """Check an image that is opened, not loaded, for more than 8 bits a channel."""
    if image.mode[0] in "IF":
        return True
    for codec, _, _, settings in image.tile:
        raw, *more = settings if isinstance(settings, tuple) else (settings,)
        if codec in ("ppm", "ppm_plain"):
            if more and more[0] > 255:  # the largest value
                return True
        elif isinstance(raw, str) and ";16" in raw and raw != "BGR;16":  # that is 16 bits a pixel
            return True
    return False


def center_crop(image: Image, size: int) -> NDArray[np.uint8]:
    """Crop the middle of an image as ADM does (Dhariwal and Nichol 2021, image_datasets).

    Halved by boxes of 2x2 pixels as long as the shorter side is at least twice `size`, resized by
    bicubic interpolation until it is `size`, then cropped.

    Returns:
        uint8 (3, size, size), of a grey image (1, size, size).
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.atleast_3d(np.asarray(image.resize((width, height), Resampling.BICUBIC)))
    top, left = (height - size) // 2, (width - size) // 2
    cropped = pixels[top : top + size, left : left + size]
    return np.array(cropped.transpose(2, 0, 1), order="C")
