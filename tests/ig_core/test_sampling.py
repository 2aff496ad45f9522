"""Grids, steps, precisions and errors of the samplers; `test_gaussian` has their accuracy."""

import math

import pytest
import torch

from ig_core.config import Guidance, SamplerConfig
from ig_core.guidance import guided_velocity
from ig_core.noise import AddressedNoise
from ig_core.path import coefficients
from ig_core.sampling import NonFiniteSampleError, sample, time_grid

MEAN, STD = 0.6, 0.4


def config(method="euler", num_steps=8, **changes):
    return SamplerConfig(method=method, num_steps=num_steps, **changes)


def gaussian_field(mean, std, path="linear"):
    """Exact marginal velocity for data N(mean, std^2)."""

    def velocity(x, t):
        c = coefficients(path, torch.tensor(t, dtype=torch.float64))
        centred = (x.double() - c.alpha * mean) / (c.alpha**2 * std**2 + c.sigma**2)
        data = mean + c.alpha * std**2 * centred
        return (c.d_alpha * data + c.d_sigma * c.sigma * centred).to(x.dtype)

    return velocity


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 1, 2, 2, generator=generator)


def test_ode_grid_is_the_nearest_fractions_so_that_an_interval_can_end_on_a_step():
    assert time_grid(config(num_steps=10)) == [k / 10 for k in range(10, -1, -1)]


@pytest.mark.parametrize("method", ["euler", "sde"])
@pytest.mark.parametrize("shift", [0.1, 0.2, 0.3, 1.0, 1 / 0.3, 4.0])
def test_grid_starts_at_exactly_one_so_that_full_intervals_hold_it(method, shift):
    times = time_grid(config(method, 6, shift=shift))
    assert (times[0], times[-1]) == (1.0, 0.0)


@pytest.mark.parametrize("shift", [0.1, 0.2, 1.0])
def test_guidance_with_a_full_interval_acts_at_the_first_step(shift, random_model, inputs):
    model = random_model()
    x, _, y = inputs()
    settings = config(num_steps=1, shift=shift)
    guided = sample(guided_velocity(model, y, Guidance(ig_scale=1.5)), x, settings)
    assert not torch.equal(guided, sample(guided_velocity(model, y, Guidance()), x, settings))


@pytest.mark.parametrize("last_step", [0.04, 0.1])
def test_sde_reaches_last_step_exactly(last_step):
    assert time_grid(config("sde", 6, last_step=last_step))[-2] == last_step


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
def test_ode_grid_is_equal_intervals_then_shift(method, shift):
    times = time_grid(config(method, 7, shift=shift))
    raw = [1 - k / 7 for k in range(8)]
    # Float64 rounding.
    assert times == pytest.approx([shift * t / (1 + (shift - 1) * t) for t in raw], abs=1e-15)
    assert times == sorted(times, reverse=True)


def test_shift_above_one_spends_more_steps_near_the_noise():
    middle = time_grid(config(num_steps=2, shift=3.0))[1]
    assert middle == pytest.approx(0.75)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("last_step", [0.04, 0.1])
def test_sde_grid_ends_with_one_long_step_from_last_step(shift, last_step):
    times = time_grid(config("sde", 6, shift=shift, last_step=last_step))
    raw = [*torch.linspace(1, last_step, 6, dtype=torch.float64).tolist(), 0.0]
    assert times == pytest.approx([shift * t / (1 + (shift - 1) * t) for t in raw], abs=1e-15)
    assert len(times) == 7


def test_sde_grid_of_one_step_goes_from_noise_to_data():
    assert time_grid(config("sde", 1)) == [1.0, 0.0]


def test_sde_asks_noise_for_every_step_but_the_last(noise):
    asked = []

    def noise_fn(step, x):
        asked.append((step, x.dtype, x.shape))
        return torch.zeros_like(x)

    sample(gaussian_field(MEAN, STD), noise, config("sde", 5, state_dtype="float64"), noise_fn)
    assert asked == [(step, torch.float64, noise.shape) for step in range(4)]


