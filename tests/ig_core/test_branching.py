"""Many guidances at once: the same samples as one by one, for less work."""

import pytest
import torch

from ig_core.branching import sample_guidances
from ig_core.config import Guidance, SamplerConfig
from ig_core.guidance import guided_velocity
from ig_core.sampling import sample


@pytest.fixture
def start(inputs):
    x, _, y = inputs(3)
    return x, y


@pytest.fixture
def count_rows():
    """Count the rows that pass a model's trunk and its auxiliary head, and the passes."""

    def attach(model):
        rows = {"trunk": 0, "aux": 0, "passes": 0}

        def passed(kind):
            def hook(_, arguments):
                rows[kind] += len(arguments[0])
                rows["passes"] += kind == "trunk"

            return hook

        model.blocks[0].register_forward_pre_hook(passed("trunk"))
        if model.aux_head is not None:
            model.aux_head.register_forward_pre_hook(passed("aux"))
        return rows

    return attach


def noise_for(step, x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(step)).to(x.dtype)


def one_by_one(model, y, guidances, x, config, weak_model=None):
    return torch.stack(
        [
            sample(guided_velocity(model, y, guidance, weak_model), x, config, noise_for)
            for guidance in guidances
        ]
    )


SCALES = [Guidance(ig_scale=s) for s in (1.0, 0.0, 1.4, 1.8)]
SCALES_UNDER_CFG = [
    Guidance(ig_scale=ig, cfg_scale=cfg) for ig, cfg in ((1.4, 3.0), (2.5, 3.0), (2.5, 1.5))
]
MIXED = [
    Guidance(),
    Guidance(ig_scale=1.5, ig_interval=(0.3, 1.0)),
    Guidance(ig_scale=1.5, ig_interval=(0.3, 1.0), cfg_scale=2.0, cfg_interval=(0.0, 0.7)),
    Guidance(cfg_scale=2.0, cfg_interval=(0.0, 0.7)),
    Guidance(cfg_scale=0.5, cfg_interval=(0.2, 0.5), auto_scale=1.6, auto_interval=(0.1, 0.8)),
    Guidance(ig_scale=1.5, ig_interval=(0.6, 1.0)),
    Guidance(auto_scale=2.0),
]


@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
@pytest.mark.parametrize("state_dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "guidances",
    [SCALES, SCALES_UNDER_CFG, MIXED, MIXED[:1], MIXED[3:] + MIXED],
    ids=["scales", "scales under CFG", "mixed", "one", "repeated"],
)
def test_the_samples_are_those_of_separate_calls(
    random_model, start, guidances, method, state_dtype
):
    model, weak_model = random_model(std=0.2), random_model(seed=9, std=0.2)
    x, y = start
    config = SamplerConfig(method=method, num_steps=7, state_dtype=state_dtype)
    together = sample_guidances(model, y, guidances, x, config, noise_for, weak_model)
    alone = one_by_one(model, y, guidances, x, config, weak_model)
    assert together.shape == (len(guidances), *x.shape)
    assert together.dtype == torch.float32
    # Matrix products of another height may sum in another order: float32 rounding.
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["euler", "heun", "sde"])
@pytest.mark.parametrize("guidances", [SCALES, MIXED], ids=["scales", "mixed"])
def test_without_batching_they_are_those_of_separate_calls_bit_for_bit(
    random_model, start, guidances, method
):
    model, weak_model = random_model(std=0.2), random_model(seed=9, std=0.2)
    x, y = start
    config = SamplerConfig(method=method, num_steps=7)
    alone = one_by_one(model, y, guidances, x, config, weak_model)
    together = sample_guidances(
        model, y, guidances, x, config, noise_for, weak_model, batched=False
    )
    assert torch.equal(together, alone)


def test_dopri5_samples_each_guidance_by_itself_bit_for_bit(random_model, start):
    """Its steps depend on the batch, so that nothing is shared."""
    model, weak_model = random_model(std=0.2), random_model(seed=9, std=0.2)
    x, y = start
    config = SamplerConfig(method="dopri5", num_steps=7)
    together = sample_guidances(model, y, MIXED[2:5], x, config, noise_for, weak_model)
    assert torch.equal(together, one_by_one(model, y, MIXED[2:5], x, config, weak_model))


def test_without_batching_shared_steps_are_still_taken_once(random_model, start, count_rows):
    x, y = start
    model = random_model()
    guidances = [Guidance(ig_scale=s, ig_interval=(0.0, 0.401)) for s in (1.2, 1.4, 1.6, 1.8)]
    config = SamplerConfig(method="euler", num_steps=10)
    rows = count_rows(model)
    sample_guidances(model, y, guidances, x, config, batched=False)
    assert rows["trunk"] == 3 * (6 + 4 * 4)
    assert rows["passes"] == 6 + 4 * 4


