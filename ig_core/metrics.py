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
    shift: Tensor
    """Mean of the set minus that of the reference, (F,)."""
    factor: Tensor
    """(F, K): factor @ factor.T is the optimal transport map from the set to the reference."""
    roots: Tensor
    """Square roots of the K eigenvalues of S1^1/2 S2 S1^1/2 that are not rounding, (K,)."""


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
            raise ValueError(f"moments must have shapes (F,) and (F, F), but got "
                             f"{tuple(mean.shape)} and {tuple(covariance.shape)}")  # fmt: skip
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
        return Tangent(float(shift.square().sum() + trace - 2 * roots.sum()), shift, factor, roots)

    def _parts(self, stats: FeatureStats) -> tuple[Tensor, Tensor, Tensor]:
        """Difference of the means, sum of the traces, S1^1/2 S2 S1^1/2."""
        if stats.total.shape != self.mean.shape:
            raise ValueError(f"both sets must have features of one width, but got "
                             f"{len(stats.total)} and {len(self.mean)}")  # fmt: skip
        covariance = stats.covariance
        product = self.root @ covariance @ self.root
        return stats.mean - self.mean, self.trace + covariance.trace(), product


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Frechet distance of the Gaussians with the moments of a and b.

    Raises:
        ValueError: the feature widths differ, or a set has fewer than two samples.
    """
    return Frechet(a).distance(b)


class Jackknife(NamedTuple):
    """A value on all samples and on all but one group of samples, for each group (G,).

    Where the value is nearly quadratic in the samples, as FID near zero is, the spread over groups
    overstates its variance, and the variance grows with the true value. `excess` and `slope` tell
    how much (see `ig_core.uncertainty`); they are 0 where that is not known.
    """

    value: float
    without: Tensor
    excess: float = 0.0
    """What the spread over groups overstates the variance by."""
    slope: float = 0.0
    """Derivative of the variance by the true value."""

    @property
    def standard_error(self) -> float:
        """Delete-one-group jackknife standard error (Efron and Stein 1981), less the excess."""
        groups = len(self.without)
        spread = float((self.without - self.without.mean()).square().sum()) * (groups - 1) / groups
        return math.sqrt(max(spread - self.excess, 0.0))

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

        Noise that both share cancels; what they do not share near zero makes the interval wide.
        """
        return Jackknife(1 - self.value / other.value, 1 - self.without / other.without)

    def minus(self, other: Jackknife) -> Jackknife:
        """Self - other, paired: both left out the same groups.

        Raises:
            ValueError: the numbers of groups differ.
        """
        if len(self.without) != len(other.without):
            raise ValueError(f"a paired difference needs the same groups, but got "
                             f"{len(self.without)} and {len(other.without)}")  # fmt: skip
        return Jackknife(self.value - other.value, self.without - other.without)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * probability - 1, dtype=torch.float64)))
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def group_rows(rows: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Part g holds the rows g N / G .. (g + 1) N / G of N."""
    return rows.tensor_split([len(rows) * group // groups for group in range(1, groups)])


def fid_jackknife(features: Tensor, reference: Frechet, groups: int) -> Jackknife:
    """FID of features (N, F) with leave-one-group-out values for its sampling error.

    FID is a smooth function of means, so the jackknife captures its spread; the reference counts
    as fixed. The interval is for the expected FID at this N, which FID's bias puts above the FID
    of infinitely many samples. It costs G eigen-decompositions, and near zero the interval is
    wider than need be: `ig_core.uncertainty.fid_estimates` does better where N is large enough.

    Raises:
        ValueError: fewer than two groups, or fewer than two rows a group.
    """
    if groups < 2 or len(features) < 2 * groups:
        raise ValueError(f"{groups} groups need at least 2 groups and {2 * groups} features, "
                         f"but got {len(features)} features")  # fmt: skip
    parts = [FeatureStats.from_features(part) for part in group_rows(features, groups)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    without = [reference.distance(whole - part) for part in parts]
    return Jackknife(reference.distance(whole), torch.tensor(without, dtype=torch.float64))
