import math
from types import SimpleNamespace

import pytest
import torch

from ig_core.config import Guidance
from ig_core.guidance import extrapolate, guided_velocity
from ig_core.transformer import Velocities

KINDS = ["ig", "cfg", "auto"]


class Recorder:
    """A model whose heads are known functions; remembers the batch of every call."""

    def __init__(self, gain=1.0):
        self.gain = gain
        self.config = SimpleNamespace(null_label=4)
        self.both_heads, self.final_only = [], []

    def final(self, x, t, y):
        return self.gain * (x * (2 + y[:, None, None, None]) + t[:, None, None, None])

    def aux(self, x, t, y):
        return self.gain * (x.cos() * (1 + y[:, None, None, None]))

    def __call__(self, x, t, y):
        self.both_heads.append((x, t, y))
        return Velocities(self.final(x, t, y), self.aux(x, t, y))

    def final_velocity(self, x, t, y):
        self.final_only.append((x, t, y))
        return self.final(x, t, y)

    @property
    def batch_sizes(self):
        return [len(x) for x, _, _ in self.both_heads + self.final_only]


@pytest.fixture
def x():
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y():
    return torch.tensor([0, 3, 1])


def times(t):
    return torch.full((3,), t)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 0.5, 1.0, 1.5, 4.0])
def test_extrapolate_is_weak_plus_scaled_difference(x, scale):
    strong, weak = x, x.flip(0)
    # Float32 rounding of two forms of one affine expression, scaled by up to 4.
    torch.testing.assert_close(
        extrapolate(strong, weak, scale), weak + scale * (strong - weak), rtol=1e-5, atol=2e-6
    )


def test_scale_one_returns_strong_itself(x):
    assert extrapolate(x, x + 1, 1.0) is x
    assert extrapolate(x, x + 1, 1) is x


def test_scale_zero_returns_weak_exactly(x):
    assert torch.equal(extrapolate(x * 1e8, x, 0.0), x)


def test_guidance_at_scale_one_is_bit_identical_to_the_plain_model(random_model, x, y):
    model = random_model()
    velocity = guided_velocity(model, y, Guidance(), weak_model=random_model(seed=9))
    assert torch.equal(velocity(x, 0.3), model(x, times(0.3), y).final)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.7])
