"""What a cache of latents is, read from the files themselves: SiT's and REPA's, or LightningDiT's.

REPA's and IG's SiT: a folder with `dataset.json` and a `.npy` of float32 (8, 32, 32) for each
image, mean and standard deviation of SD-VAE's posterior, unscaled. LightningDiT: safetensors
shards with `latents`, `latents_flip` (N, 32, 16, 16) and `labels` (N,), samples of VA-VAE's
posterior, unnormalised, beside `latents_stats.pt`; or the same of SD-VAE (N, 4, 32, 32), unscaled
and without statistics. Files are read as data; nothing is unpickled but tensors and plain
containers. What is taken for a cache is what a run takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ig_core.latent_facts import CacheFacts
from ig_core.npy_inspection import inspect_npy
from ig_core.safetensors_inspection import inspect_safetensors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CacheFacts", "inspect_latents"]


def inspect_latents(path: Path) -> CacheFacts:
    """Say what a folder of latents is, and what would go wrong with it.

    Raises:
        ValueError: it is none that is known, or none of it can be read.
    """
    shards = sorted(path.glob("*.safetensors"))
    if shards:
        return inspect_safetensors(path, shards)
    for folder in (path, path / "vae-sd"):
        if (folder / "dataset.json").is_file():
            return inspect_npy(folder)
    raise ValueError(f"{path} is no cache of latents that is known: it has neither dataset.json "
                     f"(also not in vae-sd/) nor *.safetensors")  # fmt: skip
