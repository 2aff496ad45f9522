"""Samplers and guidance on Gaussian data, where everything is known in closed form.

For data N(m, S) the velocity is affine in x. A fixed-step sampler is then an affine map of the
start noise and of the noise of each step, whose matrices are read off by sampling with unit
vectors: mean and covariance of the sampler come out exactly, without a Monte Carlo error.
"""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from ig_core.branching import sample_guidances
from ig_core.config import Guidance, SamplerConfig
from ig_core.guidance import guided_velocity
from ig_core.path import coefficients
from ig_core.sampling import sample
from ig_core.transformer import Velocities

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.25]], dtype=torch.float64)
PATHS = pytest.mark.parametrize("path", ["linear", "cosine"])


def gaussian_velocity(mean, covariance, path="linear"):
    """Exact dx/dt for x (B, 2, 1, 1): alpha' E[data | x] + sigma' E[noise | x]."""

    def velocity(x, t):
        c = coefficients(path, torch.as_tensor(t, dtype=torch.float64))
        marginal = c.alpha**2 * covariance + c.sigma**2 * torch.eye(2, dtype=torch.float64)
        centred = torch.linalg.solve(marginal, (x.flatten(1).double() - c.alpha * mean).T)  # (2, B)
        data = mean + (c.alpha * covariance @ centred).T
        noise = (c.sigma * centred).T
        return (c.d_alpha * data + c.d_sigma * noise).to(x.dtype).view_as(x)

    return velocity


def moments(velocity, config):
    """Exact mean (2,) and covariance (2, 2) of a sampler's output for standard normal noise."""
    sources = 2 * config.num_steps  # two axes of the start noise and of each step's but the last
    # Row 0 has no noise at all; row k has one unit vector in one place.
    unit = torch.zeros(1 + sources, config.num_steps, 2)
    for k in range(sources):
        unit[1 + k, k // 2, k % 2] = 1.0
    x = unit[:, 0].reshape(-1, 2, 1, 1)
    out = sample(velocity, x, config, lambda step, x: unit[:, step + 1].view_as(x).to(x.dtype))
    out = out.flatten(1).double()
    columns = out[1:] - out[:1]
    return out[0], columns.T @ columns


def errors(config_of, counts, path):
    found = []
    for n in counts:
        mean, covariance = moments(gaussian_velocity(MEAN, COVARIANCE, path), config_of(n))
        found.append((float((mean - MEAN).norm()), float((covariance - COVARIANCE).norm())))
    return found


def slopes(values):
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(values)]


@PATHS
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_ode_samplers_converge_to_mean_and_covariance_at_their_order(method, order, shift, path):
    def config(n):
        return SamplerConfig(
            method=method, num_steps=n, shift=shift, path=path, state_dtype="float64"
        )

    mean_errors, covariance_errors = zip(*errors(config, [32, 64, 128], path), strict=True)
    # The next order of the error is still visible.
    assert slopes(covariance_errors) == pytest.approx([order, order], abs=0.25)
    if path == "linear":
        assert max(mean_errors) < 1e-6, "the mean moves on a straight line, which no step bends"
    else:
        assert slopes(mean_errors) == pytest.approx([order, order], abs=0.25)


@PATHS
def test_sde_converges_to_mean_and_covariance_at_first_order(path):
    """The noiseless last step must shrink along with the others."""

    def config(n):
        return SamplerConfig(
            method="sde", num_steps=n, last_step=1 / n, path=path, state_dtype="float64"
        )

    mean_errors, covariance_errors = zip(*errors(config, [64, 128, 256], path), strict=True)
    assert slopes(covariance_errors) == pytest.approx([1, 1], abs=0.3)
    assert covariance_errors[-1] < 0.02
    if path == "linear":
        assert max(mean_errors) < 1e-6, "the mean moves on a straight line, which no step bends"
    else:
        assert slopes(mean_errors) == pytest.approx([1, 1], abs=0.3)


@PATHS
def test_dopri5_reaches_mean_and_covariance_within_its_tolerance(path):
    config = SamplerConfig(method="dopri5", num_steps=1, path=path, state_dtype="float64")
    mean, covariance = moments(gaussian_velocity(MEAN, COVARIANCE, path), config)
    # A relative error of 1e-3 a step is asked for.
    assert float((mean - MEAN).norm()) < 5e-3
    assert float((covariance - COVARIANCE).norm()) < 5e-3


class GaussianModel:
    """Heads and classes that are exact velocities of Gaussians: name -> (mean, covariance).

    Label 0 is the class, label 1 the null label; final and auxiliary head differ.
    """

    def __init__(self, final, aux=None, null=None, null_aux=None):
        self.config = SimpleNamespace(null_label=1)
        self.fields = {(0, 0): final, (0, 1): aux, (1, 0): null, (1, 1): null_aux}

    def __call__(self, x, t, y):
        return Velocities(self._head(x, t, y, 0), self._head(x, t, y, 1))

    def final_velocity(self, x, t, y):
        return self._head(x, t, y, 0)

    def _head(self, x, t, y, head):
        out = torch.empty_like(x)
        for label in (0, 1):
            rows, field = y == label, self.fields[label, head]
            if rows.any():
                out[rows] = gaussian_velocity(*field)(x[rows], float(t[0]))
        return out


