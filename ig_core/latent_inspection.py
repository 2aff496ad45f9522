"""What a cache of latents is, read from the files themselves: SiT's and REPA's, or LightningDiT's.

REPA's and IG's SiT: a folder with `dataset.json` and a `.npy` of float32 (8, 32, 32) for each
image, mean and standard deviation of SD-VAE's posterior, unscaled. LightningDiT: safetensors
shards with `latents`, `latents_flip` (N, 32, 16, 16) and `labels` (N,), samples of VA-VAE's
posterior, unnormalised, beside `latents_stats.pt`. Files are read as data; nothing is unpickled
but tensors and plain containers.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ig_core.official import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SD_SCALE = 0.18215
"""What SD-VAE's latents are multiplied by before a SiT learns them (Rombach et al. 2022)."""
LOOKED_AT = 64
"""Latents whose values are read: spread over the cache."""
STATISTICS = "latents_stats.pt"
SHARDS = "latents_rank*_shard*.safetensors"


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


def is_latent_cache(path: Path) -> bool:
    """Whether a folder looks like a cache of latents that others wrote."""
    return _repa_folder(path) is not None or any(path.glob(SHARDS))


def inspect_latents(path: Path) -> CacheFacts:
    """Say what a folder of latents is, and what would go wrong with it.

    Raises:
        ValueError: it is none that is known, or none of it can be read.
    """
    repa = _repa_folder(path)
    if repa is not None:
        return _inspect_repa(repa)
    shards = sorted(path.glob(SHARDS))
    if shards:
        return _inspect_lightningdit(path, shards)
    raise ValueError(f"{path} is no cache of latents that is known: it has neither dataset.json "
                     f"(also not in vae-sd/) nor {SHARDS}")  # fmt: skip


def _repa_folder(path: Path) -> Path | None:
    for folder in (path, path / "vae-sd"):
        if (folder / "dataset.json").is_file():
            return folder
    return None


