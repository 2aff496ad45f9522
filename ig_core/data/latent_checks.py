"""Compare the values of latents with those of their codec, and with their statistics.

One judgement for inspection, for the check before a run, and for the sums over everything. The
bounds are wide: they tell latents that were scaled or normalised twice, and statistics of other
latents, not one data set from another.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import torch

from ig_core.codecs.files import SD_SCALE
from ig_core.config import SettingError
from ig_core.data.normalisation import ChannelSums
from ig_core.data.sources.formats import STATISTICS
from ig_core.data.sources.rows import latent_depth, latent_rows, read_normalisation

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ig_core.data.sources.listing import Listing
    from ig_core.data.sources.rows import LatentRows

SD_STD_RANGE = (2.0, 15.0)
"""Accepted standard deviations of SD-VAE's latents before scaling: about 5.5 of ImageNet, 1 if they
are scaled already, 30 if they were divided instead."""
MAX_MEAN_OFFSET_STDS = 1.0
"""Largest distance of a channel's mean from the given one, in given standard deviations."""
STD_RATIO_RANGE = (0.5, 2.0)
"""Accepted ratios of a channel's standard deviation to the given one."""
SAMPLED_LATENTS = 64
"""Latents whose values are read before a run, spread over the source."""
MIN_JUDGED_LATENTS = 16
"""Latents; the statistics of fewer tell nothing of all of them."""


class LatentForm(NamedTuple):
    """Expected form of latents."""

    codec: str
    """sd-vae or va-vae."""
    channels: int
    side: int
    flip: bool
    """A mirrored latent must lie beside each."""
    judged: bool = True
    """Their values must agree with codec and statistics."""


class UnfitValuesError(SettingError):
    """Raised where values of latents contradict their codec or statistics."""

    def __init__(self, message: str) -> None:
        super().__init__(message, judged="off")


def check_latents(form: LatentForm, listing: Listing, most: int = SAMPLED_LATENTS) -> ChannelSums:
    """Compare a sample of the latents of a source with their expected form.

    Args:
        form: The expected form.
        listing: The source.
        most: Largest number of latents that are read.

    Returns:
        Sums over those that were read.

    Raises:
        UnfitValuesError: If their values contradict codec or statistics.
        ValueError: If a latent cannot be read or has another form, or statistics are missing.
    """
    if listing.format == "npy" and form.codec != "sd-vae":
        raise SettingError(
            f"codec must be sd-vae for the .npy files of {listing.root}, but is {form.codec!r}",
            codec="sd-vae",
        )
    given = read_normalisation(listing.root, form.channels) if form.codec == "va-vae" else None
    last = len(listing) - 1
    places = sorted({round(last * n / max(most - 1, 1)) for n in range(most)})
    sums = []
    for place in places:
        rows = latent_rows(listing, place, place + 1)
        check_rows(form, listing, rows, place)
        sums.append(ChannelSums.of(torch.from_numpy(rows.latent), form.channels))
    total = reduce(ChannelSums.__add__, sums)
    check_values(form, total, given, rows=len(places))
    return total


def check_rows(form: LatentForm, listing: Listing, rows: LatentRows, first: int) -> None:
    """Raise ValueError unless rows from `first` on have the expected form."""
    expected = (latent_depth(listing.format, form.channels), form.side, form.side)
    name = listing.rows(first, first + 1)[0].name
    if rows.latent.shape[1:] != expected:
        raise SettingError(
            f"latents of {form.codec} must be {expected}, but those of {listing.root} from {name} "
            f"on are {rows.latent.shape[1:]}",
            channels="",
            side="",
        )
    if form.flip and rows.mirror is None:
        raise SettingError(
            f"flip must be off: {listing.root} holds no mirrored latents from {name} on", flip="off"
        )
    if form.judged and expected[0] == 2 * form.channels:
        _refuse(moment_problems(torch.from_numpy(rows.latent)[:, form.channels :]))


def check_values(
    form: LatentForm, sums: ChannelSums, given: tuple[Tensor, Tensor] | None, *, rows: int
) -> None:
    """Raise UnfitValuesError where sums over latents contradict codec or statistics."""
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
    rows: int = MIN_JUDGED_LATENTS,
) -> list[str]:
    """List contradictions between sums over latents and their codec or statistics.

    Args:
        codec: sd-vae: the spread is judged. Any other: `given` is, if there is one.
        sums: Of latents as they are stored, or of what is drawn from stored moments.
        given: Mean and standard deviation of each channel, (C,) float64, that are to be taken out.
        rows: How many latents these are; by a few, `given` is not judged.
    """
    if codec == "sd-vae":
        return _spread_problems(sums)
    return [] if given is None or rows < MIN_JUDGED_LATENTS else _statistics_problems(sums, *given)


def moment_problems(std: Tensor) -> list[str]:
    """List problems of standard deviations of posteriors, (N, C, H, W)."""
    least = float(std.min())
    if least >= 0:
        return []
    return [
        f"the second half of the channels goes down to {least:.3g}: it is a log-variance or a "
        f"sample, where a standard deviation is expected"
    ]


def overall(sums: ChannelSums) -> tuple[float, float]:
    """Compute mean and standard deviation over all channels together."""
    mean = sums.mean.mean()
    square = (sums.std.square() + sums.mean.square()).mean()
    return float(mean), float((square - mean.square()).clamp(min=0).sqrt())


def _spread_problems(sums: ChannelSums) -> list[str]:
    spread, (low, high) = overall(sums)[1], SD_STD_RANGE
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
    if offset > MAX_MEAN_OFFSET_STDS:
        problems.append(
            f"the means of the latents are up to {float(offset):.4g} spreads from "
            f"those in {STATISTICS} (at most {MAX_MEAN_OFFSET_STDS:g} is expected)"
        )
    low, high = STD_RATIO_RANGE
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


def statistics_only(path: Path) -> Path | None:
    """Return the file of statistics at a path without latents; None if latents lie there."""
    file = path if path.name == STATISTICS else path / STATISTICS
    lone = file.is_file() and (file == path or not any(path.glob("*.safetensors")))
    return file if lone else None
