"""Recognise a cache of latents: SiT's and REPA's, or LightningDiT's.

REPA's and IG's SiT: a folder with `dataset.json` and a `.npy` of (8, 32, 32) for each image, mean
and standard deviation of SD-VAE's posterior, unscaled. LightningDiT: safetensors shards with
`latents`, `latents_flip` (N, 32, 16, 16) and `labels` (N,), samples of VA-VAE's posterior,
unnormalised, beside `latents_stats.pt`; or the same of SD-VAE (N, 4, 32, 32), unscaled and without
statistics. They are listed, read and judged by the code that lists, reads and judges them for a
run, whose verdict this is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ig_core.codecs.files import SD_SCALE
from ig_core.data.latent_checks import LatentForm, check_latents, overall
from ig_core.data.sources.formats import STATISTICS, detect
from ig_core.data.sources.rows import latent_depth, latent_rows, read_normalisation
from ig_core.data.sources.source import list_source

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.data.normalisation import ChannelSums
    from ig_core.data.sources.listing import Listing


FORMATS = {
    "npy": "SiT, REPA and IG: a .npy for each image",
    "safetensors": "LightningDiT: safetensors shards",
}
"""Format of a source of latents -> its name for people."""
MAX_CLASSES = 2**31
"""Labels below are accepted: no cache tells its number of classes."""


NAMES = {"sd-vae": "SD-VAE f8 (4 channels)", "va-vae": "VA-VAE f16 (32 channels)"}
"""Codec -> its name for people."""
SCALES = {
    "sd-vae": f"unscaled: to be multiplied by {SD_SCALE}",
    "va-vae": "unnormalised: mean and spread of each channel are to be taken out",
}
"""Codec -> scaling that its latents still need before a model learns them."""


@dataclass
class CacheFacts:
    """Description of a cache of latents."""

    format: str
    codec: str = "not known"
    scale: str = ""
    """Scaling that the values still need before a model learns them."""
    content: str = ""
    """Moments (mean and standard deviation), or samples of the posterior."""
    flips: str = ""
    statistics: str = ""
    shape: tuple[int, ...] = ()
    """Shape of one latent in its file."""
    labels: Counter[int] = field(default_factory=Counter)
    """Label -> latents."""
    files: int = 0
    measured: str = ""
    """Mean and spread of the values that were read."""
    notes: list[str] = field(default_factory=list)
    """Remarks for a person."""
    refusal: ValueError | None = None
    """Error by which a run would refuse it; None if a run would accept it."""

    @property
    def problems(self) -> list[str]:
        """Message of the refusal, if there is one."""
        return [] if self.refusal is None else [str(self.refusal)]

    @property
    def count(self) -> int:
        """Number of latents."""
        return self.labels.total()


def inspect_latents(path: Path) -> CacheFacts:
    """Recognise a folder of latents, and try whether a run would take it.

    A run is taken to have the settings of the published experiments: latents of the va-vae are
    learnt with their mirrored ones, those of the sd-vae without.

    Raises:
        ValueError: If the folder holds no known cache of latents.
    """
    kind = "safetensors" if any(path.glob("*.safetensors")) else "npy"
    try:
        kind = detect(path).format
        listing = list_source(path, MAX_CLASSES) if kind in FORMATS else None
        first = None if listing is None else latent_rows(listing, 0, 1)
    except ValueError as error:
        return CacheFacts(FORMATS[kind], refusal=error)
    if listing is None or first is None:
        raise ValueError(
            f"{path} is no cache of latents that is known: it has neither dataset.json"
            f" beside folders of .npy files (also not in vae-sd/) nor *.safetensors"
        )
    shape = first.latent.shape[1:]
    form = _form(kind, shape)
    labels = Counter(listing.table["label"].to_pylist())
    facts = CacheFacts(
        format=FORMATS[kind],
        codec=NAMES[form.codec] if latent_depth(kind, form.channels) == shape[0] else "not known",
        scale=SCALES[form.codec] + (" after sampling" if kind == "npy" else ""),
        content="moments: mean and standard deviation of the posterior, to be sampled each time"
        if kind == "npy"
        else "samples of the posterior, drawn once",
        flips=_flips(kind, mirrored=first.mirror is not None),
        statistics=_statistics(listing, form),
        shape=shape,
        labels=labels,
        files=len(listing.files),
        notes=label_notes(labels),
    )
    try:
        facts.measured = measure(check_latents(form, listing))
    except ValueError as error:
        facts.refusal = error
    return facts


def _form(kind: str, shape: tuple[int, ...]) -> LatentForm:
    """Return the form that a run would expect of latents of a shape (D, H, W)."""
    if kind == "npy" or shape[0] == 4:
        return LatentForm("sd-vae", 4, shape[-1], flip=False)
    return LatentForm("va-vae", 32, shape[-1], flip=True)


def _flips(kind: str, *, mirrored: bool) -> str:
    if kind == "npy":
        return "none: images are learnt as they are, as SiT and IG do"
    return "a mirrored latent beside each" if mirrored else "none"


def _statistics(listing: Listing, form: LatentForm) -> str:
    """Describe the file of statistics; `check_latents` compares it with the latents."""
    there = (listing.root / STATISTICS).is_file()
    if form.codec == "sd-vae":
        return f"{STATISTICS} is there, but not used" if there else "none needed"
    try:
        mean, std = read_normalisation(listing.root, form.channels)
    except ValueError:
        return "unusable" if there else "none"
    return f"mean {float(mean.mean()):.3f}, spread {float(std.mean()):.3f} over channels"


def measure(sums: ChannelSums) -> str:
    """Describe mean and standard deviation."""
    mean, spread = overall(sums)
    return f"mean {mean:.3f}, spread {spread:.3f} (of a few)"


def label_notes(labels: Counter[int]) -> list[str]:
    """Remark that labels do not occur: a model cannot be trained to sample them."""
    if labels and max(labels) + 1 != len(labels):
        return [f"labels go up to {max(labels)}, but only {len(labels)} of them occur"]
    return []
