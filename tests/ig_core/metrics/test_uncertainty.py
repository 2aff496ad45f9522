import functools
import math

import numpy as np
import pytest
import torch

from ig_core.metrics.frechet import FeatureStats, Frechet, Tangent
from ig_core.metrics.jackknife import Jackknife, fid_jackknife, group_rows
from ig_core.metrics.uncertainty import extrapolate_fid, fid_estimates, least_count

MANY = 500
FEW = 100
"""Repeats of an experiment on coverage: `slow`, and as a part of every run of the tests."""


def of(x):
    return FeatureStats.from_features(x)


def draw(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def standard(width):
    """Distances to the standard normal distribution."""
    return Frechet.from_moments(torch.zeros(width), torch.eye(width))


def decaying(width):
    return torch.logspace(0, -6, width, dtype=torch.float64)


CASES = {
    # name: (variances of the reference, deviations over the reference's, shift of the mean)
    "equal": (torch.ones(8).double(), 1.0, 0.0),
    "near": (torch.ones(8).double(), 1.02, 0.02),
    "far": (torch.ones(8).double(), 1.3, 0.3),
    "ill-conditioned": (decaying(8), 1.2, 0.02),
}


REPEATED = [("near", FEW), *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in CASES)]


@functools.cache
def repeated(name, repeats):
    """The distance, and the estimates of that many samples of 200 rows."""
    variances, scale, shift = CASES[name]
    width = len(variances)
    reference = Frechet.from_moments(torch.zeros(width), variances.diag())
    distance = width * shift**2 + float((scale - 1) ** 2 * variances.sum())
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(repeats, 200, width, generator=generator, dtype=torch.float64)
    features = draws * variances.sqrt() * scale + shift
    return distance, [fid_estimates(x, reference, groups=40) for x in features]


def coverage(estimates, true):
    intervals = [estimate.interval(0.95) for estimate in estimates]
    return sum(low <= true <= high for low, high in intervals) / len(intervals)


def is_nominal(share, repeats):
    """Within three standard deviations of 95 %, which are 3 % of 500 repeats."""
    return abs(share - 0.95) <= 0.03 * math.sqrt(MANY / repeats)


def mean(estimates):
    return sum(estimate.value for estimate in estimates) / len(estimates)


@pytest.mark.parametrize(("name", "repeats"), REPEATED)
def test_interval_of_fid_at_this_size_covers_its_expectation(name, repeats):
    estimates = [found.at_size for found in repeated(name, repeats)[1]]
    assert is_nominal(coverage(estimates, mean(estimates)), repeats)


@pytest.mark.parametrize(("name", "repeats"), REPEATED)
def test_interval_at_infinity_covers_the_true_distance(name, repeats):
    distance, found = repeated(name, repeats)
    assert is_nominal(coverage([each.infinite for each in found], distance), repeats)


@pytest.mark.parametrize(("name", "repeats"), REPEATED)
def test_fid_at_infinity_has_no_bias_to_speak_of(name, repeats):
    distance, found = repeated(name, repeats)
    values = torch.tensor([each.infinite.value for each in found])
    plain = torch.tensor([each.at_size.value for each in found])
    # The mean of 500 is known to 0.045 deviations: three of those, and what the expansion neglects.
    tolerance = 3 / math.sqrt(repeats) + 0.065
    assert float((values.mean() - distance) / values.std()) == pytest.approx(0, abs=tolerance)
    assert float((plain.mean() - distance) / plain.std()) > 0.4