HEUN = SamplerConfig(method="heun", num_steps=200, state_dtype="float64")
LABELS = torch.zeros(5, dtype=torch.int64)


def guided_moments(model, guidance, weak_model=None, config=HEUN):
    """Exact moments of guided sampling, for guidance whose field is affine."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    velocity = guided_velocity(model, LABELS, guidance, weak_model)
    out = sample(velocity, x.view(-1, 2, 1, 1), config).flatten(1).double()
    columns = out[1:3] - out[:1]
    return out[0], columns.T @ columns


SPREADS = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([0.3, 0.8], [0.6, 0.5])]
NONE = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.8, 2.5])
@pytest.mark.parametrize("kind", ["ig", "cfg", "auto"])
def test_guidance_between_two_spreads_extrapolates_their_logarithms(kind, scale):
    """Centred Gaussians: d log x / dt is affine in log of the marginal, so S = S_w^(1-s) S_s^s."""
    strong, weak = (NONE, SPREADS[0]), (NONE, SPREADS[1])
    model = {
        "ig": GaussianModel(strong, aux=weak),
        "cfg": GaussianModel(strong, null=weak),
        "auto": GaussianModel(strong),
    }[kind]
    guidance = Guidance(**{f"{kind}_scale": scale})
    mean, covariance = guided_moments(model, guidance, GaussianModel(weak))
    expected = SPREADS[1].diag() ** (1 - scale) * SPREADS[0].diag() ** scale
    # Heun's error at 200 steps.
    torch.testing.assert_close(covariance, torch.diag(expected), rtol=2e-3, atol=1e-5)
    torch.testing.assert_close(mean, NONE, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.8, 2.5])
@pytest.mark.parametrize("kind", ["ig", "cfg", "auto"])
def test_guidance_between_two_means_extrapolates_them(kind, scale):
    """Equal covariances: the guided field is that of the extrapolated mean."""
    strong, weak = (MEAN, COVARIANCE), (-2 * MEAN.flip(0), COVARIANCE)
    model = {
        "ig": GaussianModel(strong, aux=weak),
        "cfg": GaussianModel(strong, null=weak),
        "auto": GaussianModel(strong),
    }[kind]
    guidance = Guidance(**{f"{kind}_scale": scale})
    mean, covariance = guided_moments(model, guidance, GaussianModel(weak))
    expected = weak[0] + scale * (strong[0] - weak[0])
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("ig", "cfg"), [(1.4, 1.45), (0.5, 2.0), (1.7, 1.0), (1.0, 1.5)])
def test_both_guidances_together_extrapolate_the_four_means(ig, cfg):
    """Internal guidance on the labelled and the null velocity, then between the two."""
    means = torch.tensor([[0.7, -0.3], [0.1, 0.2], [-0.4, 0.5], [0.3, -0.6]], dtype=torch.float64)
    final, aux, null, null_aux = ((m, COVARIANCE) for m in means)
    model = GaussianModel(final, aux, null, null_aux)
    mean, covariance = guided_moments(model, Guidance(ig_scale=ig, cfg_scale=cfg))
    labelled = means[1] + ig * (means[0] - means[1])
    unlabelled = means[3] + ig * (means[2] - means[3])
    expected = unlabelled + cfg * (labelled - unlabelled)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=1e-3)


def test_an_interval_guides_for_its_part_of_the_way():
    """Between two spreads, log of the covariance moves by the marginals at the interval's ends."""
    low, high, scale = 0.3, 0.7, 2.0
    strong, weak = (NONE, SPREADS[0]), (NONE, SPREADS[1])
    guidance = Guidance(ig_scale=scale, ig_interval=(low, high))
    config = SamplerConfig(method="euler", num_steps=4000)
    _, covariance = guided_moments(GaussianModel(strong, aux=weak), guidance, config=config)

    def marginal(spread, t):
        return (1 - t) ** 2 * spread.diag() + t**2

    gain = (marginal(SPREADS[0], low) / marginal(SPREADS[0], high)) / (
        marginal(SPREADS[1], low) / marginal(SPREADS[1], high)
    )
    expected = SPREADS[0].diag() * gain ** (scale - 1)
    torch.testing.assert_close(covariance.diag(), expected, rtol=5e-3, atol=0)


def test_many_scales_at_once_are_the_closed_form_of_each():
    strong, weak = (MEAN, COVARIANCE), (-MEAN, COVARIANCE)
    scales = (0.5, 1.0, 1.5, 2.0)
    out = sample_guidances(
        GaussianModel(strong, aux=weak),
        LABELS[:1],
        [Guidance(ig_scale=s) for s in scales],
        torch.zeros(1, 2, 1, 1),
        HEUN,
    )
    expected = torch.stack([-MEAN + s * 2 * MEAN for s in scales]).float()
    torch.testing.assert_close(out.flatten(1), expected, rtol=0, atol=1e-3)
