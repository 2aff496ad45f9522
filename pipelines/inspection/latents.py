"""Inspection of latents: those in the store, and caches that other programs wrote."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from experiments.schema import CODEC_CHANNELS
from pipelines.common.remedies import explained
from pipelines.inspection.inspection import Inspection
from pipelines.stages.codec import read_statistics
from pipelines.store.file_names import LATENTS_FILE, STATISTICS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from ig_core.data.inspection import CacheFacts
    from ig_core.data.shards import Shard

RMS_TOLERANCE = 2.0
"""Factor by which the root mean square of scaled latents may differ from 1."""


def is_in_store(path: Path) -> bool:
    """Return whether a folder is a shard of latents, or the data that shards are part of."""
    return (path / LATENTS_FILE).is_file() or (path / STATISTICS_FILE).is_file()


def inspect_stored_latents(path: Path) -> Inspection:
    """Describe a shard of latents, or the data that shards are part of.

    Raises:
        ValueError: If they cannot be read.
    """
    return _shard(path) if (path / LATENTS_FILE).is_file() else _data(path)


def describe_cache(facts: CacheFacts) -> Inspection:
    """Describe a cache that another program wrote; by its format alone if it cannot be read."""
    problems = [] if facts.refusal is None else [explained(facts.refusal)]
    if not facts.count:
        return Inspection({"latent cache": facts.format}, facts.notes, problems)
    lines = {
        "latent cache": facts.format,
        "codec": facts.codec,
        "content": facts.content,
        "shape": " x ".join(map(str, facts.shape)),
        "values": facts.measured,
        "scale": facts.scale,
        "statistics": facts.statistics,
        "flips": facts.flips,
        "latents": f"{facts.count:,} in {facts.files:,} files",
        "labels": label_counts(facts.labels),
    }
    return Inspection(lines, facts.notes, problems)


def label_counts(labels: Counter[int]) -> str:
    """Count the labels, and the latents of the rarest and the most frequent label."""
    if not labels:
        return "none"
    counts = labels.most_common()
    (rare, least), (often, most) = counts[-1], counts[0]
    return f"{len(labels):,}: {least:,} (label {rare}) to {most:,} (label {often}) of each"


def _shard(path: Path) -> Inspection:
    import torch

    from ig_core.data.shards import Shard

    shard = Shard(path / LATENTS_FILE)
    finite = all(bool(torch.tensor(row).isfinite().all()) for row in shard.latent)
    lines = {
        "latent cache": "igdit's own, one shard",
        **_rows(shard),
        "latents": f"{len(shard):,}",
        "labels": label_counts(Counter(shard.label.tolist())),
    }
    return Inspection(lines, [], [] if finite else ["some values are NaN or infinite"])


def _rows(shard: Shard) -> dict[str, str]:
    """Describe the rows of a shard."""
    return {
        "content": f"{_content(shard.shape[0])}, {shard.dtype}",
        "shape": " x ".join(map(str, shard.shape)),
        "flips": _flips(shard),
    }


def _content(depth: int) -> str:
    """Describe rows by their number of channels, which differs between codecs."""
    for codec, channels in CODEC_CHANNELS.items():
        if depth == channels:
            return "pixels" if codec == "none" else f"samples of {codec}'s posterior, drawn once"
        if depth == 2 * channels and codec != "none":
            return f"moments of {codec}'s posterior: mean and standard deviation"
    return f"{depth} channels of an unknown codec"


def _flips(shard: Shard) -> str:
    if shard.mirror is not None:
        return "a mirrored latent beside each"
    return "none stored: pixels are mirrored as they are read" if shard.dtype == "uint8" else "none"


def _rows_of_data(path: Path, shards: list[str]) -> tuple[dict[str, str], list[str]]:
    """Describe the rows of the first shard beside the data, and note missing shards."""
    from ig_core.data.shards import Shard

    files = [path.resolve().parent.parent / shard / LATENTS_FILE for shard in shards]
    present = [file for file in files if file.is_file()]
    absent = len(files) - len(present)
    notes = [f"{absent} of {len(files)} shards do not lie beside it"] if absent else []
    return (_rows(Shard(present[0])) if present else {}), notes


def _scaling_problems(statistics: dict[str, Any]) -> list[str]:
    """List a problem unless the scaled latents have about the spread of the noise."""
    if statistics["codec"] == "none":  # pixels, which are scaled to [-1, 1]
        return []
    pairs = zip(statistics["std"], statistics["factor"], strict=True)
    scaled = [std * factor for std, factor in pairs]
    root = math.sqrt(sum(each**2 for each in scaled) / len(scaled))
    if 1 / RMS_TOLERANCE <= root <= RMS_TOLERANCE:
        return []
    return [
        f"their standard deviation times the factor is {root:.3g} (root mean square over "
        f"channels), but it should be about 1: they are scaled already, or of another codec"
    ]


def _data(path: Path) -> Inspection:
    """Describe the data that shards are part of."""
    file = path / STATISTICS_FILE
    try:
        found, _ = read_statistics(path)
        counts = Counter(dict(enumerate(found["per_class"])))
        rows, notes = _rows_of_data(path, found["shards"])
        lines = {
            "latent cache": f"igdit's own, {len(found['shards']):,} shards",
            "codec": f"{found['codec']} {found.get('encoder_sha256') or '(encoder unknown)'}",
            "source": str(found["source"]),
            "statistics": f"mean {_range(found['mean'])}, std {_range(found['std'])} over channels",
            "scale": f"z = (latent - shift) x factor: shift {_range(found['shift'])}, factor "
            f"{_range(found['factor'])}",
            **rows,
            "latents": f"{found['count']:,}",
            "labels": label_counts(+counts),
        }
        absent = [label for label, count in enumerate(found["per_class"]) if not count]
        faults = [str(each["fault"]) for each in found["broken"]]
        problems = _scaling_problems(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} does not describe shards of latents: {type(error).__name__} {error}"
        ) from error
    converted = sum("converted" in fault for fault in faults)
    for count, action in ((len(faults) - converted, "left out"), (converted, "converted to RGB")):
        notes += [f"{count:,} images were {action}"] if count else []
    if found.get("oriented"):
        notes.append(f"{found['oriented']:,} images have an EXIF orientation, which is not applied")
    if absent:
        problems.append(f"{len(absent)} labels have no latent, for example {absent[0]}")
    return Inspection(lines, notes, problems)


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"