@pytest.mark.parametrize("repeats", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_interval_of_a_paired_difference_covers_it(repeats):
    reference, generator = standard(6), torch.Generator().manual_seed(2)
    at_size, infinite, ratio, alone = [], [], [], []
    for _ in range(repeats):
        noise, other = torch.randn(2, 150, 6, generator=generator, dtype=torch.float64)
        one = fid_estimates(noise * 1.2 + 0.1, reference, groups=30)
        two = fid_estimates((0.9 * noise + 0.19**0.5 * other) * 1.3 + 0.2, reference, groups=30)
        at_size.append(one.at_size.minus(two.at_size))
        infinite.append(one.infinite.minus(two.infinite))
        ratio.append((one.at_size, two.at_size))
        alone.append(math.hypot(one.infinite.standard_error, two.infinite.standard_error))
    true = (6 * 0.01 + 6 * 0.04) - (6 * 0.04 + 6 * 0.09)
    assert is_nominal(coverage(infinite, true), repeats)
    assert is_nominal(coverage(at_size, mean(at_size)), repeats)
    ours, theirs = (mean([pair[side] for pair in ratio]) for side in (0, 1))
    gains = [one.improvement_over(two) for one, two in ratio]
    assert is_nominal(coverage(gains, 1 - ours / theirs), repeats)
    # Shared noise cancels: the difference is known better than its parts.
    assert sum(each.standard_error for each in infinite) < 0.8 * sum(alone)


class Series:
    """A distance that depends on the number of rows alone."""

    def distance(self, stats):
        return 3 + 200 / stats.count + 5000 / stats.count**2


def test_extrapolation_removes_the_first_two_powers_of_one_over_n():
    quarters = [of(draw(100, 2, seed)) for seed in range(4)]
    whole = Series().distance(sum(quarters[1:], start=quarters[0]))
    # Exact but for rounding of weights whose sizes add up to 5.
    assert extrapolate_fid(whole, quarters, Series()) == pytest.approx(3, rel=1e-12)


def test_extrapolation_removes_one_over_n_from_quarters_of_different_sizes_too():
    reference = Series()
    reference.distance = lambda stats: 3 + 200 / stats.count
    quarters = [of(draw(count, 2)) for count in (90, 100, 120, 100)]
    assert extrapolate_fid(3 + 200 / 410, quarters, reference) == pytest.approx(3, rel=1e-12)


def test_values_are_fid_and_its_extrapolation():
    x, reference = draw(800, 8) + 0.1, standard(8)
    found = fid_estimates(x, reference, groups=40)
    assert found.at_size.value == pytest.approx(reference.distance(of(x)), rel=1e-10)
    parts = [of(part) for part in x.split(200)]
    halves = [reference.distance(parts[a] + parts[b]) for a in range(4) for b in range(a)]
    singles = [reference.distance(part) for part in parts]
    expected = 8 / 3 * found.at_size.value - sum(halves) / 3 + sum(singles) / 12
    assert found.infinite.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spectrum", [torch.ones(16).double(), decaying(16)])
def test_linear_values_are_close_to_leaving_groups_out_in_fact(spectrum, monkeypatch):
    monkeypatch.setattr("ig_core.metrics.uncertainty.EXACT_WIDTH", 8)
    monkeypatch.setattr("ig_core.metrics.uncertainty.least_count", lambda width: 10**6)
    x = draw(4000, 16) * spectrum.sqrt() * 1.3 + 0.1
    reference = Frechet.from_moments(torch.zeros(16), spectrum.diag())
    found, exact = fid_estimates(x, reference, 40).at_size, fid_jackknife(x, reference, 40)
    spread = float(exact.without.std())
    # What the derivative leaves out is of second order in 1 / groups.
    torch.testing.assert_close(
        found.without - found.without.mean(),
        exact.without - exact.without.mean(),
        rtol=0,
        atol=0.15 * spread,
    )
    assert float(found.without.std()) == pytest.approx(spread, rel=0.05)


class Mean:
    """Squared distance of the mean from a point: quadratic in the rows, so that all is known."""

    def __init__(self, point):
        self.point = torch.tensor(point, dtype=torch.float64)

    def distance(self, stats):
        return float((stats.mean - self.point).square().sum())

    def tangent(self, stats):
        return Tangent(
            self.distance(stats), stats.mean, stats.mean - self.point, torch.eye(len(self.point))
        )


def test_intervals_of_a_squared_mean_are_those_of_the_formulas():
    x = draw(104, 1) + 0.3
    found = fid_estimates(x, Mean([0.1]), groups=8)
    quarters = x.reshape(4, 26).mean(1).numpy() - 0.1
    means = x.reshape(8, 13).mean(1).numpy() - 0.1
    slopes, errors = [], []
    for group, own in enumerate([0, 0, 1, 1, 2, 2, 3, 3]):
        others = np.delete(quarters, own)
        # The derivative at a set of mean m by a row x is 2 m x, less its mean over all rows.
        single = 2 * others * (means[group] - means.mean())
        union = 2 * others.mean() * (means[group] - means.mean())
        slopes.append(1.5 * union - 0.5 * single.mean())
        errors.append((single - single.mean()) / math.sqrt(6))
    spread = np.var(slopes, ddof=1) / 8
    noise = np.var(errors, axis=0, ddof=1).sum() / 8
    at_size = quarters.mean() ** 2
    infinite = (quarters.sum() ** 2 - (quarters**2).sum()) / 12
    few = 1 - min(3 / 16 * noise / (at_size - infinite) ** 2, 1)
    assert 0 < few < 1
    assert noise < spread
    assert found.at_size.value == pytest.approx(at_size, rel=1e-12)
    assert found.infinite.value == pytest.approx(infinite, rel=1e-12)
    variance = spread - 1 / 2 * few * noise
    for each in found:
        assert each.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)
        assert each.slope == pytest.approx((spread - noise / 4) / at_size, rel=1e-9)


