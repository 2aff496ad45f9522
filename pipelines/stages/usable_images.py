"""Images of a source as they are used: read ahead, cropped, and judged."""

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


BATCH = 32
"""Images that a codec takes at once: a constant, so that latents do not depend on resources."""
READ_AHEAD = 8 * BATCH
"""Images that are decoded while others are encoded."""
READ_AHEAD_BYTES = 2**28
"""Bytes of their files, above which fewer of them wait."""
THREADS = 4
"""Threads that decode them."""


@dataclass
class Judged:
    """What was found out about images that were read."""

    most: int
    """Faulty ones that are borne."""
    broken: list[dict[str, str]] = field(default_factory=list)
    """Name and fault of each."""
    oriented: int = 0
    """How many have an EXIF orientation."""


def usable_images(
    listing: Listing,
    start: int,
    stop: int,
    size: int,
    judged: Judged,
    mode: Mode = "RGB",
) -> Iterator[Usable]:
    """Index, label and pixels of images that can be used, cropped; the others are named.

    Raises:
        ValueError: If more images are faulty than are allowed.
    """
    files = enumerate(image_files(listing, start, stop), start)

    def decode(item: Any) -> tuple[int, Any, Pixels]:  # noqa: ANN401
        index, (row, content) = item
        if isinstance(content, str):
            return index, row, Pixels(None, content)
        return index, row, read_pixels(content, size, mode)

    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Any] = deque()
        held = 0  # bytes that wait to be decoded
        for item in files:
            length = len(item[1][1])
            waiting.append((pool.submit(decode, item), length))
            held += length
            while len(waiting) >= READ_AHEAD or (held > READ_AHEAD_BYTES and len(waiting) > 1):
                done, length = waiting.popleft()
                yield from _judge(done.result(), judged)
                held -= length
        for done, _ in waiting:
            yield from _judge(done.result(), judged)


def _judge(found: tuple[int, Any, Pixels], judged: Judged) -> Iterator[Usable]:
    index, row, (pixels, fault, is_oriented) = found
    judged.oriented += is_oriented
    if fault is not None:
        judged.broken.append({"name": row.name, "fault": fault})
        check_broken(judged.broken, judged.most)
    if pixels is not None:
        yield index, row.label, torch.from_numpy(pixels)


def check_broken(broken: list[dict[str, str]], most: int) -> None:
    """Raise ValueError if there are more faulty images than are to be borne."""
    if len(broken) > most:
        named = "; ".join(f"{each['name']}: {each['fault']}" for each in broken[:3])
        raise ValueError(f"over data.max_broken={most} images are faulty, for example {named}")
