import math

import pytest
import torch

from ig_core.config import LossConfig
from ig_core.path import coefficients, interpolate, score, training_time

PATHS = ["linear", "cosine"]


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 2, 3, 3, generator=generator, dtype=torch.float64).unbind()


@pytest.mark.parametrize("path", PATHS)
def test_path_runs_from_data_at_zero_to_noise_at_one(path, pair):
    x, noise = pair
    start, _ = interpolate(path, x, noise, torch.zeros(5, dtype=torch.float64))
    end, _ = interpolate(path, x, noise, torch.ones(5, dtype=torch.float64))
    assert torch.equal(start, x)
    # cos(pi / 2) is 6e-17 in float64.
    torch.testing.assert_close(end, noise, rtol=0, atol=1e-15)


@pytest.mark.parametrize("path", PATHS)
def test_velocity_is_the_time_derivative_of_the_point(path, pair):
    x, noise = pair
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    derivative = torch.autograd.functional.jvp(
        lambda t: interpolate(path, x, noise, t)[0], t, torch.ones_like(t)
    )[1]
    # The same expression up to the order of float64 operations.
    torch.testing.assert_close(interpolate(path, x, noise, t)[1], derivative, rtol=0, atol=1e-14)


def test_linear_velocity_is_noise_minus_data(pair):
    x, noise = pair
    _, velocity = interpolate("linear", x, noise, torch.rand(5, dtype=torch.float64))
    assert torch.equal(velocity, noise - x)


def test_cosine_path_preserves_variance():
    c = coefficients("cosine", torch.linspace(0, 1, 11, dtype=torch.float64))
    # A trigonometric identity: only float64 rounding is left.
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(11).double(), rtol=0, atol=1e-15)


def test_each_sample_has_its_own_time(pair):
    x, noise = pair
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    whole = interpolate("cosine", x, noise, t)[0]
    alone = [
        interpolate("cosine", x[i : i + 1], noise[i : i + 1], t[i : i + 1])[0] for i in range(5)
    ]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("t", [0.04, 0.3, 0.5, 0.9, 1.0])
def test_score_of_gaussian_data_is_the_score_of_the_marginal(path, t):
    mean, variance = 0.7, 0.3
    c = coefficients(path, torch.tensor(t, dtype=torch.float64))
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    marginal = c.alpha**2 * variance + c.sigma**2
    centred = (x - c.alpha * mean) / marginal
    velocity = c.d_alpha * (mean + c.alpha * variance * centred) + c.d_sigma * c.sigma * centred
    # Float64 rounding, amplified by 1 / sigma^2 <= 625 at the smallest time.
    torch.testing.assert_close(score(path, x, velocity, t), -centred, rtol=1e-12, atol=1e-12)


def test_linear_score_is_the_documented_formula():
    x, velocity = torch.linspace(-2, 2, 5).double(), torch.linspace(1, -3, 5).double()
    torch.testing.assert_close(
        score("linear", x, velocity, 0.4), -(x + 0.6 * velocity) / 0.4, rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("path", PATHS)
def test_uniform_time_is_the_draw(path):
    draw = torch.rand(8)
    assert torch.equal(training_time(draw, LossConfig(path=path)), draw)


@pytest.mark.parametrize("path", PATHS)
def test_logit_normal_time_has_a_normal_logit(path):
    draw = torch.linspace(-4, 4, 9, dtype=torch.float64)
    config = LossConfig(path=path, time_distribution="logit_normal")
    # The logit amplifies rounding by 1 / (t (1 - t)) <= 57.
    torch.testing.assert_close(torch.logit(training_time(draw, config)), draw, rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
def test_lognormal_time_has_a_lognormal_noise_level(path):
    draw = torch.linspace(-4, 4, 9, dtype=torch.float64)
    t = training_time(draw, LossConfig(path=path, time_distribution="lognormal"))
    c = coefficients(path, t)
    # sigma / alpha amplifies rounding of t near 1 by up to 55.
    torch.testing.assert_close(c.sigma / c.alpha, draw.exp(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("distribution", ["lognormal", "logit_normal"])
def test_median_draw_is_the_middle_of_the_path_and_extremes_stay_inside(path, distribution):
    config = LossConfig(path=path, time_distribution=distribution)
    t = training_time(torch.tensor([-math.inf, -200.0, 0.0, 200.0, math.inf]), config)
    assert bool(((t >= 0) & (t <= 1)).all())
    assert float(t[2]) == pytest.approx(0.5, abs=1e-7)  # float32 epsilon