class BiasedSlope(Mean):
    """The same with a derivative that is too steep by a share of 30 / N."""

    def tangent(self, stats):
        tangent = super().tangent(stats)
        return tangent._replace(shift=tangent.shift * (1 + 30 / stats.count))


def test_slopes_have_no_bias_of_the_sizes_they_are_taken_at():
    x = draw(120, 2) + 0.3
    found, expected = (
        fid_estimates(x, kind([0.1, -0.2]), groups=8).infinite.without
        for kind in (BiasedSlope, Mean)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("round_length", [1, 3], ids=["independent", "stratified"])
def test_variances_of_a_squared_mean_are_right_in_the_mean(round_length):
    # 117 rows: groups of unequal numbers of rounds.
    generator, count = torch.Generator().manual_seed(3), 117
    offsets = torch.tensor([[-6.0], [0.0], [6.0]], dtype=torch.float64)
    offsets = offsets[torch.arange(count) % 3] * (round_length > 1)
    draws = torch.randn(250, count, 1, generator=generator, dtype=torch.float64)
    draws = torch.cat([draws, -draws]) + offsets
    # The distance is 2.5 standard errors of the mean, squared.
    error = count**-0.5
    point = [float(offsets.mean()) - 2.5 * error]
    found = [fid_estimates(x, Mean(point), 20, None, round_length) for x in draws]

    def mean_square(kind, share):
        estimates = (getattr(each, kind)._replace(noise_share=share) for each in found)
        return sum(each.standard_error**2 for each in estimates) / len(found)

    linear = 4 * 2.5**2 * error**4
    # The mean is known to 2 %.
    assert mean_square("at_size", 5 / 8) == pytest.approx(linear + 2 * error**4, rel=0.06)
    assert mean_square("infinite", 1 / 2) == pytest.approx(linear + 8 / 3 * error**4, rel=0.06)


class Classes:
    """Ten Gaussian classes of different means and covariances, and a reference near them."""

    def __init__(self, width, separation):
        generator = torch.Generator().manual_seed(3)
        scales = 1 / torch.arange(1, width + 1, dtype=torch.float64)
        draws = torch.randn(10, width, width, generator=generator, dtype=torch.float64)
        means = torch.randn(10, width, generator=generator, dtype=torch.float64)
        turns = torch.linalg.matrix_exp(0.3 * (draws - draws.mT) / math.sqrt(width))
        sizes = torch.randn(10, width, generator=generator, dtype=torch.float64)
        self.factors = turns * (scales * (0.4 * sizes).exp()).sqrt()[:, None]
        self.means = separation * (means - means.mean(0)) * scales.sqrt()
        covariance = (
            self.factors @ self.factors.mT + torch.einsum("ci,cj->cij", self.means, self.means)
        ).mean(0)
        shift = 0.1 * covariance.diag().sqrt()
        self.reference = Frechet.from_moments(shift, 1.1 * covariance)
        # The covariances are multiples of each other.
        self.distance = float(shift.square().sum() + (1.1**0.5 - 1) ** 2 * covariance.trace())

    def draw(self, count, generator, balanced):
        labels = torch.arange(count) % 10
        if not balanced:
            labels = torch.randint(0, 10, (count,), generator=generator)
        noise = torch.randn(count, len(self.means[0]), generator=generator, dtype=torch.float64)
        rows = torch.empty_like(noise)
        for label in range(10):
            rows[labels == label] = noise[labels == label] @ self.factors[label].T
        return rows + self.means[labels]


def covered(classes, count, repeats, balanced):
    """Coverage at N, at infinity, and of difference and ratio of a set and one like it."""
    generator, round_length = torch.Generator().manual_seed(count), 10 if balanced else 1
    ones, twos = [], []
    for _ in range(repeats):
        x = classes.draw(count, generator, balanced)
        other = x * 1.05 + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        estimates = [
            fid_estimates(each, classes.reference, 50, None, round_length) for each in (x, other)
        ]
        ones.append(estimates[0])
        twos.append(estimates[1])
    one, two = ([each.at_size for each in sets] for sets in (ones, twos))
    ratio = 1 - mean(one) / mean(two)
    gains = [a.improvement_over(b) for a, b in zip(one, two, strict=True)]
    differences = [a.minus(b) for a, b in zip(one, two, strict=True)]
    return {
        "at N": coverage(one, mean(one)),
        "infinity": coverage([each.infinite for each in ones], classes.distance),
        "difference": coverage(differences, mean(differences)),
        "ratio": coverage(gains, ratio),
    }


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "random"])
def test_intervals_cover_with_labels_that_go_round(balanced):
    found = covered(Classes(8, 4.0), 400, 200, balanced)
    # 95 % of 200 has a standard deviation of 1.5 %.
    assert all(0.91 <= share <= 0.99 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "random"])
