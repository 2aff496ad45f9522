"""How far to trust an FID: intervals for it, and FID without the bias of a finite sample.

FID of N samples is too large by c / N + d / N^2 + ... (Chong and Forsyth 2020 fit a line in 1 / N).
The reference counts as fixed. What is estimated here, from one set of features:

* **FID at N** and an interval for its expectation at this N: what papers report.
* **FID at infinity** and an interval for the distance of the distributions themselves. FID of the
  whole, of all pairs of quarters and of the quarters are known at N, N / 2 and N / 4; the
  combination 8/3, -2, 1/3 has neither c nor d left in it (Richardson extrapolation). All six pairs
  are used, since one pair of halves would add twice the noise.

The **spread** comes from the derivative of FID by each row (infinitesimal jackknife, Jaeckel 1972),
averaged in G groups as one eigen-decomposition gives it. To second order FID is its derivative g
plus a kernel h of pairs of rows (von Mises expansion), with variance (V(g) + 2 E h^2 / N) / N, or
8/3 instead of 2 after the extrapolation, while the squared derivatives average to
(V(g) + 4 E h^2 / N) / N. The excess is subtracted with E h^2 as for Gaussian features,

    E h^2 = tr S^2 + 1/2 sum_ab a b / (a^1/2 + b^1/2)^2,   a, b the eigenvalues of S1^1/2 S S1^1/2,

but no more of it than there can be (V(g) = 0), and a share 1/K less: K = (bias N)^2 / E h^2 is how
many directions the bias comes from (exactly, if they are alike), and few of them make FID skewed.
V(g) grows with the distance. In one direction the variance is 4 k times the distance, plus a
constant, and spread / FID(N) estimates 4 k without bias; this is the slope of
`Jackknife.interval`.

**Least N.** The hardest features are F of equal variances (of the spectra tried), and for them the
series is known (Marchenko-Pastur law: 1 - y/8 - y^2/64 - 5 y^3/1024 ..., y = F / N). What the
extrapolation leaves of it stays below half a standard error, at a distance of zero, for
N >= F^1.5 / 2; below 10 F, and below 100, other neglected terms show. With fewer rows there is no
FID at infinity, and the interval for FID at N is the plain jackknife's, too wide near zero.

`benchmarks/fid_coverage.py` measures all this. Where a single direction carries a small distance,
FID is skewed and the 95 % intervals hold the truth in some 91 %.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ig_core.metrics import FeatureStats, Jackknife, fid_jackknife, group_rows

if TYPE_CHECKING:
    from ig_core.metrics import Frechet, Tangent

EXACT_WIDTH = 256
"""Widest features whose groups are left out one by one."""
PARTS = 4
"""Quarters: the sizes N, N / 2 and N / 4 are at hand."""


class FidEstimates(NamedTuple):
    """FID of a sample and FID of the distribution that it was drawn from."""

    at_size: Jackknife
    """FID at this N; the interval is for its expectation at this N."""
    infinite: Jackknife | None
    """FID at infinity, without bias (so it can fall below 0); None where N is too small."""


def least_count(width: int) -> int:
    """Fewest rows of F features from which FID at infinity is estimated."""
    return max(100, 10 * width, math.ceil(width**1.5 / 2))


def fid_estimates(
    features: Tensor, reference: Frechet, groups: int = 50, shuffle_seed: int | None = None
) -> FidEstimates:
    """FID of features (N, F) at N and at infinity, with intervals for both.

    Any run of consecutive rows must be a fair sample of the whole, as rows in the order of their
    drawing are, or rows whose labels go round. Others, such as files sorted by class, need a
    `shuffle_seed`. To compare two sets, pair by the same noise, order, groups and seed.

    It costs 11 eigen-decompositions of an F x F matrix, one of them with vectors, and 4 N F^2
    multiplications; with fewer than `least_count` rows, `groups` decompositions.

    Args:
        features: Rows are images.
        reference: What the distance is to.
        groups: Groups of the jackknife, as in `fid_jackknife`.
        shuffle_seed: Permutes the rows first; None leaves them as they are.

    Raises:
        ValueError: fewer than two groups, fewer than two rows a group, or another width than the
            reference's.
    """
    if features.dim() == 2 and shuffle_seed is not None:
        generator = torch.Generator().manual_seed(shuffle_seed)
        features = features[torch.randperm(len(features), generator=generator)]
    if (
        features.dim() != 2
        or groups < 2
        or len(features) < max(2 * groups, least_count(features.shape[1]))
    ):
        return FidEstimates(_without_correction(features, reference, groups), None)
    quarters = [FeatureStats.from_features(part) for part in group_rows(features, PARTS)]
    whole = quarters[0] + quarters[1] + quarters[2] + quarters[3]
    tangent = reference.tangent(whole)
    infinite = extrapolate_fid(tangent.value, quarters, reference)
    without = _linear_without(features, whole.mean, tangent, groups)
    at_size = Jackknife(tangent.value, tangent.value + without)
    spread, pairs = at_size.standard_error**2, second_order(whole, tangent)
    directions = max((tangent.value - infinite) ** 2 / pairs, 1.0) if pairs > 0 else 1.0
    counted = pairs * (1 - 1 / directions)
    slope = spread / tangent.value if tangent.value > 0 else 0.0
    return FidEstimates(
        at_size._replace(excess=min(2 * counted, spread / 2), slope=slope),
        Jackknife(infinite, infinite + without, min(4 / 3 * counted, spread / 3), slope),
    )


def _without_correction(features: Tensor, reference: Frechet, groups: int) -> Jackknife:
    """FID at N where there are too few rows for more.

    Of wide features the derivative stands for leaving groups out: it needs one decomposition
    instead of one for each group, and agrees with it to 10 % of the error where N >= 2 F.
    """
    if features.dim() != 2 or features.shape[1] <= EXACT_WIDTH or groups < 2:
        return fid_jackknife(features, reference, groups)
    if len(features) < max(2 * groups, 2 * features.shape[1]):
        return fid_jackknife(features, reference, groups)
    stats = FeatureStats.from_features(features)
    tangent = reference.tangent(stats)
    without = _linear_without(features, stats.mean, tangent, groups)
    return Jackknife(tangent.value, tangent.value + without)


def extrapolate_fid(whole: float, quarters: list[FeatureStats], reference: Frechet) -> float:
    """FID at infinity from FID at N and from four fair quarters of its N rows."""
    pairs = [reference.distance(a + b) for a, b in itertools.combinations(quarters, 2)]
    singles = [reference.distance(part) for part in quarters]
    return 8 / 3 * whole - 2 * sum(pairs) / len(pairs) + sum(singles) / len(singles) / 3


def second_order(stats: FeatureStats, tangent: Tangent) -> float:
    """E h^2 / N^2 of the module's docstring for Gaussian features."""
    roots = tangent.roots
    pairs = torch.outer(roots, roots) / (roots[:, None] + roots)
    total = stats.covariance.square().sum() + pairs.square().sum() / 2
    return float(total) / stats.count**2


def _linear_without(features: Tensor, mean: Tensor, tangent: Tangent, groups: int) -> Tensor:
    """What FID changes by, to first order, where a group of rows is left out, (G,).

    The derivative by the share of a row x is 2 (m - m1) . (x - m) + (x - m)^T (1 - W) (x - m), up
    to a constant that makes its mean 0.
    """
    means = []
    for part in group_rows(features, groups):
        centred = part.double() - mean
        squares = centred.square().sum(1) - (centred @ tangent.factor).square().sum(1)
        means.append((squares + 2 * centred @ tangent.shift).mean())
    by_group = torch.stack(means)
    return (by_group.mean() - by_group) / (groups - 1)
