"""What a cache of latents is, as `igdit inspect` prints it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ig_core.codec_files import SD_SCALE
from ig_core.latent_checks import overall

if TYPE_CHECKING:
    from ig_core.latents import ChannelSums

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
    codec: str = "not known"
    scale: str = ""
    """What is still to be done to the values before a model learns them."""
    content: str = ""
    """Moments (mean and standard deviation), or samples of the posterior."""
    flips: str = ""
    statistics: str = ""
    shape: tuple[int, ...] = ()
    """Of one latent in its file."""
    labels: Counter[int] = field(default_factory=Counter)
    """Label -> latents."""
    files: int = 0
    measured: str = ""
    """Mean and spread of the values that were read."""
    notes: list[str] = field(default_factory=list)
    """What a person should know."""
    problems: list[str] = field(default_factory=list)
    """Why a run would refuse it; empty: it can be learnt from."""

    @property
    def count(self) -> int:
        """Latents."""
        return self.labels.total()


def measure(sums: ChannelSums) -> str:
    """Mean and spread in words."""
    mean, spread = overall(sums)
    return f"mean {mean:.3f}, spread {spread:.3f} (of a few)"


def label_notes(labels: Counter[int]) -> list[str]:
    """Say that labels do not occur: what is sampled of them was not learnt."""
    if labels and max(labels) + 1 != len(labels):
        return [f"labels go up to {max(labels)}, but only {len(labels)} of them occur"]
    return []
