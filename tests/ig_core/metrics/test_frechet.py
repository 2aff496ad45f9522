import math

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file
from scipy import stats as distributions

from ig_core.files.torchvision_shim import declare_missing_operators
from ig_core.metrics.frechet import FeatureStats, Frechet, frechet_distance
from ig_core.metrics.jackknife import Jackknife, fid_jackknife, student_quantile


def features(count, width, seed, shift=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=dtype) / math.sqrt(width)
    draws = torch.randn(count, width, generator=generator, dtype=dtype)
    return draws @ (mixing + torch.eye(width, dtype=dtype)) + shift


def of(x):
    return FeatureStats.from_features(x)


def assert_same_statistics(a, b):
    assert a.count == b.count
    # Float64 sums in another order.
    torch.testing.assert_close(a.total, b.total, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(a.outer, b.outer, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("sizes", [(50, 50), (1, 99), (10, 20, 30, 40)])
def test_merged_parts_equal_the_whole(sizes):
    x = features(100, 5, 0)
    first, *others = [of(part) for part in x.split(sizes)]
    assert_same_statistics(sum(others, start=first), of(x))


def test_subtracting_a_part_leaves_the_rest():
    x = features(100, 5, 0)
    assert_same_statistics(of(x) - of(x[:30]), of(x[30:]))


def test_merging_changes_neither_part():
    a, b = of(features(10, 3, 0)), of(features(20, 3, 1))
    before = a.total.clone(), b.outer.clone()
    _ = a + b
    assert (a.count, b.count) == (10, 20)
    assert torch.equal(a.total, before[0])
    assert torch.equal(b.outer, before[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_moments_are_those_of_numpy_in_float64(dtype):
    x = features(200, 4, 0, shift=1.0).to(dtype)
    statistics = of(x)
    reference = x.double().numpy()
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    # Float64 rounding; the one-pass covariance cancels the squared mean.
    np.testing.assert_allclose(statistics.mean, reference.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        statistics.covariance, np.cov(reference, rowvar=False), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
def test_features_that_are_no_matrix_are_an_error(shape):
    with pytest.raises(ValueError, match=r"features must have shape \(N, F\), but got \(5,"):
        of(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_an_error(value):
    x = torch.zeros(4, 3)
    x[2, 1] = value
    with pytest.raises(ValueError, match="finite"):
        of(x)


def test_covariance_of_one_sample_is_an_error():
    with pytest.raises(ValueError, match="at least 2 samples, but got 1"):
        _ = of(torch.zeros(1, 3)).covariance


def by_square_root(a, b):
    """The textbook formula, with the square root of a general matrix."""
    difference = a.mean - b.mean
    first, second = a.covariance.numpy(), b.covariance.numpy()
    root = scipy.linalg.sqrtm(first @ second)
    return float(difference @ difference) + float(np.trace(first + second - 2 * root.real))


def by_torch_fidelity(a, b):
    declare_missing_operators()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    stats = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b)]
    return fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]


@pytest.mark.parametrize("formula", [by_square_root, by_torch_fidelity])
@pytest.mark.parametrize(("width", "shift"), [(1, 0.5), (8, 0.0), (64, 0.3)])
def test_frechet_distance_matches_the_reference_implementations(formula, width, shift):
    a, b = of(features(500, width, 0)), of(features(400, width, 1, shift))
    # What separates the published implementations on full-rank covariances is below 1e-7.
    assert frechet_distance(a, b) == pytest.approx(formula(a, b), rel=1e-6)


def test_frechet_distance_with_fewer_samples_than_features_matches_torch_fidelity():
    a, b = of(features(20, 64, 0)), of(features(30, 64, 1, 0.3))
    # Square roots of the zero eigenvalues' rounding: about 1e-6 absolute in both.
    assert frechet_distance(a, b) == pytest.approx(by_torch_fidelity(a, b), rel=1e-5)


@pytest.mark.parametrize(("case", "tolerance"), [("full", 1e-6), ("deficient", 1e-4)])
def test_frechet_distance_matches_the_stored_reference(golden, case, tolerance):
    tensors = load_file(golden / "open_metrics.safetensors")
    a, b = tensors[f"{case}.a"], tensors[f"{case}.b"]
    found = [frechet_distance(of(a), of(other)) for other in (b, a[::2])]
    # Singular covariances: the implementations themselves differ by 1e-6 absolute.
    assert found == pytest.approx(tensors[f"{case}.fid"].tolist(), rel=tolerance)


@pytest.mark.parametrize(("count", "tolerance"), [(500, 1e-10), (20, 1e-5)])
def test_identical_sets_are_at_distance_zero(count, tolerance):
    a = of(features(count, 64, 0))
    # 20 samples leave 45 zero eigenvalues, whose rounding (1e-16) enters under a square root.
    assert frechet_distance(a, a) == pytest.approx(0, abs=tolerance)


def test_frechet_distance_is_symmetric():
    a, b = of(features(500, 16, 0)), of(features(400, 16, 1, 0.3))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    a, b = of(corners), of(corners * scales + 2.0)
    # Means differ by 2 in each coordinate, deviations by (s - 1) sqrt(8 / 7).
    assert frechet_distance(a, b) == pytest.approx(12 + 8 / 7 * (0 + 1 + 4), rel=1e-12)


def test_one_reference_serves_many_sets():
    reference = of(features(500, 8, 0))
    distance = Frechet(reference)
    for seed in (1, 2):
        other = of(features(300, 8, seed, 0.2))
        assert distance.distance(other) == frechet_distance(reference, other)


def test_sets_of_different_width_are_an_error():
    with pytest.raises(ValueError, match="one width, but got 4 and 3"):
        frechet_distance(of(features(10, 3, 0)), of(features(10, 4, 0)))


@pytest.mark.parametrize("freedom", [10, 19, 29, 49, 199])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.95, 0.975, 0.995])
def test_student_quantile_matches_scipy(probability, freedom):
    expected = distributions.t.ppf(probability, freedom)
    # The next term of the series is of order 1 / freedom^4.
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_student_quantile_is_odd():
    assert student_quantile(0.1, 20) == pytest.approx(-student_quantile(0.9, 20))


def test_jackknife_of_a_mean_is_its_standard_error():
    groups = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    without = (groups.sum() - groups) / 19
    found = Jackknife(float(groups.mean()), without)
    assert found.standard_error == pytest.approx(float(groups.std()) / math.sqrt(20))
    low, high = found.interval(0.95)
    expected = distributions.t.interval(0.95, 19, found.value, found.standard_error)
    # The series for the quantile is good to 1e-3 at 19 degrees of freedom.
    assert (low, high) == pytest.approx(expected, abs=1e-3 * found.standard_error)


def test_wider_level_gives_wider_interval():
    found = Jackknife(1.0, torch.linspace(0.9, 1.1, 20, dtype=torch.float64))
    (low, high), (lower, higher) = found.interval(0.9), found.interval(0.99)
    assert lower < low < 1.0 < high < higher


def test_leaving_out_a_group_equals_computing_without_its_rows():
    x, reference = features(60, 4, 0, 0.2), Frechet(of(features(500, 4, 1)))
    found = fid_jackknife(x, reference, groups=6)
    assert found.value == pytest.approx(reference.distance(of(x)), rel=1e-9)
    for group in range(6):
        rest = torch.cat([x[: 10 * group], x[10 * (group + 1) :]])
        # Subtracted against freshly summed float64 statistics.
        expected = reference.distance(of(rest))
        assert float(found.without[group]) == pytest.approx(expected, rel=1e-9)


def test_groups_of_rows_that_do_not_divide_end_at_the_rounded_down_fractions():
    x, reference = features(62, 4, 0, 0.2), Frechet(of(features(500, 4, 1)))
    found = fid_jackknife(x, reference, groups=4)
    for group in range(4):
        rest = torch.cat([x[: 62 * group // 4], x[62 * (group + 1) // 4 :]])
        expected = reference.distance(of(rest))
        assert float(found.without[group]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "groups"), [(100, 1), (100, 0), (19, 10)])
def test_too_few_groups_or_rows_are_an_error(count, groups):
    reference = Frechet(of(features(50, 3, 0)))
    with pytest.raises(ValueError, match=f"{groups} groups .* but got {count} features"):
        fid_jackknife(features(count, 3, 1), reference, groups)


def test_interval_covers_the_expected_fid_as_often_as_it_says():
    width, count, groups, repeats = 6, 600, 30, 200
    reference = Frechet(of(features(20_000, width, 0)))
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(repeats, count, width, generator=generator, dtype=torch.float64)
    mixing = torch.eye(width, dtype=torch.float64) * torch.linspace(0.8, 1.3, width).double()
    found = [fid_jackknife(x @ mixing + 0.3, reference, groups) for x in draws]
    expected = np.mean([estimate.value for estimate in found])
    covered = np.mean([low <= expected <= high for low, high in (f.interval(0.95) for f in found)])
    # 95 % of 200 has a standard deviation of 1.5 %; the estimate itself is a little skewed.
    assert 0.90 <= covered <= 0.99


def test_standard_error_is_the_spread_over_repetitions():
    reference = Frechet(of(features(20_000, 6, 0)))
    generator = torch.Generator().manual_seed(2)
    draws = torch.randn(100, 600, 6, generator=generator, dtype=torch.float64) + 0.3
    found = [fid_jackknife(x, reference, 30) for x in draws]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    mean_error = np.mean([estimate.standard_error for estimate in found])
    # The deviation of 100 values is known to 7 %: three of those.
    assert mean_error == pytest.approx(spread, rel=0.21)


def test_improvement_is_paired_by_group():
    ours = Jackknife(2.0, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    theirs = Jackknife(4.0, torch.tensor([2.0, 4.0, 6.0], dtype=torch.float64))
    found = ours.improvement_over(theirs)
    assert found.value == 0.5
    assert found.without.tolist() == [0.5, 0.5, 0.5]
    # Both vary by group, their ratio does not.
    assert found.standard_error == 0
    assert ours.standard_error > 0


def test_no_improvement_over_itself_and_negative_for_worse():
    ours = Jackknife(3.0, torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64))
    better = Jackknife(2.0, torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64))
    assert ours.improvement_over(ours).interval() == (0.0, 0.0)
    assert ours.improvement_over(better).value == -0.5