def test_different_guidances_give_different_samples(random_model, start):
    x, y = start
    config = SamplerConfig(method="heun", num_steps=4)
    weak_model = random_model(seed=9, std=0.2)
    out = sample_guidances(random_model(std=0.2), y, MIXED, x, config, None, weak_model)
    for number, one in enumerate(out):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in out[number + 1 :])


def test_equal_guidances_are_one_trajectory(random_model, start, count_rows):
    x, y = start
    model = random_model()
    rows = count_rows(model)
    config = SamplerConfig(method="euler", num_steps=5)
    first, second = sample_guidances(model, y, [Guidance(ig_scale=1.5)] * 2, x, config)
    assert torch.equal(first, second)
    assert rows["trunk"] == 5 * 3


@pytest.mark.parametrize(("method", "evaluations"), [("euler", 10), ("sde", 10), ("heun", 20)])
def test_steps_on_which_all_agree_are_taken_once(
    random_model, start, count_rows, method, evaluations
):
    """Ten steps; the interval holds the start of the last four (0.4, 0.3, 0.2 and 0.1)."""
    x, y = start
    model = random_model()
    guidances = [Guidance(ig_scale=s, ig_interval=(0.0, 0.401)) for s in (1.2, 1.4, 1.6, 1.8)]
    config = SamplerConfig(method=method, num_steps=10, last_step=0.1)
    rows = count_rows(model)
    sample_guidances(model, y, guidances, x, config, noise_for)
    # Heun sees 0.4 from the step before, at whose start they still agree.
    shared = {"euler": 6, "sde": 6, "heun": 11}[method]
    assert rows["trunk"] == 3 * (shared + 4 * (evaluations - shared))
    assert rows["passes"] == evaluations
    guided = {"euler": 4, "sde": 4, "heun": 9}[method]
    assert rows["aux"] == 3 * 4 * guided


def test_branches_share_what_their_own_intervals_allow(random_model, start, count_rows):
    """A grid of two scales and two intervals is two trajectories until the intervals part."""
    x, y = start
    model = random_model()
    guidances = [
        Guidance(ig_scale=s, ig_interval=(low, 1.0)) for s in (1.5, 2.0) for low in (0.25, 0.65)
    ]
    rows = count_rows(model)
    sample_guidances(model, y, guidances, x, SamplerConfig(method="euler", num_steps=10))
    # Times 1.0 .. 0.7 in two branches, 0.6 .. 0.1 in four.
    assert rows["trunk"] == 3 * (2 * 4 + 4 * 6)
    # 0.6 .. 0.3 only for the wider interval.
    assert rows["aux"] == 3 * (2 * 4 + 2 * 4)


def test_the_null_half_is_computed_for_the_branches_that_need_it(random_model, start, count_rows):
    x, y = start
    model = random_model()
    guidances = [Guidance(), Guidance(cfg_scale=2.0), Guidance(cfg_scale=3.0)]
    rows = count_rows(model)
    sample_guidances(model, y, guidances, x, SamplerConfig(method="euler", num_steps=1))
    assert rows == {"trunk": 3 * (1 + 2 + 2), "aux": 0, "passes": 2}


def test_noise_is_asked_for_once_a_step_in_the_shape_of_the_batch(random_model, start):
    x, y = start
    asked = []

    def noise_fn(step, x):
        asked.append((step, x.shape, x.dtype))
        return torch.zeros_like(x)

    config = SamplerConfig(method="sde", num_steps=4, state_dtype="float64")
    sample_guidances(random_model(), y, SCALES, x, config, noise_fn)
    assert asked == [(step, x.shape, torch.float64) for step in range(3)]


def test_no_guidance_is_an_error(random_model, start):
    x, y = start
    with pytest.raises(ValueError, match="guidances must be at least one, but got none"):
        sample_guidances(random_model(), y, [], x, SamplerConfig(method="euler", num_steps=1))


def test_every_guidance_is_checked_before_any_work(random_model, start, count_rows):
    x, y = start
    model = random_model(aux_layer=None)
    rows = count_rows(model)
    config = SamplerConfig(method="euler", num_steps=1)
    with pytest.raises(ValueError, match=r"ig_scale must be 1 .*, but got 1\.5"):
        sample_guidances(model, y, [Guidance(), Guidance(ig_scale=1.5)], x, config)
    with pytest.raises(ValueError, match=r"auto_scale must be 1 .*, but got 2\.0"):
        sample_guidances(model, y, [Guidance(), Guidance(auto_scale=2.0)], x, config)
    sde = SamplerConfig(method="sde", num_steps=1)
    with pytest.raises(ValueError, match="'sde' needs noise_fn"):
        sample_guidances(model, y, [Guidance()], x, sde)
    assert rows["passes"] == 0
