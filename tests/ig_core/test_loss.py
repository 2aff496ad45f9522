import pytest
import torch

from ig_core.config import LossConfig
from ig_core.loss import drop_labels, ig_loss
from ig_core.path import interpolate
from ig_core.transformer import Velocities


@pytest.fixture
def batch(inputs):
    """(x, y, t, noise) in the order of `ig_loss`."""
    x, t, y = inputs()
    return x, y, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def fixed_model(final, aux=None):
    return lambda x, t, y: Velocities(final, aux)


def target_of(batch, path="linear"):
    x, _, t, noise = batch
    return interpolate(path, x, noise, t)[1]


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize(("aux_weight", "cosine_weight"), [(0.5, 0.0), (0.25, 1.0), (0.0, 0.5)])
def test_total_is_the_weighted_sum_of_mean_errors(
    random_model, batch, path, aux_weight, cosine_weight
):
    model = random_model()
    x, y, t, noise = batch
    config = LossConfig(path=path, aux_weight=aux_weight, cosine_weight=cosine_weight)
    terms = ig_loss(model, *batch, config)
    x_t, target = interpolate(path, x, noise, t)
    out = model(x_t, t, y)
    dot = (out.final * target).sum(dim=1)
    cosine = (1 - dot / (out.final.norm(dim=1) * target.norm(dim=1))).mean()
    # Float32 means of 160 values taken in another order.
    close = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(terms.final, ((out.final - target) ** 2).mean(), **close)
    torch.testing.assert_close(terms.aux, ((out.aux - target) ** 2).mean(), **close)
    torch.testing.assert_close(terms.cosine, cosine if cosine_weight else x.new_zeros(()), **close)
    expected = terms.final + aux_weight * terms.aux + cosine_weight * terms.cosine
    torch.testing.assert_close(terms.total, expected, **close)


def test_exact_velocity_has_no_loss(batch):
    target = target_of(batch)
    terms = ig_loss(fixed_model(target, target), *batch, LossConfig(cosine_weight=1.0))
    # 1 - cos of equal vectors is float32 rounding.
    assert float(terms.total) == pytest.approx(0, abs=1e-6)


def test_model_sees_the_noisy_point_its_time_and_its_label(batch):
    x, y, t, noise = batch
    seen = []

    def model(*arguments):
        seen.extend(arguments)
        return Velocities(x, None)

    ig_loss(model, *batch, LossConfig(path="cosine"))
    expected = (interpolate("cosine", x, noise, t)[0], t, y)
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_aux_gradient_reaches_the_trunk_up_to_its_layer_and_no_later_block(random_model, batch):
    model = random_model(depth=4, aux_layer=2)
    ig_loss(model, *batch, LossConfig()).aux.backward()
    later = ("blocks.2.", "blocks.3.", "final_head.")
    for name, parameter in model.named_parameters():
        if name.startswith(later):
            assert parameter.grad is None, name
        else:
            assert bool(parameter.grad.any()), name


def test_total_gradient_adds_both_heads_in_the_trunk(random_model, batch):
    model = random_model()
    weight = model.blocks[0].attn.qkv.weight
    terms = ig_loss(model, *batch, LossConfig(aux_weight=0.25))
    total, final, aux = (
        torch.autograd.grad(term, weight, retain_graph=True)[0]
        for term in (terms.total, terms.final, terms.aux)
    )
    # One float32 accumulation against two.
    assert float((total - final - 0.25 * aux).norm()) < 1e-5 * float(total.norm())


def test_zero_aux_weight_reports_the_term_but_sends_no_gradient(random_model, batch):
    model = random_model()
    terms = ig_loss(model, *batch, LossConfig(aux_weight=0.0))
    terms.total.backward()
    assert float(terms.aux.detach()) > 0
    assert not model.aux_head.linear.weight.grad.any()
    assert torch.equal(terms.total, terms.final)


def test_model_without_auxiliary_head_has_no_aux_loss(random_model, batch):
    model = random_model(aux_layer=None)
    terms = ig_loss(model, *batch, LossConfig(aux_weight=0.5))
    assert float(terms.aux) == 0
    assert torch.equal(terms.total, terms.final)


@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (-2.0, 2.0)])
def test_cosine_term_measures_direction_only(batch, factor, expected):
    prediction = factor * target_of(batch)
    terms = ig_loss(fixed_model(prediction), *batch, LossConfig(cosine_weight=1.0))
    # Float32 rounding of a normalised dot product.
    assert float(terms.cosine) == pytest.approx(expected, abs=1e-6)