@pytest.mark.parametrize("count", [1000, 2000, 5000])
def test_intervals_cover_93_to_97_percent(count, balanced):
    found = covered(Classes(16, 2.0), count, 1000, balanced)
    # 95 % of 1,000 has a standard deviation of 0.7 %.
    assert all(0.923 <= share <= 0.977 for share in found.values()), found


def test_groups_hold_whole_rounds():
    rows = torch.arange(47)[:, None]
    found = [len(part) for part in group_rows(rows, 5, round_length=4)]
    # 11 rounds, and three rows left over.
    assert found == [8, 8, 8, 8, 15]
    assert torch.equal(torch.cat(group_rows(rows, 5, round_length=4)), rows)


def test_the_difference_between_classes_is_no_noise():
    # 104 rounds of ten classes that differ by far more than what varies within them.
    x = draw(1040, 2) * 0.1 + (torch.arange(1040) % 10)[:, None]
    rounds = fid_estimates(x, standard(2), 50, None, 10)
    shuffled = fid_estimates(x, standard(2), 50, 1)
    assert rounds.at_size.standard_error < 0.1 * shuffled.at_size.standard_error
    # Seven rows are left over.
    broken = fid_estimates(torch.cat([x, x[:7]]), standard(2), 50, None, 10)
    assert broken.at_size.standard_error == pytest.approx(rounds.at_size.standard_error, rel=0.2)
    assert len(fid_estimates(x[:400], standard(2), 50, None, 10).at_size.without) == 40