def test_internal_guidance_extrapolates_from_the_auxiliary_head(random_model, x, y, scale):
    model = random_model()
    out = model(x, times(0.3), y)
    expected = out.aux + scale * (out.final - out.aux)
    velocity = guided_velocity(model, y, Guidance(ig_scale=scale))
    torch.testing.assert_close(velocity(x, 0.3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_classifier_free_guidance_extrapolates_from_the_null_label(random_model, x, y, scale):
    model = random_model()
    # Both halves in one batch, as guided_velocity evaluates them: the order of float32 sums depends
    # on the size of the batch, by amounts that the extrapolation enlarges.
    labels = torch.cat([y, torch.full_like(y, 4)])
    both = model(torch.cat([x, x]), times(0.3).repeat(2), labels).final
    with_label, without = both.chunk(2)
    velocity = guided_velocity(model, y, Guidance(cfg_scale=scale))
    torch.testing.assert_close(
        velocity(x, 0.3), without + scale * (with_label - without), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_autoguidance_extrapolates_from_the_final_head_of_the_weak_model(random_model, x, y, scale):
    model, weak_model = random_model(), random_model(seed=9, width=8)
    strong, weak = (network(x, times(0.3), y).final for network in (model, weak_model))
    velocity = guided_velocity(model, y, Guidance(auto_scale=scale), weak_model)
    torch.testing.assert_close(
        velocity(x, 0.3), weak + scale * (strong - weak), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("ig", [0.5, 1.4])
@pytest.mark.parametrize("cfg", [0.7, 3.0])
@pytest.mark.parametrize("auto", [0.2, 2.0])
def test_order_is_internal_then_classifier_free_then_autoguidance(x, y, ig, cfg, auto):
    model, weak_model = Recorder(), Recorder(gain=0.5)
    t, null = times(0.4), torch.full_like(y, 4)
    guided = []
    for labels in (y, null):
        final, aux = model.final(x, t, labels), model.aux(x, t, labels)
        guided.append(aux + ig * (final - aux))
    mixed = guided[1] + cfg * (guided[0] - guided[1])
    weak = weak_model.final(x, t, y)
    expected = weak + auto * (mixed - weak)
    guidance = Guidance(ig_scale=ig, cfg_scale=cfg, auto_scale=auto)
    velocity = guided_velocity(model, y, guidance, weak_model)
    # Values up to 60 after three float32 extrapolations.
    torch.testing.assert_close(velocity(x, 0.4), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_interval_includes_both_ends_and_nothing_outside(x, y, kind):
    low, high = 0.25, 0.75
    model, weak_model = Recorder(), Recorder(gain=0.5)
    guidance = Guidance(**{f"{kind}_scale": 2.0, f"{kind}_interval": (low, high)})
    velocity = guided_velocity(model, y, guidance, weak_model)

    def acts(t):
        return not torch.equal(velocity(x, t), model.final(x, times(t), y))

    assert [acts(t) for t in (low, 0.5, high)] == [True] * 3
    outside = (0.0, math.nextafter(low, 0), math.nextafter(high, 1), 1.0)
    assert [acts(t) for t in outside] == [False] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_full_interval_acts_from_noise_to_data(x, y, kind):
    model, weak_model = Recorder(), Recorder(gain=0.5)
    velocity = guided_velocity(model, y, Guidance(**{f"{kind}_scale": 2.0}), weak_model)
    for t in (0.0, 1.0):
        assert not torch.equal(velocity(x, t), model.final(x, times(t), y))


def test_kinds_act_in_their_own_intervals(x, y):
    guidance = Guidance(
        ig_scale=1.5, ig_interval=(0.0, 0.5), cfg_scale=3.0, cfg_interval=(0.5, 1.0)
    )
    model = Recorder()
    velocity = guided_velocity(model, y, guidance)
    only_ig = guided_velocity(Recorder(), y, Guidance(ig_scale=1.5))
    only_cfg = guided_velocity(Recorder(), y, Guidance(cfg_scale=3.0))
    both = guided_velocity(Recorder(), y, Guidance(ig_scale=1.5, cfg_scale=3.0))
    assert torch.equal(velocity(x, 0.2), only_ig(x, 0.2))
    assert torch.equal(velocity(x, 0.8), only_cfg(x, 0.8))
    assert torch.equal(velocity(x, 0.5), both(x, 0.5))


def test_null_half_is_computed_inside_the_interval_only(x, y):
    model = Recorder()
    velocity = guided_velocity(model, y, Guidance(cfg_scale=2.0, cfg_interval=(0.2, 0.6)))
    for t in (0.1, 0.4, 0.9):
        velocity(x, t)
    assert model.batch_sizes == [3, 6, 3]
    _, _, labels = model.final_only[1]
    assert labels.tolist() == [0, 3, 1, 4, 4, 4]


def test_auxiliary_head_runs_inside_the_interval_only(random_model, x, y):
    model = random_model()
    calls = []
    model.aux_head.register_forward_hook(lambda *_: calls.append(1))
    velocity = guided_velocity(model, y, Guidance(ig_scale=2.0, ig_interval=(0.2, 0.6)))
    counts = []
    for t in (0.1, 0.2, 0.6, 0.9):
        velocity(x, t)
        counts.append(len(calls))
    assert counts == [0, 1, 2, 2]


def test_trunk_runs_once_with_internal_guidance(random_model, x, y):
    model = random_model()
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    guided_velocity(model, y, Guidance(ig_scale=2.0))(x, 0.5)
    assert len(calls) == 1


def test_weak_model_runs_inside_the_interval_only(x, y):
    weak_model = Recorder()
    guidance = Guidance(auto_scale=2.0, auto_interval=(0.2, 0.6))
    velocity = guided_velocity(Recorder(), y, guidance, weak_model)
    for t in (0.1, 0.9):
        velocity(x, t)
    assert weak_model.batch_sizes == []
    velocity(x, 0.4)
    assert weak_model.batch_sizes == [3]


def test_weak_model_is_never_run_at_scale_one(x, y):
    weak_model = Recorder()
    velocity = guided_velocity(Recorder(), y, Guidance(ig_scale=2.0, cfg_scale=2.0), weak_model)
    velocity(x, 0.5)
    assert weak_model.batch_sizes == []


def test_model_sees_the_time_of_every_sample_as_float32(x, y):
    model = Recorder()
    guided_velocity(model, y, Guidance(cfg_scale=2.0))(x, 0.1)
    _, t, _ = model.final_only[0]
    assert t.dtype == torch.float32
    assert torch.equal(t, torch.full((6,), 0.1))


def test_internal_guidance_without_auxiliary_head_is_an_error(random_model, y):
    model = random_model(aux_layer=None)
    with pytest.raises(ValueError, match=r"ig_scale must be 1 .*aux_layer.*, but got 1\.5"):
        guided_velocity(model, y, Guidance(ig_scale=1.5))


def test_autoguidance_without_weak_model_is_an_error(random_model, y):
    with pytest.raises(
        ValueError, match=r"auto_scale must be 1 without a weak model, but got 0\.5"
    ):
        guided_velocity(random_model(), y, Guidance(auto_scale=0.5))


def test_neither_error_for_guidance_that_needs_neither(random_model, x, y):
    model = random_model(aux_layer=None)
    velocity = guided_velocity(model, y, Guidance(cfg_scale=2.0))
    assert velocity(x, 0.5).shape == x.shape


def test_weak_model_needs_no_auxiliary_head(random_model, x, y):
    weak_model = random_model(seed=9, aux_layer=None)
    guidance = Guidance(ig_scale=1.5, auto_scale=2.0)
    assert guided_velocity(random_model(), y, guidance, weak_model)(x, 0.5).shape == x.shape