def test_cosine_term_is_taken_over_channels(batch):
    target = target_of(batch)
    across = torch.stack([-target[:, 1], target[:, 0]], dim=1)
    terms = ig_loss(fixed_model(across), *batch, LossConfig(cosine_weight=1.0))
    # Every pixel's two channels are turned by a right angle.
    assert float(terms.cosine) == pytest.approx(1.0, abs=1e-6)


def test_cosine_term_ignores_the_auxiliary_head(batch):
    target = target_of(batch)
    terms = ig_loss(fixed_model(target, -target), *batch, LossConfig(cosine_weight=1.0))
    assert float(terms.cosine) == pytest.approx(0, abs=1e-6)


def test_cosine_term_is_zero_when_off(batch):
    terms = ig_loss(fixed_model(-target_of(batch)), *batch, LossConfig())
    assert float(terms.cosine) == 0


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("omega", [0.5, 2.0])
def test_target_guidance_moves_the_target_of_the_final_head_alone(batch, path, omega):
    x, _, _, _ = batch
    target = target_of(batch, path)
    ahead, behind = torch.sin(3 * x), torch.cos(x)
    config = LossConfig(path=path, target_guidance=omega, cosine_weight=1.0)
    moved = target + omega * (ahead - behind)
    terms = ig_loss(fixed_model(moved, target), *batch, config, fixed_model(ahead, behind))
    # Float32 rounding; the final head hits the moved target, the auxiliary one the plain target.
    assert [float(term) for term in terms] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    plain = ig_loss(fixed_model(target, moved), *batch, config, fixed_model(ahead, behind))
    expected = float((omega * (ahead - behind)).square().mean())
    assert float(plain.final) == pytest.approx(expected, rel=1e-5)
    assert float(plain.aux) == pytest.approx(expected, rel=1e-5)


def test_target_guidance_reads_the_averaged_weights_as_constants(random_model, batch):
    model, averaged = random_model(), random_model(seed=8)
    x, y, t, noise = batch
    config = LossConfig(target_guidance=0.7)
    terms = ig_loss(model, *batch, config, averaged)
    terms.total.backward()
    assert all(p.grad is None for p in averaged.parameters())
    x_t, target = interpolate("linear", x, noise, t)
    lead = averaged(x_t, t, y)
    moved = (target + 0.7 * (lead.final - lead.aux)).detach()
    found = model.blocks[2].attn.qkv.weight.grad.clone()
    model.zero_grad()
    (model(x_t, t, y).final - moved).square().mean().backward()
    # The last block serves the final head alone.
    torch.testing.assert_close(found, model.blocks[2].attn.qkv.weight.grad, rtol=1e-4, atol=1e-7)


def test_target_guidance_is_off_by_default_and_asks_nothing_of_the_average(random_model, batch):
    model = random_model()

    def never(*_):
        raise AssertionError("the averaged model was run")

    assert LossConfig().target_guidance == 0
    terms = ig_loss(model, *batch, LossConfig(), never)
    assert torch.equal(terms.total, ig_loss(model, *batch, LossConfig()).total)


@pytest.mark.parametrize("aux_layer", [None, 2])
def test_target_guidance_without_a_weaker_average_is_an_error(random_model, batch, aux_layer):
    model = random_model()
    averaged = None if aux_layer else random_model(aux_layer=None)
    with pytest.raises(ValueError, match="target_guidance must be 0 without averaged weights"):
        ig_loss(model, *batch, LossConfig(target_guidance=1.0), averaged)


def test_low_precision_predictions_give_float32_losses(batch):
    half = torch.zeros_like(batch[0], dtype=torch.bfloat16)
    terms = ig_loss(fixed_model(half, half), *batch, LossConfig(cosine_weight=1.0))
    assert {term.dtype for term in terms} == {torch.float32}
    assert {term.dim() for term in terms} == {0}
    assert torch.equal(terms.final, target_of(batch).square().mean())


@pytest.mark.parametrize("null_label", [4, 10, 1000])
def test_dropped_labels_become_the_null_label_given(null_label):
    y = torch.tensor([0, 1, 2, 3])
    draw = torch.tensor([0.0, 0.0999, 0.1, 0.9])
    dropped = drop_labels(y, draw, 0.1, null_label)
    assert dropped.tolist() == [null_label, null_label, 2, 3]
    assert dropped.dtype == torch.int64
    assert y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("probability", "expected"), [(0.0, [0, 1]), (1.0, [4, 4])])
def test_probabilities_zero_and_one_drop_nothing_and_everything(probability, expected):
    draw = torch.tensor([0.0, 1 - 2.0**-24])
    assert drop_labels(torch.tensor([0, 1]), draw, probability, 4).tolist() == expected
