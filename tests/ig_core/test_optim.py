import pytest
import torch

from ig_core.config import OptimConfig
from ig_core.optim import ema_update, learning_rate, make_optimizers


def test_warm_up_rises_linearly_to_the_rate_and_stays():
    config = OptimConfig(lr=8e-4, warmup_steps=4)
    rates = [learning_rate(step, config) for step in range(6)]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_warm_up_the_first_step_has_the_full_rate(warmup_steps):
    assert learning_rate(0, OptimConfig(lr=1e-3, warmup_steps=warmup_steps)) == 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_ema_update_equals_the_formula_parameter_by_parameter(decay):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), ()]
    ema = [torch.randn(shape, generator=generator) for shape in shapes]
    parameters = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = [
        decay * average + (1 - decay) * new for average, new in zip(ema, parameters, strict=True)
    ]
    ema_update(ema, parameters, decay)
    for average, value in zip(ema, expected, strict=True):
        # Two float32 forms of one expression.
        torch.testing.assert_close(average, value, rtol=1e-6, atol=1e-7)


def test_ema_update_is_in_place_and_leaves_the_parameters_alone():
    ema, parameter = torch.zeros(3), torch.ones(3, requires_grad=True)
    ema_update(iter([ema]), iter([parameter]), 0.75)
    assert torch.equal(ema, torch.full((3,), 0.25))
    assert torch.equal(parameter, torch.ones(3))
    assert not ema.requires_grad


def test_ema_of_constant_parameters_stays_exactly_there():
    ema, parameter = torch.full((3,), 0.1), torch.full((3,), 0.1)
    for _ in range(100):
        ema_update([ema], [parameter], 0.9999)
    assert torch.equal(ema, parameter)


def test_optimizer_holds_all_parameters_in_order_with_the_configured_values(random_model):
    model = random_model()
    config = OptimConfig(lr=3e-4, betas=(0.8, 0.95), weight_decay=0.01)
    (optimizer,) = make_optimizers(model, config)
    (group,) = optimizer.param_groups
    named = [parameter for _, parameter in model.named_parameters()]
    assert all(a is b for a, b in zip(group["params"], named, strict=True))
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.8, 0.95), 0.01)


def test_first_optimizer_step_is_adamw():
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    (optimizer,) = make_optimizers(layer, OptimConfig(lr=0.1, weight_decay=0.5))
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    # Decay by lr * weight_decay, then a normalised step of lr; eps of Adam is 1e-8.
    assert float(layer.weight.detach()) == pytest.approx(2.0 * (1 - 0.05) - 0.1, abs=1e-6)
