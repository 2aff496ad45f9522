"""Delete-a-group jackknife of the Frechet distance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ig_core.metrics.frechet import PAIRED_NOISE_SHARE, FeatureStats, Frechet, _variance


class Jackknife(NamedTuple):
    """A value on all samples and on all but one group of samples, for each group (G,).

    Where the value is nearly quadratic in the samples, as FID near zero is, the spread over groups
    overstates its variance, and the variance grows with the true value. `noise`, `noise_share` and
    `slope` tell how much (see `ig_core.metrics.uncertainty`); without them nothing is corrected.
    """

    value: float
    without: Tensor
    noise: Tensor | None = None
    """(K, G): K independent errors of the values without a group. They are kept by group, so that
    those of two sets with the same noise cancel in a difference."""
    noise_share: float = 0.0
    """Share of the spread of these errors by which the spread over groups is too large."""
    slope: float = 0.0
    """Derivative of the variance by the true value."""

    @property
    def standard_error(self) -> float:
        """Standard error by the delete-one-group jackknife (Efron, Stein 1981), less the excess."""
        spread = _variance(self.without)
        noise = 0.0 if self.noise is None else _variance(self.noise)
        return math.sqrt(max(spread - self.noise_share * min(noise, spread), 0.0))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Compute the two-sided Student interval: true values from which this one is not too far.

        With a slope, the variance is taken at the true value, as in Wilson's interval for a
        proportion: |value - true|^2 <= q^2 (standard_error^2 + slope (true - value)).
        """
        quantile = student_quantile((1 + level) / 2, len(self.without) - 1)
        centre = quantile**2 * self.slope / 2
        half = math.hypot(centre, quantile * self.standard_error)
        return self.value + centre - half, self.value + centre + half

    def improvement_over(self, other: Jackknife) -> Jackknife:
        """Compute 1 - self / other, paired: both left out the same groups.

        Noise that both share cancels.

        Raises:
            ValueError: If the numbers of groups differ.
        """
        _require_same_groups(self, other)
        ratio = self.value / other.value
        # To first order; d (a / b) = (d a - a / b d b) / b.
        linear = self._combined(-1 / other.value, other, ratio / other.value)
        return linear._replace(value=1 - ratio, without=1 - self.without / other.without)

    def minus(self, other: Jackknife) -> Jackknife:
        """Compute self - other, paired: both left out the same groups.

        Raises:
            ValueError: If the numbers of groups differ.
        """
        _require_same_groups(self, other)
        return self._combined(1.0, other, -1.0)

    def _combined(self, weight: float, other: Jackknife, other_weight: float) -> Jackknife:
        """Compute the weighted sum of both, without slopes."""
        noise = None
        if self.noise is not None and other.noise is not None:
            noise = weight * self.noise + other_weight * other.noise
        return Jackknife(
            weight * self.value + other_weight * other.value,
            weight * self.without + other_weight * other.without,
            noise,
            0.0 if noise is None else PAIRED_NOISE_SHARE,
        )


def _require_same_groups(one: Jackknife, other: Jackknife) -> None:
    if len(one.without) != len(other.without):
        raise ValueError(
            f"a paired difference needs the same groups, but got "
            f"{len(one.without)} and {len(other.without)}"
        )


def student_quantile(probability: float, freedom: int) -> float:
    """Compute a quantile of Student's t by its Cornish-Fisher series (A. and Stegun 26.7.5)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * probability - 1, dtype=torch.float64)))
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def group_rows(rows: Tensor, groups: int, round_length: int = 1) -> tuple[Tensor, ...]:
    """Split rows: part g has rounds g R / G .. (g + 1) R / G of R, the last also the remainder."""
    rounds = len(rows) // round_length
    ends = [rounds * group // groups * round_length for group in range(1, groups)]
    return rows.tensor_split(ends)


def fid_jackknife(
    features: Tensor, reference: Frechet, groups: int, round_length: int = 1
) -> Jackknife:
    """Compute FID of features (N, F) with leave-one-group-out values for its sampling error.

    FID is a smooth function of means, so the jackknife captures its spread; the reference counts
    as fixed. The interval is for the expected FID at this N, which FID's bias puts above the FID
    of infinitely many samples. It costs G eigen-decompositions, and near zero the interval is
    wider than need be: `ig_core.metrics.uncertainty.fid_estimates` does better where N is large
    enough.

    Raises:
        ValueError: If there are fewer than two groups, or fewer than two rows a group.
    """
    if groups < 2 or len(features) < 2 * groups:
        raise ValueError(
            f"{groups} groups need at least 2 groups and {2 * groups} features, "
            f"but got {len(features)} features"
        )
    parts = [
        FeatureStats.from_features(part) for part in group_rows(features, groups, round_length)
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    without = [reference.distance(whole - part) for part in parts]
    return Jackknife(reference.distance(whole), torch.tensor(without, dtype=torch.float64))
