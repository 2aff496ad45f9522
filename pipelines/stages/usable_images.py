"""Usable images of a source: read ahead, decoded and cropped; the faulty ones are recorded."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ig_core.data.sources.rows import image_files
from ig_core.images.crop import Pixels, read_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ig_core.data.sources.listing import Listing
    from ig_core.images.crop import Mode

    Usable = tuple[int, int, Any]


CODEC_BATCH = 32
"""Images that a codec takes at once: a constant, so that latents do not depend on resources."""
READ_AHEAD_IMAGES = 8 * CODEC_BATCH
"""Images that are decoded while others are encoded."""
READ_AHEAD_BYTES = 2**28
"""Bytes of image files that are read ahead; above it fewer images are."""
DECODER_THREADS = 4
"""Threads that decode images."""


@dataclass
class ImageFaults:
    """Faults of the images that were read."""

    allowed: int
    """Largest number of faulty images."""
    broken: list[dict[str, str]] = field(default_factory=list)
    """Name and fault of each faulty image."""
    oriented: int = 0
    """Number of images with an EXIF orientation."""


def usable_images(
    listing: Listing,
    start: int,
    stop: int,
    size: int,
    faults: ImageFaults,
    mode: Mode = "RGB",
) -> Iterator[Usable]:
    """Read index, label and pixels of usable images, cropped; record faults in `faults`.

    Raises:
        ValueError: If more images are faulty than are allowed.
    """
    files = enumerate(image_files(listing, start, stop), start)

    def decode(item: Any) -> tuple[int, Any, Pixels]:  # noqa: ANN401
        index, (row, content) = item
        if isinstance(content, str):
            return index, row, Pixels(None, content)
        return index, row, read_pixels(content, size, mode)

    with ThreadPoolExecutor(DECODER_THREADS) as pool:
        waiting: deque[Any] = deque()
        held = 0  # bytes that wait to be decoded
        for item in files:
            length = len(item[1][1])
            waiting.append((pool.submit(decode, item), length))
            held += length
            while len(waiting) >= READ_AHEAD_IMAGES or (
                held > READ_AHEAD_BYTES and len(waiting) > 1
            ):
                done, length = waiting.popleft()
                yield from _usable(done.result(), faults)
                held -= length
        for done, _ in waiting:
            yield from _usable(done.result(), faults)


def _usable(decoded: tuple[int, Any, Pixels], faults: ImageFaults) -> Iterator[Usable]:
    index, row, (pixels, fault, is_oriented) = decoded
    faults.oriented += is_oriented
    if fault is not None:
        faults.broken.append({"name": row.name, "fault": fault})
        check_broken(faults.broken, faults.allowed)
    if pixels is not None:
        yield index, row.label, torch.from_numpy(pixels)


def check_broken(broken: list[dict[str, str]], allowed: int) -> None:
    """Raise ValueError if more images are faulty than `allowed`."""
    if len(broken) > allowed:
        named = "; ".join(f"{image['name']}: {image['fault']}" for image in broken[:3])
        raise ValueError(f"over data.max_broken={allowed} images are faulty, for example {named}")