def test_fewer_than_five_rounds_are_shuffled_and_give_no_fid_at_infinity():
    x = draw(400, 2) + (torch.arange(400) % 90)[:, None]
    found = fid_estimates(x, standard(2), 10, None, 90)
    assert found.infinite is None
    expected = x[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(found.at_size.without, fid_jackknife(expected, standard(2), 10).without)
    assert fid_estimates(x, standard(2), 10, None, 80).infinite is not None


def test_seed_zero_shuffles_too():
    x = draw(200, 2) + torch.arange(200)[:, None] / 100
    by_seed = [fid_estimates(x, standard(2), 10, seed) for seed in (None, 0, 1)]
    errors = {each.at_size.standard_error for each in by_seed}
    assert len(errors) == 3


def test_derivative_is_that_of_the_distance():
    x, step = draw(300, 5) * torch.arange(1, 6) + 0.2, 1e-6
    reference, mean_, covariance = standard(5), of(x).mean, of(x).covariance
    tangent = reference.tangent(of(x))
    change = draw(5, 5, seed=3)
    change = change + change.T
    transport = tangent.factor @ tangent.factor.T
    expected = float((change * (torch.eye(5) - transport)).sum() + 2 * tangent.shift.sum())

    def distance(size):
        moments = Frechet.from_moments(mean_ + size, covariance + size * change)
        # The distance is symmetric: the changed Gaussian serves as the reference.
        corners = math.sqrt(5) * torch.cat([torch.eye(5), -torch.eye(5)]).double()
        centred = of(corners * math.sqrt(9 / 10))
        return moments.distance(centred)

    slope = (distance(step) - distance(-step)) / (2 * step)
    # Differences of values of size 10 at a step of 1e-6.
    assert slope == pytest.approx(expected, rel=1e-6)


def test_transport_takes_the_covariance_to_that_of_the_reference():
    x, spectrum = draw(200, 6), torch.linspace(0.5, 2, 6).double()
    tangent = Frechet.from_moments(torch.zeros(6), spectrum.diag()).tangent(of(x))
    transport = tangent.factor @ tangent.factor.T
    moved = transport @ of(x).covariance @ transport
    torch.testing.assert_close(moved, spectrum.diag(), rtol=1e-9, atol=1e-9)


def test_directions_without_variance_add_nothing_to_the_transport():
    x = draw(40, 6)
    flat = torch.cat([x[:, :4], torch.zeros(40, 2, dtype=torch.float64)], dim=1)
    tangent = standard(6).tangent(of(flat))
    assert tangent.factor.shape == (6, 4)
    assert tangent.value == pytest.approx(standard(6).distance(of(flat)), rel=1e-12)


@pytest.mark.parametrize(("width", "least"), [(2, 100), (16, 160), (64, 640), (2048, 46341)])
def test_least_number_of_rows(width, least):
    assert least_count(width) == least


def test_too_few_rows_give_the_plain_jackknife_and_no_fid_at_infinity():
    reference = standard(16)
    found = fid_estimates(draw(159, 16), reference, groups=20)
    assert found.infinite is None
    expected = fid_jackknife(draw(159, 16), reference, 20)
    assert found.at_size.value == expected.value
    assert torch.equal(found.at_size.without, expected.without)
    assert found.at_size.noise is None
    assert found.at_size.slope == 0
    assert fid_estimates(draw(160, 16), reference, groups=20).infinite is not None


def test_rows_in_order_of_class_need_the_shuffle():
    x = (draw(400, 4) + torch.arange(4)[:, None].repeat_interleave(100, 0)) / 2
    reference = standard(4)
    in_order = fid_estimates(x, reference, 20)
    shuffled = fid_estimates(x, reference, 20, shuffle_seed=1)
    again = fid_estimates(x, reference, 20, shuffle_seed=1)
    assert shuffled.infinite.value == again.infinite.value
    assert shuffled.infinite.interval() == again.infinite.interval()
    assert shuffled.at_size.value == pytest.approx(in_order.at_size.value, rel=1e-9)
    # A quarter of one class is far from the reference: the extrapolation goes astray.
    assert abs(shuffled.infinite.value - shuffled.at_size.value) < 0.1
    assert abs(in_order.infinite.value - in_order.at_size.value) > 0.3


@pytest.mark.parametrize(
    ("features", "groups", "message"),
    [
        (torch.zeros(200, 3), 50, "one width, but got 3 and 4"),
        (torch.randn(200, 4), 1, "1 groups need at least 2 groups"),
        (torch.randn(200, 4), 150, "150 groups need .* but got 200 features"),
        (torch.full((200, 4), math.nan), 50, "must be finite"),
        (torch.randn(200, 4, 2), 50, r"shape \(N, F\), but got"),
    ],
    ids=["width", "groups", "rows", "nan", "dimensions"],
)
def test_features_that_do_not_fit_are_an_error(features, groups, message):
    with pytest.raises(ValueError, match=message):
        fid_estimates(features, standard(4), groups)


def test_slope_makes_the_ends_those_where_the_value_is_just_not_too_far():
    without = torch.linspace(0.9, 1.1, 20, dtype=torch.float64)
    found = Jackknife(1.0, without, slope=0.3)
    low, high = found.interval()
    quantile = (Jackknife(1.0, without).interval()[1] - 1) / found.standard_error
    for end in (low, high):
        variance = found.standard_error**2 + 0.3 * (end - 1)
        assert (end - 1) ** 2 == pytest.approx(quantile**2 * variance, rel=1e-9)
    assert high - 1 > 1 - low


def test_share_of_the_noise_is_taken_from_the_variance():
    without = torch.linspace(0.9, 1.1, 20, dtype=torch.float64)
    plain = Jackknife(1.0, without)
    errors = torch.stack([without, without]) / 2
    # Two errors of half the size have half the spread; 3/5 of that are subtracted.
    found = Jackknife(1.0, without, errors, noise_share=0.6)
    assert found.standard_error == pytest.approx(plain.standard_error * math.sqrt(1 - 0.3))
    # There cannot be more noise than there is spread.
    found = Jackknife(1.0, without, 3 * errors, noise_share=0.6)
    assert found.standard_error == pytest.approx(plain.standard_error * math.sqrt(1 - 0.6))


def test_noise_of_a_difference_and_of_a_ratio_is_that_of_the_differences():
    draws = draw(30, 4, seed=8).T
    ours, theirs = (
        Jackknife(2.0 + k, 2.0 + k + 0.05 * draws[k], 0.02 * draws[None, 2 + k], 0.3)
        for k in (0, 1)
    )
    noise = 0.02 * (draws[2] - draws[3])
    found = ours.minus(theirs)
    plain = Jackknife(-1.0, found.without).standard_error ** 2
    expected = plain - 0.4 * Jackknife(0.0, noise).standard_error ** 2
    assert found.standard_error**2 == pytest.approx(expected, rel=1e-9)
    found = ours.improvement_over(theirs)
    assert found.value == pytest.approx(1 / 3)
    plain = Jackknife(0.0, 1 - ours.without / theirs.without).standard_error ** 2
    # To first order the ratio 2/3 changes by the change of the one less 2/3 of the other's, over 3.
    noise = 0.02 * (draws[2] - 2 / 3 * draws[3]) / 3
    expected = plain - 0.4 * Jackknife(0.0, noise).standard_error ** 2
    assert found.standard_error**2 == pytest.approx(expected, rel=1e-9)
    assert found.slope == 0


def test_difference_to_a_set_without_noise_keeps_its_whole_spread():
    without = torch.linspace(0.9, 1.1, 20, dtype=torch.float64)
    ours = Jackknife(1.0, without, without[None] / 2, 0.5)
    theirs = Jackknife(1.0, without / 2)
    assert ours.minus(theirs).standard_error == Jackknife(0.0, without / 2).standard_error


def test_difference_of_other_groups_is_an_error():
    with pytest.raises(ValueError, match="the same groups, but got 3 and 4"):
        Jackknife(1.0, torch.zeros(3)).minus(Jackknife(1.0, torch.zeros(4)))
    with pytest.raises(ValueError, match="the same groups, but got 3 and 4"):
        Jackknife(1.0, torch.zeros(3)).improvement_over(Jackknife(1.0, torch.zeros(4)))
