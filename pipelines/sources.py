"""The source of an experiment's data: listed once a process, looked at, known by its content."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.keys import file_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments import DataConfig
    from ig_core.source_rows import LatentRows
    from ig_core.sources import Listing

LOOKED_AT = 64
"""Latents whose values are read before a run, spread over the source."""
OVERRIDE = "--data.no-check-statistics takes them as they are"


def pin_source(data: DataConfig, path: Path, *, imported: bool) -> dict[str, Any]:
    """Fields of a source, by all that the data say of it.

    Args:
        data: What is said.
        path: Where it lies, absolute.
        imported: Whether a published checkpoint stands for the training, so that of VA-VAE's
            latents the statistics are enough.

    Raises:
        ValueError: nothing is there that is known, or it is not what the data say.
    """
    from ig_core.latent_checks import lone_statistics
    from ig_core.source_rows import read_normalisation

    statistics = lone_statistics(path) if data.codec == "va-vae" else None
    if statistics is None:
        classes = None if data.classes is None else Path(data.classes).expanduser().absolute()
        named = {"path": str(path), "classes": None if classes is None else str(classes)}
        content, count = _source(
            dataclasses.replace(data, path=named["path"], classes=named["classes"], content=None,
                                count=None, codec_path=None, codec_sha256=None,
                                encoder_sha256=None),
            file_digest(classes) if classes is not None and classes.is_file() else "",
        )  # fmt: skip
        return {**named, "content": content, "count": count}
    if not imported or data.source != "latents":
        raise ValueError(f"data.path must be {data.source} to learn, but {path} holds none: "
                         f"{statistics.name} alone is enough with --train.from-checkpoint "
                         f"only")  # fmt: skip
    read_normalisation(statistics.parent, data.channels)
    return {"path": str(path), "content": file_digest(statistics), "count": 0}


# Listing ImageNet takes minutes, and a table's rows name the same source many times. One that
# changes later is found by the stage that lists it.
@functools.lru_cache(maxsize=16)
def _source(data: DataConfig, labels: str) -> tuple[str, int]:  # noqa: ARG001
    """Identity and rows of the source that data name; `labels` is the digest of their mapping."""
    from ig_core.sources import identify, list_source

    classes = None if data.classes is None else Path(data.classes)
    listing = list_source(Path(str(data.path)), data.num_classes, classes)
    if listing.has_latents != (data.source == "latents"):
        raise ValueError(f"data.source must be {'latents' if listing.has_latents else 'images'} "
                         f"for {data.path}, which holds {listing.format}, but is "
                         f"{data.source!r}")  # fmt: skip
    if listing.has_latents:
        _check_latents(data, listing)
    return identify(listing), len(listing)


def forget_sources() -> None:
    """List sources anew, for a process in which they change."""
    _source.cache_clear()


def _check_latents(data: DataConfig, listing: Listing) -> None:
    """Raise ValueError unless latents all over the source are what the experiment says."""
    from ig_core.latents import ChannelSums
    from ig_core.source_rows import latent_rows, read_normalisation

    if listing.format == "npy" and data.codec != "sd-vae":
        raise ValueError(f"data.codec must be sd-vae for the .npy files of {listing.root}, but is "
                         f"{data.codec!r}")  # fmt: skip
    given = read_normalisation(listing.root, data.channels) if data.codec == "va-vae" else None
    last = len(listing) - 1
    places = sorted({round(last * n / (LOOKED_AT - 1)) for n in range(LOOKED_AT)})
    sums = []
    for place in places:
        rows = latent_rows(listing, place, place + 1)
        check_rows(data, listing, rows, place)
        sums.append(ChannelSums.of(_tensor(rows), data.channels))
    check_values(data, functools.reduce(ChannelSums.__add__, sums), given, rows=len(places))


def check_rows(data: DataConfig, listing: Listing, rows: LatentRows, first: int) -> None:
    """Raise ValueError unless rows from `first` on are what the experiment says."""
    from ig_core.latent_checks import moment_problems
    from ig_core.source_rows import latent_depth

    expected = (latent_depth(listing.format, data.channels), data.side, data.side)
    name = listing.rows(first, first + 1)[0].name
    if rows.latent.shape[1:] != expected:
        raise ValueError(f"latents of {data.codec} must be {expected} (data.channels, data.side), "
                         f"but those of {listing.root} from {name} on are "
                         f"{rows.latent.shape[1:]}")  # fmt: skip
    if data.flip and rows.mirror is None:
        raise ValueError(f"data.flip must be off: {listing.root} holds no mirrored latents from "
                         f"{name} on")  # fmt: skip
    if data.check_statistics and expected[0] == 2 * data.channels:
        _refuse(data, moment_problems(_tensor(rows)[:, data.channels :]))


def check_values(data: DataConfig, sums: Any, given: Any, *, rows: int) -> None:  # noqa: ANN401
    """Raise ValueError unless sums over latents are what their codec and statistics say."""
    from ig_core.latent_checks import value_problems

    if data.check_statistics:
        _refuse(data, value_problems(data.codec, sums, given, rows=rows))


def _refuse(data: DataConfig, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"data.path {data.path}: {'; '.join(problems)} ({OVERRIDE})")


def _tensor(rows: LatentRows) -> Any:  # noqa: ANN401
    import torch

    return torch.from_numpy(rows.latent)