def test_sde_step_is_the_documented_formula(noise):
    velocity = gaussian_field(MEAN, STD)
    draws = torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
    out = sample(velocity, noise, config("sde", 2, last_step=0.2), lambda step, x: draws)
    v = velocity(noise, 1.0)
    x = noise - 0.8 * (v - 1.0 * -noise) + math.sqrt(2 * 1.0 * 0.8) * draws
    v = velocity(x, 0.2)
    x = x - 0.2 * (v - 0.2 * -(x + 0.8 * v) / 0.2)
    # Float32 rounding of two steps.
    torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)


def test_sde_without_noise_is_an_error(noise):
    with pytest.raises(ValueError, match="'sde' needs noise_fn, but got None"):
        sample(gaussian_field(MEAN, STD), noise, config("sde"))


@pytest.mark.parametrize("method", ["euler", "heun", "dopri5", "sde"])
@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
def test_network_sees_float32_and_samples_are_float32(noise, method, state_dtype):
    seen = set()
    field = gaussian_field(MEAN, STD)

    def velocity(x, t):
        seen.add((x.dtype, type(t)))
        return field(x, t)

    settings = config(method, 3, state_dtype=state_dtype)
    out = sample(velocity, noise, settings, lambda step, x: torch.zeros_like(x))
    assert seen == {(torch.float32, float)}
    assert out.dtype == torch.float32
    assert out.shape == noise.shape


@pytest.mark.parametrize(("state_dtype", "moves"), [("float32", False), ("float64", True)])
def test_float64_state_keeps_steps_below_float32_resolution(state_dtype, moves):
    start = torch.ones(1, 1, 1, 1)
    settings = config(num_steps=1000, state_dtype=state_dtype)
    out = sample(lambda x, t: torch.full_like(x, 1e-5), start, settings)
    assert bool((out != start).all()) == moves


@pytest.mark.parametrize(("method", "calls"), [("euler", 5), ("heun", 10), ("sde", 5)])
def test_number_of_network_calls_is_fixed(noise, method, calls):
    times = []

    def velocity(x, t):
        times.append(t)
        return torch.zeros_like(x)

    sample(velocity, noise, config(method, 5), lambda step, x: torch.zeros_like(x))
    assert len(times) == calls


def test_heun_corrects_the_last_step_too(noise):
    times = []

    def velocity(x, t):
        times.append(t)
        return torch.zeros_like(x)

    sample(velocity, noise, config("heun", 4))
    assert times == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0]


def test_sampling_keeps_its_input_and_builds_no_graph(noise, random_model):
    start = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    before = start.clone()
    velocity = guided_velocity(random_model(), torch.tensor([0, 1]), Guidance(ig_scale=1.5))
    assert not sample(velocity, start, config()).requires_grad
    assert torch.equal(start, before)


@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
def test_image_is_the_same_at_any_batch_size(random_model, method):
    model = random_model(std=0.2)
    noise = AddressedNoise(11, "test")
    guidance = Guidance(ig_scale=1.4, cfg_scale=1.5, cfg_interval=(0.2, 0.9))
    settings = config(method, 6)

    def images(index):
        velocity = guided_velocity(model, index % 4, guidance)
        start = noise.normal(index, (2, 4, 4))
        return sample(
            velocity, start, settings, lambda step, x: noise.normal(index, (2, 4, 4), step + 1)
        )

    whole = images(torch.arange(64))
    assert float(whole.std()) > 0.1
    for batch in (1, 7, 64):
        parts = torch.cat([images(part) for part in torch.arange(64).split(batch)])
        # Matrix products of another height may sum in another order: float32 rounding.
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun", "sde", "dopri5"])
def test_a_sample_that_is_not_finite_is_an_error(noise, method):
    def velocity(x, t):
        return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == 3, math.nan, x)

    words = "no step size" if method == "dopri5" else "precision 'fp16'"
    with pytest.raises(NonFiniteSampleError, match=words):
        sample(velocity, noise, config(method, 2, precision="fp16"), lambda step, x: x)


def test_labels_must_be_as_many_as_samples(random_model, inputs):
    x, _, y = inputs()
    velocity = guided_velocity(random_model(), y[:1], Guidance())
    with pytest.raises(ValueError, match="a label for each of 5 samples, but got 1"):
        sample(velocity, x, config())
