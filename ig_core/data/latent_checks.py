"""Whether the values of latents are what their codec gives, and what their statistics say.

One judgement for `igdit inspect`, for the look before a run, and for the sums over everything. The
bounds are wide: they tell latents that were scaled or normalised twice, and statistics of other
latents, not one data set from another.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch

from ig_core.codecs.files import SD_SCALE
from ig_core.data.normalisation import ChannelSums
from ig_core.data.sources.formats import STATISTICS
from ig_core.data.sources.rows import latent_depth, latent_rows, read_normalisation

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ig_core.data.sources.listing import Listing
    from ig_core.data.sources.rows import LatentRows

SD_SPREAD = (2.0, 15.0)
"""Spread of SD-VAE's latents before scaling: about 5.5 of ImageNet, 1 if they are scaled already,
30 if they were divided instead."""
OFFSET = 1.0
"""Most that a channel's mean may be from the given one, in given standard deviations."""
RATIO = (0.5, 2.0)
"""Of a channel's standard deviation to the given one."""
LOOKED_AT = 64
"""Latents whose values are read before a run, spread over the source."""
FEW = 16
"""Latents; the statistics of fewer tell nothing of all of them."""


class LatentForm(NamedTuple):
    """What latents are to be."""

    codec: str
    """sd-vae or va-vae."""
    channels: int
    side: int
    flip: bool
    """Whether a mirrored latent must lie beside each."""
    judged: bool = True
    """Whether their values must be what codec and statistics say."""


class UnfitValuesError(ValueError):
    """The values of latents are not what codec and statistics say."""


def check_latents(form: LatentForm, listing: Listing, looked_at: int = LOOKED_AT) -> ChannelSums:
    """Compare some latents all over a source with what they are to be.

    Args:
        form: What they are to be.
        listing: The source.
        looked_at: How many are read, at most.

    Returns:
        Sums over those that were read.

    Raises:
        UnfitValuesError: their values are not what codec and statistics say.
        ValueError: one cannot be read or has another form, or statistics are missing.
    """
    if listing.format == "npy" and form.codec != "sd-vae":
        raise ValueError(
            f"data.codec must be sd-vae for the .npy files of {listing.root}, but is {form.codec!r}"
        )
    given = read_normalisation(listing.root, form.channels) if form.codec == "va-vae" else None
    last = len(listing) - 1
    places = sorted({round(last * n / max(looked_at - 1, 1)) for n in range(looked_at)})
    sums = []
    for place in places:
        rows = latent_rows(listing, place, place + 1)
        check_rows(form, listing, rows, place)
        sums.append(ChannelSums.of(torch.from_numpy(rows.latent), form.channels))
    total = reduce(ChannelSums.__add__, sums)
    check_values(form, total, given, rows=len(places))
    return total


def check_rows(form: LatentForm, listing: Listing, rows: LatentRows, first: int) -> None:
    """Raise ValueError unless rows from `first` on are what they are to be."""
    expected = (latent_depth(listing.format, form.channels), form.side, form.side)
    name = listing.rows(first, first + 1)[0].name
    if rows.latent.shape[1:] != expected:
        raise ValueError(
            f"latents of {form.codec} must be {expected} (data.channels, data.side), "
            f"but those of {listing.root} from {name} on are "
            f"{rows.latent.shape[1:]}"
        )
    if form.flip and rows.mirror is None:
        raise ValueError(
            f"data.flip must be off: {listing.root} holds no mirrored latents from {name} on"
        )
    if form.judged and expected[0] == 2 * form.channels:
        _refuse(moment_problems(torch.from_numpy(rows.latent)[:, form.channels :]))


def check_values(
    form: LatentForm, sums: ChannelSums, given: tuple[Tensor, Tensor] | None, *, rows: int
) -> None:
    """Raise UnfitValuesError unless sums over latents are what codec and statistics say."""
    if form.judged:
        _refuse(value_problems(form.codec, sums, given, rows=rows))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UnfitValuesError("; ".join(problems))


def value_problems(
    codec: str,
    sums: ChannelSums,
    given: tuple[Tensor, Tensor] | None = None,
    *,
    rows: int = FEW,
) -> list[str]:
    """What is wrong with latents by their sums; each says the number and what was expected.

    Args:
        codec: sd-vae: the spread is judged. Any other: `given` is, if there is one.
        sums: Of latents as they are stored, or of what is drawn from stored moments.
        given: Mean and standard deviation of each channel, (C,) float64, that are to be taken out.
        rows: How many latents these are; by a few, `given` is not judged.
    """
    if codec == "sd-vae":
        return _spread_problems(sums)
    return [] if given is None or rows < FEW else _statistics_problems(sums, *given)


def moment_problems(std: Tensor) -> list[str]:
    """What is wrong with standard deviations of posteriors, (N, C, H, W)."""
    least = float(std.min())
    if least >= 0:
        return []
    return [
        f"the second half of the channels goes down to {least:.3g}: it is a log-variance or a "
        f"sample, where a standard deviation is expected"
    ]


def overall(sums: ChannelSums) -> tuple[float, float]:
    """Mean and spread over all channels together."""
    mean = sums.mean.mean()
    square = (sums.std.square() + sums.mean.square()).mean()
    return float(mean), float((square - mean.square()).clamp(min=0).sqrt())


def _spread_problems(sums: ChannelSums) -> list[str]:
    spread, (low, high) = overall(sums)[1], SD_SPREAD
    if low <= spread <= high:
        return []
    guess = (
        f"they seem to be multiplied by {SD_SCALE} already"
        if spread < low
        else "they seem to be other values"
    )
    return [
        f"the spread of the latents is {spread:.3g}, where SD-VAE's is about "
        f"{1 / SD_SCALE:.1f} before scaling ({low:g} to {high:g}): {guess}"
    ]


def _statistics_problems(sums: ChannelSums, mean: Tensor, std: Tensor) -> list[str]:
    offset, ratio = ((sums.mean - mean).abs() / std).max(), sums.std / std
    problems = []
    if offset > OFFSET:
        problems.append(
            f"the means of the latents are up to {float(offset):.4g} spreads from "
            f"those in {STATISTICS} (at most {OFFSET:g} is expected)"
        )
    low, high = RATIO
    if ratio.min() < low or ratio.max() > high:
        problems.append(
            f"the spreads of the latents are {float(ratio.min()):.3g} to "
            f"{float(ratio.max()):.3g} of those in {STATISTICS} ({low:g} to {high:g} "
            f"is expected)"
        )
    if not problems:
        return []
    normal = sums.mean.abs().max() < low and low < sums.std.min() and sums.std.max() < high
    guess = "they are of other latents"
    if normal:
        guess += ", or these are normalised already"
    return [f"{' and '.join(problems)}: {guess}"]


def lone_statistics(path: Path) -> Path | None:
    """The statistics at a path where no latents lie: the file itself, or alone in its folder."""
    file = path if path.name == STATISTICS else path / STATISTICS
    lone = file.is_file() and (file == path or not any(path.glob("*.safetensors")))
    return file if lone else None
