"""Parameters and arithmetic, against the real modules and against published counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ig_core.checkpoints.own import pack_checkpoint
from ig_core.config import MODELS, Guidance, ModelConfig, OptimConfig, SamplerConfig, model_config
from ig_core.costs import checkpoint_bytes, forward_flops, parameter_count, sampling_flops
from ig_core.training.state import TrainState
from ig_core.transformer import DiffusionTransformer

SMALL = ModelConfig(
    depth=3,
    width=32,
    num_heads=2,
    patch_size=2,
    input_size=8,
    in_channels=4,
    num_classes=10,
    aux_layer=1,
)
VARIANTS = [
    SMALL,
    replace(SMALL, aux_layer=None, adaln_shift=False),
    replace(SMALL, qk_norm=True),
    replace(
        SMALL,
        backbone="lightningdit",
        patch_size=1,
        rope=True,
        rms_norm=True,
        swiglu=True,
        qk_norm=True,
    ),
]


@pytest.mark.parametrize("config", [*VARIANTS, *map(model_config, MODELS)])
def test_parameters_are_those_of_the_modules(config):
    shapes = DiffusionTransformer.shapes(config)
    real = sum(shape.numel() for name, shape in shapes.items() if name != "pos_embed")
    assert parameter_count(config) == real


@pytest.mark.parametrize("config", VARIANTS)
def test_arithmetic_is_what_torch_counts(config):
    model = DiffusionTransformer(config)
    side = config.input_size
    x, t, y = torch.randn(1, 4, side, side), torch.rand(1), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, t, y)
    # torch leaves the products of attention out where its kernel for CPUs is not counted.
    attention = 2 * config.depth * 2 * config.grid_size**4 * config.width
    assert forward_flops(config) in (
        counter.get_total_flops(),
        counter.get_total_flops() + attention,
    )


@pytest.mark.parametrize(
    ("name", "published"), [("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64)]
)
def test_arithmetic_is_the_published_one(name, published):
    """Gflops of DiT-*/2 (Peebles and Xie 2023, table 4), which count a multiply-add as one."""
    config = model_config(f"SiT-{name}/2", aux_layer=None)
    assert forward_flops(config) / 2e9 == pytest.approx(published, rel=0.005)


def test_classifier_free_guidance_counts_twice_in_its_interval():
    sampler, one = SamplerConfig(method="euler", num_steps=10), forward_flops(SMALL)
    assert sampling_flops(SMALL, sampler, Guidance(ig_scale=2.0)) == 10 * one
    assert sampling_flops(SMALL, sampler, Guidance(cfg_scale=2.0)) == 20 * one
    half = Guidance(cfg_scale=2.0, cfg_interval=(0.0, 0.55))
    assert sampling_flops(SMALL, sampler, half) == 15 * one
    heun = replace(sampler, method="heun")
    assert sampling_flops(SMALL, heun, Guidance()) == 20 * one
    # More steps near the noise: fewer of them in an interval near the data.
    shifted = replace(sampler, shift=3.0)
    assert sampling_flops(SMALL, shifted, half) < 15 * one


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bytes_of_a_checkpoint_are_near_what_is_written(optimizer):
    config, optim = model_config("SiT-S/2", num_classes=10), OptimConfig(optimizer=optimizer)
    state = TrainState.new(config, optim, 0, "cpu")
    for parameter in state.model.parameters():  # moments exist after a step only
        parameter.grad = torch.zeros_like(parameter)
    for each in state.optimizers:
        each.step()
    packed = pack_checkpoint(state)
    written = sum(
        value.numel() * value.element_size()
        for part in packed.tensors.values()
        for value in part.values()
    )
    assert checkpoint_bytes(config, optim) == pytest.approx(written, rel=0.01)