def _inspect_repa(folder: Path) -> CacheFacts:
    listed, problems = _listing(folder / "dataset.json")
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*.npy")}
    if not there:
        raise ValueError(f"{folder} has a dataset.json, but no .npy file")
    problems += _some(sorted(listed.keys() - there), "listed in dataset.json, not there")
    problems += _some(sorted(there - listed.keys()), "without a label in dataset.json")
    read, shapes = [], Counter[tuple[int, ...]]()
    for name in _spread(sorted(there & listed.keys())):
        try:
            array = np.load(folder / name, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            problems.append(f"{name} cannot be read: {error}")
            continue
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        shapes[array.shape] += 1
        read.append(array)
    shape = shapes.most_common(1)[0][0] if shapes else ()
    problems += _moment_problems([a for a in read if a.shape == shape], shape, shapes)
    values = [a[:4] for a in read if a.shape == shape and a.ndim == 3]
    facts = CacheFacts(
        format="SiT, REPA and IG: a .npy for each image",
        codec="SD-VAE f8 (4 channels)" if shape[:1] == (8,) else "not known",
        scale=f"unscaled: to be multiplied by {SD_SCALE} after sampling",
        content="moments: mean and standard deviation of the posterior, to be sampled each time",
        flips="none: images are learnt as they are, as SiT and IG do",
        statistics="none needed",
        shape=shape,
        labels=Counter(listed[name] for name in there & listed.keys()),
        files=len(there),
        problems=problems,
    )
    facts.problems += _label_problems(facts.labels)
    facts.measured, spread = _measure(values)
    if spread is not None and spread < 2:  # SD-VAE's own are about 1 / 0.18215 = 5.5
        facts.problems.append(f"the spread of its means is {spread:.2f}, where SD-VAE's is about "
                              f"{1 / SD_SCALE:.1f}: they seem to be scaled already")  # fmt: skip
    return facts


def _listing(path: Path) -> tuple[dict[str, int], list[str]]:
    """File -> label, and what is wrong with the list."""
    try:
        entries = json.loads(path.read_text())["labels"]
        listed = {str(name): int(label) for name, label in entries}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} must hold {{\"labels\": [[file, label], ...]}}, but reading it "
                         f"gave {type(error).__name__}: {error}") from error  # fmt: skip
    twice = len(entries) - len(listed)
    return listed, [f"{twice} files are listed twice in dataset.json"] if twice else []


def _moment_problems(
    read: Sequence[np.ndarray[Any, Any]],
    shape: tuple[int, ...],
    shapes: Counter[tuple[int, ...]],
) -> list[str]:
    problems = []
    if len(shapes) > 1:
        problems.append(f"files differ in shape: {', '.join(map(str, shapes))}")
    if len(shape) != 3 or shape[0] != 8 or shape[1] != shape[2]:
        problems.append(f"files should be (8, side, side): 4 channels of mean and 4 of standard "
                        f"deviation, but are {shape}")  # fmt: skip
        return problems
    if any(a.dtype != np.float32 for a in read):
        problems.append(f"values should be float32, but are {read[0].dtype}")
    if any(not np.isfinite(a).all() for a in read):
        problems.append("some values are NaN or infinite")
    if any((a[4:] < 0).any() for a in read):
        problems.append("the second half has negative values: it is a log-variance or a sample, "
                        "where a standard deviation is expected")  # fmt: skip
    return problems


class _Shard(NamedTuple):
    """What was read of one shard."""

    shape: tuple[int, ...]
    """Of its latents, (N, C, H, W)."""
    labels: list[int]
    flipped: bool
    values: torch.Tensor | None
    """Some of its latents, if they were asked for."""


def _read_shard(path: Path, *, look: bool) -> _Shard:
    """Read a shard's labels and, if `look`, a few of its latents.

    Raises:
        ValueError: it cannot be read, or lacks something.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing = {"latents", "labels"} - names
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            rows = file.get_slice("latents")
            shape = tuple(rows.get_shape())
            labels = file.get_tensor("labels").tolist()
            flipped = "latents_flip" in names and shape == tuple(
                file.get_slice("latents_flip").get_shape()
            )
            values = rows[: min(shape[0], LOOKED_AT // 3)] if look else None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if len(labels) != shape[0]:
        raise ValueError(f"{path.name} has {shape[0]} latents and {len(labels)} labels")
    return _Shard(shape, labels, flipped, values)


def _inspect_lightningdit(path: Path, shards: Sequence[Path]) -> CacheFacts:
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
    if len(shapes) > 1:
        problems.append(f"shards differ in shape: {', '.join(map(str, shapes))}")
    flipped = sum(shard.flipped for shard in read)
    if flipped < len(read):
        problems.append(f"{len(read) - flipped} of {len(read)} shards hold no flips, with which "
                        f"LightningDiT is trained")  # fmt: skip
    values = [s.values for s in read if s.values is not None and s.shape[1:] == shape]
    statistics, more = _statistics(path, shape, values)
    labels = Counter(label for shard in read for label in shard.labels)
    return CacheFacts(
        format="LightningDiT: safetensors shards",
        codec="VA-VAE f16 (32 channels)" if shape[:1] == (32,) else "not known",
        scale="unnormalised: mean and spread of each channel are to be taken out",
        content="samples of the posterior, drawn once",
        flips="a mirrored latent beside each" if flipped == len(read) else "none, or not all",
        statistics=statistics,
        shape=shape,
        labels=labels,
        files=len(shards),
        measured=_measure([v.float().numpy() for v in values])[0],
        problems=[*problems, *more, *_label_problems(labels)],
    )


def _statistics(
    path: Path, shape: tuple[int, ...], values: Sequence[torch.Tensor]
) -> tuple[str, list[str]]:
    """What the file of statistics says, and whether it fits the latents."""
    file = path / STATISTICS
    if not file.is_file():
        return "none", [f"{STATISTICS} is missing: without mean and spread of each channel FID is "
                        f"far off"]  # fmt: skip
    try:
        held = read_file(file)
        mean, std = held["mean"].flatten().double(), held["std"].flatten().double()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return "unreadable", [f"{STATISTICS} cannot be read: {error}"]
    if len(mean) != shape[0] or len(std) != shape[0]:
        return "of other latents", [f"{STATISTICS} is of {len(mean)} channels, not {shape[0]}"]
    if not bool(mean.isfinite().all() and (std > 0).all() and std.isfinite().all()):
        return "damaged", [f"{STATISTICS} holds values that are not finite, or no positive spread"]
    text = f"mean {float(mean.mean()):.3f}, spread {float(std.mean()):.3f} over channels"
    if not values:
        return text, []
    sample = torch.cat([v.double() for v in values])
    offset = float(((sample.mean(dim=(0, 2, 3)) - mean).abs() / std).max())
    if offset > 1:
        return text, [f"the means of the latents that were read are up to {offset:.1f} spreads "
                      f"from those in {STATISTICS}: they are of other latents"]  # fmt: skip
    return text, []


def _measure(values: Iterable[np.ndarray[Any, Any]]) -> tuple[str, float | None]:
    pieces = [np.asarray(v, dtype=np.float64).ravel() for v in values]
    if not pieces:
        return "", None
    every = np.concatenate(pieces)
    spread = float(every.std())
    return f"mean {every.mean():.3f}, spread {spread:.3f} (of a few)", spread


def _label_problems(labels: Counter[int]) -> list[str]:
    problems = []
    if labels and min(labels) < 0:
        problems.append(f"label {min(labels)} is negative")
    if labels and max(labels) + 1 != len(labels):
        problems.append(f"labels go up to {max(labels)}, but only {len(labels)} of them occur")
    return problems


def _some(names: Sequence[str], what: str) -> list[str]:
    """One line for many files."""
    if not names:
        return []
    return [f"{len(names)} files {what}: {', '.join(names[:3])}"
            f"{' ...' if len(names) > 3 else ''}"]  # fmt: skip


def _spread(names: Sequence[str]) -> list[str]:
    step = max(1, len(names) // LOOKED_AT)
    return list(names[::step][:LOOKED_AT])
