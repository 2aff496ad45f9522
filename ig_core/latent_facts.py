"""What a cache of latents is, as `igdit inspect` prints it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ig_core.codec_files import SD_SCALE, SHAPES
from ig_core.latent_checks import overall

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from ig_core.latents import ChannelSums

LOOKED_AT = 64
"""Latents whose values are read: spread over the cache."""
NAMES = {"sd-vae": "SD-VAE f8 (4 channels)", "va-vae": "VA-VAE f16 (32 channels)"}
"""Codec -> what it is called."""
SCALES = {
    "sd-vae": f"unscaled: to be multiplied by {SD_SCALE}",
    "va-vae": "unnormalised: mean and spread of each channel are to be taken out",
}
"""Codec -> what is still to be done to its latents before a model learns them."""


@dataclass
class CacheFacts:
    """What a cache of latents is."""

    format: str
    codec: str
    scale: str
    """What is still to be done to the values before a model learns them."""
    content: str
    """Moments (mean and standard deviation), or samples of the posterior."""
    flips: str
    statistics: str
    shape: tuple[int, ...]
    """Of one latent in its file."""
    labels: Counter[int]
    """Label -> latents."""
    files: int
    measured: str = ""
    """Mean and spread of the values that were read."""
    problems: list[str] = field(default_factory=list)
    """What would go wrong; empty: it can be learnt from."""

    @property
    def count(self) -> int:
        """Latents."""
        return self.labels.total()


def codec_of_samples(channels: int) -> str | None:
    """The codec whose latents have so many channels."""
    return next((codec for codec, (depth, _) in SHAPES.items() if depth == channels), None)


def measure(sums: ChannelSums | None) -> str:
    """Mean and spread in words."""
    if sums is None:
        return ""
    mean, spread = overall(sums)
    return f"mean {mean:.3f}, spread {spread:.3f} (of a few)"


def label_problems(labels: Counter[int]) -> list[str]:
    """Labels that are negative or do not occur."""
    problems = []
    if labels and min(labels) < 0:
        problems.append(f"label {min(labels)} is negative")
    if labels and max(labels) + 1 != len(labels):
        problems.append(f"labels go up to {max(labels)}, but only {len(labels)} of them occur")
    return problems


def some(names: Sequence[str], what: str) -> list[str]:
    """One line for many files."""
    if not names:
        return []
    return [f"{len(names)} files {what}: {', '.join(names[:3])}"
            f"{' ...' if len(names) > 3 else ''}"]  # fmt: skip
