"""What a cache of latents of LightningDiT's layout is: safetensors shards of samples."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

from ig_core.latent_checks import value_problems
from ig_core.latent_facts import (
    LOOKED_AT,
    NAMES,
    SCALES,
    CacheFacts,
    codec_of_samples,
    label_problems,
    measure,
)
from ig_core.latents import ChannelSums
from ig_core.source_formats import STATISTICS
from ig_core.source_rows import read_normalisation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch


class _Shard(NamedTuple):
    """What was read of one shard."""

    shape: tuple[int, ...]
    """Of its latents, (N, C, H, W)."""
    labels: list[int]
    flipped: bool
    values: torch.Tensor | None
    """Some of its latents, if they were asked for."""


def inspect_safetensors(path: Path, shards: Sequence[Path]) -> CacheFacts:
    """Say what the shards of a folder are.

    Raises:
        ValueError: none of them can be read.
    """
    read, problems = [], []
    looked_at = {shards[0], shards[len(shards) // 2], shards[-1]}
    for shard in shards:
        try:
            read.append(_read_shard(shard, look=shard in looked_at))
        except ValueError as error:
            problems.append(str(error))
    if not read:
        raise ValueError(f"no shard of {path} can be read: {'; '.join(problems[:3])}")
    shapes = Counter(shard.shape[1:] for shard in read)
    shape = shapes.most_common(1)[0][0]
    codec = codec_of_samples(shape[0])
    if len(shapes) > 1:
        problems.append(f"shards differ in shape: {', '.join(map(str, shapes))}")
    flipped = sum(shard.flipped for shard in read)
    # SiT learns the SD-VAE's latents as they are; LightningDiT is trained with flips.
    if flipped < len(read) and (flipped or codec != "sd-vae"):
        problems.append(f"{len(read) - flipped} of {len(read)} shards hold no flips, with which "
                        f"LightningDiT is trained")  # fmt: skip
    sums, more = _sums([s.values for s in read if s.values is not None and s.shape[1:] == shape])
    statistics, wrong = _statistics(path, codec, shape, sums)
    labels = Counter(label for shard in read for label in shard.labels)
    return CacheFacts(
        format="LightningDiT: safetensors shards",
        codec=NAMES.get(codec or "", "not known"),
        scale=SCALES.get(codec or "", SCALES["va-vae"]),
        content="samples of the posterior, drawn once",
        flips="a mirrored latent beside each" if flipped == len(read) else "none, or not all",
        statistics=statistics,
        shape=shape,
        labels=labels,
        files=len(shards),
        measured=measure(sums),
        problems=[*problems, *more, *wrong, *label_problems(labels)],
    )


def _read_shard(path: Path, *, look: bool) -> _Shard:
    """Read a shard's labels and, if `look`, a few of its latents.

    Raises:
        ValueError: it cannot be read, lacks something, or has other shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing = {"latents", "labels"} - names
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            rows = file.get_slice("latents")
            shape, labelled = (tuple(file.get_slice(name).get_shape())
                               for name in ("latents", "labels"))  # fmt: skip
            if len(shape) != 4 or 0 in shape:
                raise ValueError(f"latents must be (N, C, H, W), but are {shape}")
            if labelled != shape[:1]:
                raise ValueError(f"labels must be ({shape[0]},), one for each latent, but are "
                                 f"{labelled}")  # fmt: skip
            labels = file.get_tensor("labels")
            if labels.is_floating_point():
                raise ValueError(f"labels must be whole numbers, but are {labels.dtype}")
            flipped = "latents_flip" in names and shape == tuple(
                file.get_slice("latents_flip").get_shape()
            )
            values = rows[: min(shape[0], LOOKED_AT // 3)] if look else None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    return _Shard(shape, labels.tolist(), flipped, values)


def _sums(values: Sequence[torch.Tensor]) -> tuple[ChannelSums | None, list[str]]:
    """Sums of what was read, unless some of it is not finite."""
    if not all(bool(v.float().isfinite().all()) for v in values):
        return None, ["some values are NaN or infinite"]
    pieces = [ChannelSums.of(v, v.shape[1]) for v in values]
    return (reduce(ChannelSums.__add__, pieces) if pieces else None), []


def _statistics(
    path: Path, codec: str | None, shape: tuple[int, ...], sums: ChannelSums | None
) -> tuple[str, list[str]]:
    """What the file of statistics says, and whether the latents fit it, or else their codec."""
    if codec == "sd-vae":
        there = (path / STATISTICS).is_file()
        said = f"{STATISTICS} is there, but not used" if there else "none needed"
        return said, [] if sums is None else value_problems(codec, sums)
    try:
        mean, std = read_normalisation(path, shape[0])
    except ValueError as error:
        return ("unusable" if (path / STATISTICS).is_file() else "none"), [str(error)]
    text = f"mean {float(mean.mean()):.3f}, spread {float(std.mean()):.3f} over channels"
    if sums is None:
        return text, []
    rows = sums.count // (shape[1] * shape[2])
    return text, value_problems("va-vae", sums, (mean, std), rows=rows)
