"""Frechet distance between image sets: mergeable statistics of features, and FID.

FID is the squared Frechet distance of two Gaussians fitted to features (Heusel et al. 2017).
Its intervals are in `jackknife` and `uncertainty`, other metrics in `scores`.
"""

from __future__ import annotations

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
        """Compute the statistics of features (N, F).

        Raises:
            ValueError: If the features are not a matrix or not finite.
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
        """Take a part of the features out of the statistics."""
        return FeatureStats(
            self.count - other.count, self.total - other.total, self.outer - other.outer
        )

    @property
    def mean(self) -> Tensor:
        """Mean, (F,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (F, F).

        Raises:
            ValueError: If there are fewer than two samples.
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
        """Make distances to the Gaussian with mean (F,) and unbiased covariance (F, F).

        Raises:
            ValueError: If the shapes do not match.
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
        """Compute |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2).

        The product under the root is symmetric and positive semi-definite, so its eigenvalues are
        real; no square root of a general matrix is taken.

        Raises:
            ValueError: If the feature widths differ.
        """
        shift, trace, product = self._parts(stats)
        cross = torch.linalg.eigvalsh(product).clamp_min(0).sqrt().sum()
        return float(shift.square().sum() + trace - 2 * cross)

    def tangent(self, stats: FeatureStats) -> Tangent:
        """Compute the distance and its derivative by the moments of the set.

        d tr(S1^1/2 S2 S1^1/2)^1/2 = 1/2 tr(W dS2), where W = S1^1/2 (S1^1/2 S2 S1^1/2)^-1/2 S1^1/2
        maps the set's Gaussian to the reference's. Eigenvalues that are rounding have no direction
        to speak of, and add nothing to W: along them the set does not vary.

        Raises:
            ValueError: If the feature widths differ.
        """
        shift, trace, product = self._parts(stats)
        values, vectors = torch.linalg.eigh(product)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        roots = values[kept].sqrt()
        factor = self.root @ (vectors[:, kept] / roots.sqrt())
        value = float(shift.square().sum() + trace - 2 * roots.sum())
        return Tangent(value, stats.mean, shift, factor)

    def _parts(self, stats: FeatureStats) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the difference of the means, the sum of the traces, S1^1/2 S2 S1^1/2."""
        if stats.total.shape != self.mean.shape:
            raise ValueError(
                f"both sets must have features of one width, but got "
                f"{len(stats.total)} and {len(self.mean)}"
            )
        covariance = stats.covariance
        product = self.root @ covariance @ self.root
        return stats.mean - self.mean, self.trace + covariance.trace(), product


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Compute the squared Frechet distance of the Gaussians with the moments of a and b.

    Raises:
        ValueError: If the feature widths differ, or a set has fewer than two samples.
    """
    return Frechet(a).distance(b)


PAIRED_NOISE_SHARE = 0.4
"""`noise_share` of a difference: less than that of its parts (see
`ig_core.metrics.uncertainty`)."""


def _variance(values: Tensor) -> float:
    """Compute the jackknife variance of values (..., G) by group, added over all but groups."""
    groups = values.shape[-1]
    centred = values - values.mean(-1, keepdim=True)
    return float(centred.square().sum()) * (groups - 1) / groups
