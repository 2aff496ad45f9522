"""Distances between image sets, from features: mergeable statistics, FID, intervals.

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


class Frechet:
    """Frechet distances to one reference, whose matrix square root is computed once."""

    def __init__(self, reference: FeatureStats) -> None:
        self.mean, covariance = reference.mean, reference.covariance
        self.trace = covariance.trace()
        values, vectors = torch.linalg.eigh(covariance)
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def distance(self, stats: FeatureStats) -> float:
        """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

        The product under the root is symmetric and positive semi-definite, so its eigenvalues are
        real; no square root of a general matrix is taken.

        Raises:
            ValueError: the feature widths differ.
        """
        if stats.total.shape != self.mean.shape:
            raise ValueError(f"both sets must have features of one width, but got "
                             f"{len(stats.total)} and {len(self.mean)}")  # fmt: skip
        covariance = stats.covariance
        values = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
        shift = (stats.mean - self.mean).square().sum()
        cross = values.clamp_min(0).sqrt().sum()
        return float(shift + self.trace + covariance.trace() - 2 * cross)


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Frechet distance of the Gaussians with the moments of a and b.

    Raises:
        ValueError: the feature widths differ, or a set has fewer than two samples.
    """
    return Frechet(a).distance(b)


class Jackknife(NamedTuple):
    """A value on all samples and on all but one group of samples, for each group (G,)."""

    value: float
    without: Tensor

    @property
    def standard_error(self) -> float:
        """Delete-one-group jackknife standard error (Efron and Stein 1981)."""
        groups = len(self.without)
        spread = (self.without - self.without.mean()).square().sum()
        return math.sqrt(float(spread) * (groups - 1) / groups)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided Student interval around the value."""
        half = student_quantile((1 + level) / 2, len(self.without) - 1) * self.standard_error
        return self.value - half, self.value + half

    def improvement_over(self, other: Jackknife) -> Jackknife:
        """1 - self / other, paired: both left out the same groups."""
        return Jackknife(1 - self.value / other.value, 1 - self.without / other.without)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * probability - 1, dtype=torch.float64)))
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


def fid_jackknife(features: Tensor, reference: Frechet, groups: int) -> Jackknife:
    """FID of features (N, F) with leave-one-group-out values for its sampling error.

    FID is a smooth function of means, so the jackknife captures its spread; the reference counts
    as fixed. The interval is for the expected FID at this N, which FID's bias puts above the FID
    of infinitely many samples. Group g holds the rows g N / G .. (g + 1) N / G.

    Raises:
        ValueError: fewer than two groups, or fewer than two rows a group.
    """
    if groups < 2 or len(features) < 2 * groups:
        raise ValueError(f"{groups} groups need at least 2 groups and {2 * groups} features, "
                         f"but got {len(features)} features")  # fmt: skip
    ends = [len(features) * group // groups for group in range(1, groups)]
    parts = [FeatureStats.from_features(part) for part in features.tensor_split(ends)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    without = [reference.distance(whole - part) for part in parts]
    return Jackknife(reference.distance(whole), torch.tensor(without, dtype=torch.float64))
