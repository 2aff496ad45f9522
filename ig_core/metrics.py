"""Distances between image sets, from features: mergeable statistics, FID, the jackknife.

FID is the squared Frechet distance of two Gaussians fitted to features (Heusel et al. 2017).
Kernel distance, precision, recall and Inception Score are torch-fidelity's own functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureStats:
    """Count, sum and sum of outer products of features; float64, merged with `+`."""

    count: int
    total: Tensor
    """(F,)"""
    outer: Tensor
    """(F, F)"""

    @classmethod
    def from_features(cls, features: Tensor) -> FeatureStats:
        """Statistics of features (N, F).

        Raises:
            ValueError: the features are not a matrix or not finite.
        """
        if features.dim() != 2:
            raise ValueError(f"features must have shape (N, F), but got {tuple(features.shape)}")
        features = features.double()
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite, but some are NaN or infinite")
        return cls(len(features), features.sum(dim=0), features.T @ features)

    def __add__(self, other: FeatureStats) -> FeatureStats:
        return FeatureStats(
            self.count + other.count, self.total + other.total, self.outer + other.outer
        )

    def __sub__(self, other: FeatureStats) -> FeatureStats:
        """Statistics without a part of the features."""
        return FeatureStats(
            self.count - other.count, self.total - other.total, self.outer - other.outer
        )

    @property
    def mean(self) -> Tensor:
        """(F,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (F, F).

        Raises:
            ValueError: there are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, but got {self.count}")
        centred = self.outer - torch.outer(self.total, self.total) / self.count
        return centred / (self.count - 1)


class Tangent(NamedTuple):
    """A Frechet distance and what its derivative is made of (Bures-Wasserstein geometry)."""

    value: float
    mean: Tensor
    """Mean of the set, (F,)."""
    shift: Tensor
    """Mean of the set minus that of the reference, (F,)."""
    factor: Tensor
    """(F, K): factor @ factor.T is the optimal transport map from the set to the reference."""


class Frechet:
    """Frechet distances to one reference, whose matrix square root is computed once."""

    def __init__(self, reference: FeatureStats) -> None:
        self._fix(reference.mean, reference.covariance)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> Frechet:
        """Distances to a Gaussian given by its mean (F,) and unbiased covariance (F, F).

        Raises:
            ValueError: the shapes do not fit each other.
        """
        if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"moments must have shapes (F,) and (F, F), but got "
                f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        self = cls.__new__(cls)
        self._fix(mean.double(), covariance.double())
        return self

    def _fix(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.trace = mean, covariance.trace()
        values, vectors = torch.linalg.eigh(covariance)
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(self, stats: FeatureStats) -> float:
        """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

        The product under the root is symmetric and positive semi-definite, so its eigenvalues are
        real; no square root of a general matrix is taken.

        Raises:
            ValueError: the feature widths differ.
        """
        shift, trace, product = self._parts(stats)
        cross = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
        return float(shift.square().sum() + trace - 2 * cross)

    def tangent(self, stats: FeatureStats) -> Tangent:
        """The distance and its derivative by the moments of the set.

        d tr(S1^1/2 S2 S1^1/2)^1/2 = 1/2 tr(W dS2), where W = S1^1/2 (S1^1/2 S2 S1^1/2)^-1/2 S1^1/2
        maps the set's Gaussian to the reference's. Eigenvalues that are rounding have no direction
        to speak of, and add nothing to W: along them the set does not vary.

        Raises:
            ValueError: the feature widths differ.
        """
        shift, trace, product = self._parts(stats)
        values, vectors = torch.linalg.eigh(product)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        roots = values[kept].sqrt()
        factor = self.root @ (vectors[:, kept] / roots.sqrt())
        value = float(shift.square().sum() + trace - 2 * roots.sum())
        return Tangent(value, stats.mean, shift, factor)

    def _parts(self, stats: FeatureStats) -> tuple[Tensor, Tensor, Tensor]:
        """Difference of the means, sum of the traces, S1^1/2 S2 S1^1/2."""
        if stats.total.shape != self.mean.shape:
            raise ValueError(
                f"both sets must have features of one width, but got "
                f"{len(stats.total)} and {len(self.mean)}"
            )
        covariance = stats.covariance
        product = self.root @ covariance @ self.root
        return stats.mean - self.mean, self.trace + covariance.trace(), product


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Frechet distance of the Gaussians with the moments of a and b.

    Raises:
        ValueError: the feature widths differ, or a set has fewer than two samples.
    """
    return Frechet(a).distance(b)


PAIRED_NOISE_SHARE = 0.4
"""`noise_share` of a difference: less than that of its parts (see `ig_core.uncertainty`)."""


class Jackknife(NamedTuple):
    """A value on all samples and on all but one group of samples, for each group (G,).

    Where the value is nearly quadratic in the samples, as FID near zero is, the spread over groups
    overstates its variance, and the variance grows with the true value. `noise`, `noise_share` and
    `slope` tell how much (see `ig_core.uncertainty`); without them nothing is corrected.
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
        """Delete-one-group jackknife standard error (Efron and Stein 1981), less the excess."""
        spread = _variance(self.without)
        noise = 0.0 if self.noise is None else _variance(self.noise)
        return math.sqrt(max(spread - self.noise_share * min(noise, spread), 0.0))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided Student interval: the true values from which this one is not too far.

        With a slope, the variance is taken at the true value, as in Wilson's interval for a
        proportion: |value - true|^2 <= q^2 (standard_error^2 + slope (true - value)).
        """
        quantile = student_quantile((1 + level) / 2, len(self.without) - 1)
        centre = quantile**2 * self.slope / 2
        half = math.hypot(centre, quantile * self.standard_error)
        return self.value + centre - half, self.value + centre + half

    def improvement_over(self, other: Jackknife) -> Jackknife:
        """1 - self / other, paired: both left out the same groups.

        Noise that both share cancels.

        Raises:
            ValueError: the numbers of groups differ.
        """
        _require_same_groups(self, other)
        ratio = self.value / other.value
        # To first order; d (a / b) = (d a - a / b d b) / b.
        linear = self._combined(-1 / other.value, other, ratio / other.value)
        return linear._replace(value=1 - ratio, without=1 - self.without / other.without)

    def minus(self, other: Jackknife) -> Jackknife:
        """Self - other, paired: both left out the same groups.

        Raises:
            ValueError: the numbers of groups differ.
        """
        _require_same_groups(self, other)
        return self._combined(1.0, other, -1.0)

    def _combined(self, weight: float, other: Jackknife, other_weight: float) -> Jackknife:
        """The sum of both, weighted, without slopes."""
        noise = None
        if self.noise is not None and other.noise is not None:
            noise = weight * self.noise + other_weight * other.noise
        return Jackknife(
            weight * self.value + other_weight * other.value,
            weight * self.without + other_weight * other.without,
            noise,
            0.0 if noise is None else PAIRED_NOISE_SHARE,
        )


def _variance(values: Tensor) -> float:
    """Delete-one-group jackknife variance of values (..., G), added over all but groups."""
    groups = values.shape[-1]
    centred = values - values.mean(-1, keepdim=True)
    return float(centred.square().sum()) * (groups - 1) / groups


def _require_same_groups(one: Jackknife, other: Jackknife) -> None:
    if len(one.without) != len(other.without):
        raise ValueError(
            f"a paired difference needs the same groups, but got "
            f"{len(one.without)} and {len(other.without)}"
        )


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * probability - 1, dtype=torch.float64)))
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def group_rows(rows: Tensor, groups: int, round_length: int = 1) -> tuple[Tensor, ...]:
    """Part g holds the rounds g R / G .. (g + 1) R / G of R, the last also what is left over."""
    rounds = len(rows) // round_length
    ends = [rounds * group // groups * round_length for group in range(1, groups)]
    return rows.tensor_split(ends)


def fid_jackknife(
    features: Tensor, reference: Frechet, groups: int, round_length: int = 1
) -> Jackknife:
    """FID of features (N, F) with leave-one-group-out values for its sampling error.

    FID is a smooth function of means, so the jackknife captures its spread; the reference counts
    as fixed. The interval is for the expected FID at this N, which FID's bias puts above the FID
    of infinitely many samples. It costs G eigen-decompositions, and near zero the interval is
    wider than need be: `ig_core.uncertainty.fid_estimates` does better where N is large enough.

    Raises:
        ValueError: fewer than two groups, or fewer than two rows a group.
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
