"""Intervals for FID, and FID without the bias of a finite sample.

FID of N samples is too large by c / N + d / N^2 + ... (Chong and Forsyth 2020 fit a line in 1 / N).
The reference counts as fixed. What is estimated here, from one set of features:

* **FID at N** and an interval for its expectation at this N: what papers report.
* **FID at infinity** and an interval for the distance of the distributions themselves. FID of the
  whole, of all pairs of quarters and of the quarters are known at N, N / 2 and N / 4; the
  combination 8/3, -2, 1/3 has neither c nor d left in it (Richardson extrapolation). All six pairs
  are used, since one pair of halves would add twice the noise.

The **spread** is that of the cross-fitted infinitesimal jackknife. To second order (von Mises 1947,
Hoeffding 1948) FID is the mean of its derivative g by the rows and of a kernel h of pairs of rows,

    FID(N) = FID + 1/N sum_i g(x_i) + 1/N^2 sum_ij h(x_i, x_j),                              (1)

and where x_i and x_j are of different quarters, 4/3 h is all that is left of h in FID at infinity.
With V = Var g and H = E h^2 the variances are

    Var FID(N) = (V + 2 H / N) / N,      Var FID(infinity) = (V + 8/3 H / N) / N.            (2)

The derivative at one quarter, by the rows of another, is g(x) + 8/N sum_j h(x, x_j), j in the
first: its own row is not in it, as it is in the infinitesimal jackknife proper (Jaeckel 1972),
which finds too small a spread. The derivatives at the three quarters that do not hold the row, g1,
g2, g3, and at their union, g123, give the derivative without the bias of their sizes and an
estimate of the variance of its error, that of a mean of three independent values:

    D = 3/2 g123 - 1/2 (g1 + g2 + g3) / 3,      R = Var(g1, g2, g3) / 3.                     (3)

Both are averaged by group of rows, G groups in all, and S is the variance of the mean of D over
groups, R that of its error. A jackknife's variance is too large in the mean (Efron and Stein 1981):

    E S = (V + 16/3 H / N) / N,      E R = 16/3 H / N^2,                                     (4)

    Var FID(N) = S - 5/8 R,      Var FID(infinity) = S - 1/2 R,                              (5)

with R <= S, since V >= 0. Of FID(N) 1/2 R is subtracted too: terms of third order, neglected here,
add to its variance where N is small. A share 1/K less of R is subtracted: K = (bias N)^2 / H is
how many directions the bias comes from (exactly, if they are alike), and few of them make FID
skewed. Of paired differences and ratios, D and g1 .. g3 are the differences, and 2/5 R is
subtracted always, since those terms show most in ratios. (The derivation gives 5/8 and 1/2; 1/2 and
2/5 were chosen on simulated cases such as `benchmarks/fid_coverage.py` has.)

**Stratified rows.** Where labels go round, as they do in class-balanced samples, and each group
holds whole rounds, all of this holds within the classes: only what varies within them is left of
g and h (Cochran 1977, chapter 5: of a stratified mean), in S and in R alike, since the means of
groups vary by nothing else. No class has to be known, and no features have to be Gaussian.

V grows with the distance. In one direction V + 4 H / N is 4 k times the distance of N samples in
the mean, so that (S - R / 4) / FID(N) estimates 4 k; it is the slope of `Jackknife.interval`.

**Least N.** The hardest features are F of equal variances (of the spectra tried), and for them the
series is known (Marchenko-Pastur law: 1 - y/8 - y^2/64 - 5 y^3/1024 ..., y = F / N). What the
extrapolation leaves of it stays below half a standard error, at a distance of zero, for
N >= F^1.5 / 2; below 10 F, and below 100, other neglected terms show. With fewer rows there is no
FID at infinity, and the interval for FID at N is the plain jackknife's, too wide near zero.

`benchmarks/fid_coverage.py` measures all this, on class-balanced and on independent rows.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ig_core.metrics.frechet import FeatureStats
from ig_core.metrics.jackknife import Jackknife, fid_jackknife, group_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ig_core.metrics.frechet import Frechet, Tangent

EXACT_WIDTH = 256
"""Widest features whose groups are left out one by one."""
PARTS = 4
"""Quarters: the sizes N, N / 2 and N / 4 are at hand."""
FEWEST_GROUPS = 5
"""Fewer groups of whole rounds give no interval worth having: the rows are shuffled instead."""


class FidEstimates(NamedTuple):
    """FID of a sample and FID of the distribution that it was drawn from."""

    at_size: Jackknife
    """FID at this N; the interval is for its expectation at this N."""
    infinite: Jackknife | None
    """FID at infinity, without bias (so it can fall below 0); None where N is too small."""


def least_count(width: int) -> int:
    """Return the fewest rows of F features from which FID at infinity is estimated."""
    return max(100, 10 * width, math.ceil(width**1.5 / 2))


def fid_estimates(
    features: Tensor,
    reference: Frechet,
    groups: int = 50,
    shuffle_seed: int | None = None,
    round_length: int = 1,
) -> FidEstimates:
    """Estimate FID of features (N, F) at N and at infinity, with intervals for both.

    Any run of whole rounds must be a fair sample of the whole, as rows in the order of their
    drawing are, or rows whose labels go round. Others, such as files sorted by class, need a
    `shuffle_seed`. To compare two sets, pair by the same noise, order, groups and seed.

    It costs 15 eigen-decompositions of an F x F matrix, eight of them with vectors, and 3 N F^2
    multiplications; with fewer than `least_count` rows, `groups` decompositions.

    Args:
        features: Rows are images.
        reference: What the distance is to.
        groups: Groups of the jackknife, as in `fid_jackknife`; fewer, where there are fewer rounds.
        shuffle_seed: Permutes the rows first; None leaves them as they are.
        round_length: Rows after which the labels begin again, the number of classes; 1 where
            labels are random. A group holds whole rounds, or the difference between classes would
            count as noise. Where there are not even five rounds, the rows are shuffled: the
            interval is too wide then, and there is no FID at infinity, whose quarters would have
            random labels while the whole has not.

    Raises:
        ValueError: If there are fewer than two groups or fewer than two rows a group, or the width
            is not the reference's.
    """
    matrix = features.dim() == 2 and groups >= 2
    rounds = len(features) // round_length
    whole_rounds = round_length == 1 or rounds >= FEWEST_GROUPS
    if not whole_rounds:
        round_length, shuffle_seed = 1, 0 if shuffle_seed is None else shuffle_seed
    elif round_length > 1:
        groups = min(groups, rounds)
    if matrix and shuffle_seed is not None:
        generator = torch.Generator().manual_seed(shuffle_seed)
        features = features[torch.randperm(len(features), generator=generator)]
    if (
        not (matrix and whole_rounds)
        or groups < PARTS
        or len(features) < max(2 * groups, least_count(features.shape[1]))
    ):
        return FidEstimates(_uncorrected(features, reference, groups, round_length), None)
    # What is left over after the last whole round counts in FID, but is no fair part of a group.
    whole = len(features) // round_length * round_length
    parts = quarter_groups(features[:whole], groups, round_length)
    quarters = [FeatureStats.from_features(torch.cat(part)) for part in parts]
    if whole < len(features):
        quarters[-1] = quarters[-1] + FeatureStats.from_features(features[whole:])
    at_size = reference.distance(quarters[0] + quarters[1] + quarters[2] + quarters[3])
    infinite = extrapolate_fid(at_size, quarters, reference)
    slopes, errors = cross_fitted_slopes(parts, quarters, reference)
    spread, noise = _variance_of_mean(slopes), _variance_of_mean(errors)
    noise = min(noise, spread)
    # H / N^2 is 3/16 of R.
    directions = max((at_size - infinite) ** 2 / (3 / 16 * noise), 1.0) if noise > 0 else 1.0
    few = 1 - 1 / directions
    slope = (spread - noise / 4) / at_size if at_size > 0 else 0.0
    without, of_noise = _left_out(slopes), _left_out(errors)
    return FidEstimates(
        Jackknife(at_size, at_size + without, of_noise, few / 2, slope),
        Jackknife(infinite, infinite + without, of_noise, few / 2, slope),
    )


def quarter_groups(features: Tensor, groups: int, round_length: int) -> list[list[Tensor]]:
    """Split rows into four quarters of whole groups."""
    rows = group_rows(features, groups, round_length)
    ends = [len(rows) * part // PARTS for part in range(PARTS + 1)]
    return [list(rows[start:end]) for start, end in itertools.pairwise(ends)]


def extrapolate_fid(whole: float, quarters: list[FeatureStats], reference: Frechet) -> float:
    """Extrapolate FID to infinity from FID at N and from four fair quarters of its N rows.

    Quarters differ by a group where the groups cannot be divided by four. Weighted by their rows,
    all rows count alike, and c / N is removed exactly.
    """
    pairs = [a + b for a, b in itertools.combinations(quarters, 2)]
    by_pairs, by_quarters = _weighted_fid(pairs, reference), _weighted_fid(quarters, reference)
    return 8 / 3 * whole - 2 * by_pairs + by_quarters / 3


def _weighted_fid(parts: list[FeatureStats], reference: Frechet) -> float:
    """Compute the mean FID of parts, weighted by their numbers of rows."""
    total = sum(part.count for part in parts)
    return sum(part.count * reference.distance(part) for part in parts) / total


def cross_fitted_slopes(
    parts: list[list[Tensor]], quarters: list[FeatureStats], reference: Frechet
) -> tuple[Tensor, Tensor]:
    """Compute D of formula (3) by group, (G,), and three independent errors of it, (3, G).

    Both are less their mean and scaled to groups of one size. The errors are those of g1, g2 and g3
    from their mean, scaled so that their variances add up to R.
    """
    whole = quarters[0] + quarters[1] + quarters[2] + quarters[3]
    alone = [reference.tangent(quarter) for quarter in quarters]
    slopes, errors = [], []
    for index, part in enumerate(parts):
        union = reference.tangent(whole - quarters[index])
        derivatives = _Derivatives([union, *alone[:index], *alone[index + 1 :]], whole)
        means = derivatives.means(part)
        single, centre = means[1:], means[1:].mean(0)
        slopes.append(3 / 2 * means[0] - centre / 2)
        # Their variance has two degrees of freedom; that of the mean of three is a third of it.
        errors.append((single - centre) / math.sqrt(2 * 3))
    values = torch.cat([torch.cat(slopes)[None], torch.cat(errors, dim=1)])
    # The variance of a group's mean goes by the number of its rows.
    counts = torch.tensor([len(rows) for part in parts for rows in part], dtype=torch.float64)
    weights = counts / counts.mean()
    values = (values - (values * weights).mean(1, keepdim=True)) * weights.sqrt()
    return values[0], values[1:]


class _Derivatives:
    """Derivatives of FID at K sets by the share of a row x, each less its mean over all rows.

    2 (m - m1) . (x - m) + (x - m)^T (1 - W) (x - m), m the mean of the set, m1 the reference's. All
    of one mean: otherwise quarters would differ by the constants of their derivatives.
    """

    def __init__(self, tangents: list[Tangent], whole: FeatureStats) -> None:
        transports = torch.stack([tangent.factor @ tangent.factor.T for tangent in tangents])
        self.forms = torch.eye(len(whole.mean), dtype=torch.float64) - transports
        centres = torch.stack([tangent.mean for tangent in tangents])
        shifts = torch.stack([tangent.shift for tangent in tangents])
        # (x - m)^T A (x - m) = x^T A x - 2 x^T A m + a constant
        self.lines = 2 * (shifts - (self.forms @ centres[:, :, None])[:, :, 0])
        squares = self.forms.flatten(1) @ whole.outer.flatten() / whole.count
        self.overall = squares + self.lines @ whole.mean

    def means(self, groups: Sequence[Tensor]) -> Tensor:
        """Compute means over each of G groups of rows (N, F), (K, G)."""
        flat, squares, centres = self.forms.flatten(1), [], []
        for group in groups:
            rows = group.double()
            squares.append(flat @ (rows.T @ rows).flatten() / len(rows))
            centres.append(rows.mean(0))
        linear = self.lines @ torch.stack(centres, dim=1)
        return torch.stack(squares, dim=1) + linear - self.overall[:, None]


def _variance_of_mean(values: Tensor) -> float:
    """Compute the variance of the mean of groups' values (..., G), added over all but groups."""
    groups = values.shape[-1]
    centred = values - values.mean(-1, keepdim=True)
    return float(centred.square().sum()) / (groups * (groups - 1))


def _left_out(slopes: Tensor) -> Tensor:
    """Compute the first-order change of FID where a group is left out, (..., G)."""
    return (slopes.mean(-1, keepdim=True) - slopes) / (slopes.shape[-1] - 1)


def _uncorrected(features: Tensor, reference: Frechet, groups: int, round_length: int) -> Jackknife:
    """Compute FID at N where there are too few rows for more.

    Of wide features the derivative stands for leaving groups out: it needs one decomposition
    instead of one for each group, and agrees with it to 10 % of the error where N >= 2 F.
    """
    if (
        features.dim() != 2
        or features.shape[1] <= EXACT_WIDTH
        or groups < 2
        or len(features) < max(2 * groups, 2 * features.shape[1])
    ):
        return fid_jackknife(features, reference, groups, round_length)
    whole = FeatureStats.from_features(features)
    tangent = reference.tangent(whole)
    slopes = _Derivatives([tangent], whole).means(group_rows(features, groups, round_length))[0]
    return Jackknife(tangent.value, tangent.value + _left_out(slopes))
