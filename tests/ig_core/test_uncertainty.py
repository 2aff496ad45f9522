import functools
import math

import pytest
import torch

from ig_core.metrics import FeatureStats, Frechet, Jackknife, fid_jackknife
from ig_core.uncertainty import (
    extrapolate_fid,
    fid_estimates,
    least_count,
    second_order,
)

REPEATS = 500


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


@functools.cache
def repeated(name):
    """The distance, and the estimates of 500 samples of 200 rows."""
    variances, scale, shift = CASES[name]
    width = len(variances)
    reference = Frechet.from_moments(torch.zeros(width), variances.diag())
    distance = width * shift**2 + float((scale - 1) ** 2 * variances.sum())
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(REPEATS, 200, width, generator=generator, dtype=torch.float64)
    features = draws * variances.sqrt() * scale + shift
    return distance, [fid_estimates(x, reference, groups=40) for x in features]


def coverage(estimates, true):
    intervals = [estimate.interval(0.95) for estimate in estimates]
    return sum(low <= true <= high for low, high in intervals) / len(intervals)


def mean(estimates):
    return sum(estimate.value for estimate in estimates) / len(estimates)


@pytest.mark.parametrize("name", CASES)
def test_interval_of_fid_at_this_size_covers_its_expectation(name):
    estimates = [found.at_size for found in repeated(name)[1]]
    assert 0.92 <= coverage(estimates, mean(estimates)) <= 0.98


@pytest.mark.parametrize("name", CASES)
def test_interval_at_infinity_covers_the_true_distance(name):
    distance, found = repeated(name)
    assert 0.92 <= coverage([each.infinite for each in found], distance) <= 0.98


@pytest.mark.parametrize("name", CASES)
def test_fid_at_infinity_has_no_bias_to_speak_of(name):
    distance, found = repeated(name)
    values = torch.tensor([each.infinite.value for each in found])
    plain = torch.tensor([each.at_size.value for each in found])
    # The mean of 500 is known to 0.045 deviations: three of those, and what the expansion neglects.
    assert float((values.mean() - distance) / values.std()) == pytest.approx(0, abs=0.2)
    assert float((plain.mean() - distance) / plain.std()) > 0.4


def test_interval_of_a_paired_difference_covers_it():
    reference, generator = standard(6), torch.Generator().manual_seed(2)
    at_size, infinite, ratio, alone = [], [], [], []
    for _ in range(REPEATS):
        noise, other = torch.randn(2, 150, 6, generator=generator, dtype=torch.float64)
        one = fid_estimates(noise * 1.2 + 0.1, reference, groups=30)
        two = fid_estimates((0.9 * noise + 0.19**0.5 * other) * 1.3 + 0.2, reference, groups=30)
        at_size.append(one.at_size.minus(two.at_size))
        infinite.append(one.infinite.minus(two.infinite))
        ratio.append((one.at_size, two.at_size))
        alone.append(math.hypot(one.infinite.standard_error, two.infinite.standard_error))
    true = (6 * 0.01 + 6 * 0.04) - (6 * 0.04 + 6 * 0.09)
    assert 0.92 <= coverage(infinite, true) <= 0.98
    assert 0.92 <= coverage(at_size, mean(at_size)) <= 0.98
    ours, theirs = (mean([pair[side] for pair in ratio]) for side in (0, 1))
    gains = [one.improvement_over(two) for one, two in ratio]
    assert 0.92 <= coverage(gains, 1 - ours / theirs) <= 0.98
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


def test_values_are_fid_and_its_extrapolation():
    x, reference = draw(800, 8) + 0.1, standard(8)
    found = fid_estimates(x, reference)
    assert found.at_size.value == pytest.approx(reference.distance(of(x)), rel=1e-10)
    parts = [of(part) for part in x.split(200)]
    halves = [reference.distance(parts[a] + parts[b]) for a in range(4) for b in range(a)]
    singles = [reference.distance(part) for part in parts]
    expected = 8 / 3 * found.at_size.value - sum(halves) / 3 + sum(singles) / 12
    assert found.infinite.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spectrum", [torch.ones(16).double(), decaying(16)])
def test_linear_values_are_close_to_leaving_groups_out_in_fact(spectrum):
    x = draw(4000, 16) * spectrum.sqrt() * 1.3 + 0.1
    reference = Frechet.from_moments(torch.zeros(16), spectrum.diag())
    found, exact = fid_estimates(x, reference, 40).at_size, fid_jackknife(x, reference, 40)
    spread = float(exact.without.std())
    # What the derivative leaves out is of second order in 1 / groups.
    torch.testing.assert_close(
        found.without - found.without.mean(), exact.without - exact.without.mean(),
        rtol=0, atol=0.15 * spread,
    )  # fmt: skip
    assert float(found.without.std()) == pytest.approx(spread, rel=0.05)


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


def test_second_order_term_of_white_features_is_its_closed_form():
    x = draw(200, 6)
    values, vectors = torch.linalg.eigh(of(x).covariance)
    white = of((x - x.mean(0)) @ (vectors / values.sqrt()))
    expected = (6 + 6**2 / 8) / 200**2
    found = second_order(white, standard(6).tangent(white))
    assert found == pytest.approx(expected, rel=1e-9)


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
    assert found.at_size.excess == found.at_size.slope == 0
    assert fid_estimates(draw(160, 16), reference, groups=20).infinite is not None


def test_rows_in_order_of_class_need_the_shuffle():
    x = (draw(400, 4) + torch.arange(4)[:, None].repeat_interleave(100, 0)) / 2
    reference = standard(4)
    in_order = fid_estimates(x, reference, 20)
    shuffled = fid_estimates(x, reference, 20, shuffle_seed=1)
    again = fid_estimates(x, reference, 20, shuffle_seed=1)
    assert shuffled.infinite == again.infinite._replace(without=shuffled.infinite.without)
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


def test_excess_is_taken_from_the_variance():
    without = torch.linspace(0.9, 1.1, 20, dtype=torch.float64)
    plain = Jackknife(1.0, without)
    half = Jackknife(1.0, without, excess=plain.standard_error**2 / 2)
    assert half.standard_error == pytest.approx(plain.standard_error / math.sqrt(2))


def test_difference_of_other_groups_is_an_error():
    with pytest.raises(ValueError, match="the same groups, but got 3 and 4"):
        Jackknife(1.0, torch.zeros(3)).minus(Jackknife(1.0, torch.zeros(4)))
