import numpy as np
import pytest
import torch

from ig_core.metrics.frechet import FeatureStats, Frechet
from ig_core.metrics.reference import Reference, read_reference


def statistics(width, seed=0):
    x = np.random.default_rng(seed).normal(size=(4 * width, width)) + 1
    return x.mean(axis=0), np.cov(x, rowvar=False)


@pytest.fixture
def write(tmp_path):
    """Writer of a small reference file; keyword arguments replace arrays, None leaves one out."""

    def write(**changes):
        mu, sigma = statistics(6)
        mu_s, sigma_s = statistics(5, 1)
        arrays = {
            "arr_0": np.zeros((2, 4, 4, 3), np.uint8),
            "mu": mu,
            "sigma": sigma,
            "mu_s": mu_s,
            "sigma_s": sigma_s,
        } | changes
        path = tmp_path / "reference.npz"
        np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
        return path

    return write


def read(path) -> Reference:
    return read_reference(path, width=6, spatial_width=5)


def test_statistics_come_back_in_float64(write):
    found = read(write())
    mu, sigma = statistics(6)
    np.testing.assert_array_equal(found.pooled.mean, mu)
    # Averaged with its transpose: numpy's covariance is symmetric to rounding.
    np.testing.assert_allclose(found.pooled.covariance, sigma, rtol=1e-14)
    assert found.spatial is not None
    np.testing.assert_array_equal(found.spatial.mean, statistics(5, 1)[0])
    assert found.has_images


def test_distance_to_the_moments_is_that_to_the_features(write):
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(50, 6)))
    reference = FeatureStats.from_features(x)
    path = write(mu=reference.mean.numpy(), sigma=reference.covariance.numpy())
    other = FeatureStats.from_features(x[:30] * 1.1 + 0.2)
    expected = Frechet(reference).distance(other)
    assert read(path).pooled.frechet().distance(other) == pytest.approx(expected, rel=1e-12)


def test_spatial_statistics_and_images_are_optional(write):
    found = read(write(arr_0=None, mu_s=None, sigma_s=None))
    assert found.spatial is None
    assert not found.has_images


def test_single_precision_statistics_are_accepted(write):
    mu, sigma = statistics(6)
    path = write(mu=mu.astype(np.float32), sigma=sigma.astype(np.float32))
    assert read(path).pooled.covariance.dtype == torch.float64


def test_widths_of_the_adm_protocol_are_the_default(write):
    with pytest.raises(ValueError, match=r"array 'mu' must have shape \(2048\), but has \(6,\)"):
        read_reference(write())


def altered(place, value):
    sigma = statistics(6)[1]
    sigma[place] = value
    return sigma


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": None}, "array 'mu' is missing; the file holds arr_0, mu_s, sigma, sigma_s"),
        ({"sigma": None}, "array 'sigma' is missing"),
        ({"sigma_s": None}, "array 'sigma_s' is missing"),
        ({"mu_s": None}, "array 'mu_s' is missing"),
        ({"mu": np.zeros(7)}, r"'mu' must have shape \(6\), but has \(7,\)"),
        ({"sigma": np.eye(7)}, r"'sigma' must have shape \(6, 6\), but has \(7, 7\)"),
        ({"sigma": np.zeros(6)}, r"'sigma' must have shape \(6, 6\), but has \(6,\)"),
        ({"sigma": np.eye(6, dtype=int)}, "'sigma' must hold floating-point numbers, but holds i"),
        ({"mu": np.full(6, np.nan)}, "'mu' must be finite"),
        ({"sigma": altered((1, 1), np.inf)}, "'sigma' must be finite"),
        ({"sigma": altered((0, 1), 2.0)}, "'sigma' is no covariance: not symmetric, by up to"),
        ({"sigma": altered((2, 2), -1.0)}, "'sigma' is no covariance: .* negative eigenvalue"),
        ({"mu": np.array([None] * 6)}, "'mu' holds pickled Python objects"),
    ],
    ids=[
        "no mu",
        "no sigma",
        "no sigma_s",
        "no mu_s",
        "wide mu",
        "wide sigma",
        "flat sigma",
        "integers",
        "nan",
        "inf",
        "asymmetric",
        "negative",
        "objects",
    ],
)
def test_statistics_that_are_none_are_refused(write, changes, message):
    with pytest.raises(ValueError, match=rf"reference\.npz: array {message.replace('array ', '')}"):
        read(write(**changes))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"mu,sigma"])
def test_damaged_file_is_an_error(tmp_path, content):
    path = tmp_path / "reference.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"reference\.npz is not a readable \.npz file"):
        read(path)


def test_moments_of_different_width_are_an_error():
    with pytest.raises(ValueError, match=r"\(F,\) and \(F, F\), but got \(3,\) and \(4, 4\)"):
        Frechet.from_moments(torch.zeros(3), torch.eye(4))
