"""`igdit inspect` of latents in the store: one shard, or the data that shards are bound to."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from pipelines.stages.latents import LATENTS, STATISTICS

if TYPE_CHECKING:
    from pathlib import Path

Found = tuple[dict[str, str], list[str], list[str]]
"""Lines, what a person should know, and what would go wrong."""


def is_in_store(path: Path) -> bool:
    """Whether a folder is a shard of latents, or what binds shards together."""
    return (path / LATENTS).is_file() or (path / STATISTICS).is_file()


def inspect_shards(path: Path) -> Found:
    """Say what they are.

    Raises:
        ValueError: they cannot be read.
    """
    return _shard(path) if (path / LATENTS).is_file() else _data(path)


def label_counts(labels: Counter[int]) -> str:
    """How many labels there are, and how many latents of the rarest and the most frequent."""
    if not labels:
        return "none"
    counts = labels.most_common()
    (rare, least), (often, most) = counts[-1], counts[0]
    return (f"{len(labels):,}: {least:,} (label {rare}) to {most:,} (label {often}) "
            f"of each")  # fmt: skip


def _shard(path: Path) -> Found:
    import torch

    from ig_core.latents import Shard

    shard = Shard(path / LATENTS)
    finite = all(bool(torch.tensor(row).isfinite().all()) for row in shard.latent)
    lines = {
        "latent cache": "igdit's own, one shard",
        "values": f"{shard.dtype}, moments of the posterior or samples of it (or pixels): the "
                  f"data that it belongs to says which",
        "shape": " x ".join(map(str, shard.shape)),
        "flips": "none" if shard.mirror is None else "a mirrored latent beside each",
        "latents": f"{len(shard):,}",
        "labels": label_counts(Counter(shard.label.tolist())),
    }  # fmt: skip
    return lines, [], [] if finite else ["some values are NaN or infinite"]


def _data(path: Path) -> Found:
    file = path / STATISTICS
    try:
        about: dict[str, Any] = json.loads(file.read_text())
        counts = Counter(dict(enumerate(about["per_class"])))
        lines = {
            "latent cache": f"igdit's own, {len(about['shards']):,} shards bound together",
            "codec": f"{about['codec']} {about['codec_sha256'] or '(of whatever made them)'}",
            "source": str(about["source"]),
            "statistics": f"mean {_range(about['mean'])}, spread {_range(about['std'])} over "
                          f"channels",
            "scale": f"z = (latent - shift) x factor: shift {_range(about['shift'])}, factor "
                     f"{_range(about['factor'])}",
            "latents": f"{about['count']:,}",
            "labels": label_counts(+counts),
        }  # fmt: skip
        absent = [label for label, count in enumerate(about["per_class"]) if not count]
        broken = [f"{len(about['broken'])} images were left out"] if about["broken"] else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} does not describe shards of latents: "
                         f"{type(error).__name__} {error}") from error  # fmt: skip
    problems = [f"{len(absent)} labels have no latent, for example {absent[0]}"] if absent else []
    return lines, broken, problems


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
