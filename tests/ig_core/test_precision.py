"""Autocast, activation checkpointing and compilation: what they change, and what not."""

import itertools
import math

import pytest
import torch

from ig_core.config import Guidance, LossConfig, SamplerConfig
from ig_core.guidance import guided_velocity
from ig_core.loss import ig_loss
from ig_core.precision import autocast, loss_scaler
from ig_core.sampling import sample

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
LIGHT = {"rope": True, "rms_norm": True, "swiglu": True, "qk_norm": True, "adaln_shift": False}
OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, LIGHT], ids=["sit", "qk_norm", "lightningdit"]
)
SIZES = pytest.mark.parametrize("size", [{}, {"width": 64, "input_size": 8}], ids=["tiny", "small"])
LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


def dtypes_inside(model, x, t, y, precision):
    """Output dtype of every module in a forward pass under autocast."""
    seen = {}

    def remember(name):
        def hook(module, arguments, output):
            seen[name] = output.dtype

        return hook

    hooks = [
        module.register_forward_hook(remember(name))
        for name, module in model.named_modules()
        if name and not list(module.children())
    ]
    with autocast(precision, x.device):
        out = model(x, t, y)
    for hook in hooks:
        hook.remove()
    return seen, out


@OPTIONS
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.no_grad()
def test_only_the_products_of_the_blocks_are_low_precision(
    random_model, inputs, options, precision, device
):
    model = random_model(**options).to(device)
    x, t, y = (value.to(device) for value in inputs())
    seen, out = dtypes_inside(model, x, t, y, precision)
    products = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.w12", "mlp.w3")
    for name, dtype in seen.items():
        # The identity in the place of an absent norm hands on what it got.
        if isinstance(model.get_submodule(name), torch.nn.Identity):
            continue
        low = name.startswith("blocks.") and name.endswith(products)
        assert dtype == (LOW[precision] if low else torch.float32), name
    assert out.final.dtype == out.aux.dtype == torch.float32


@OPTIONS
@torch.no_grad()
def test_the_stream_between_the_blocks_is_not_rounded(random_model, inputs, options, device):
    model = random_model(std=0.1, **options).to(device)
    x, t, y = (value.to(device) for value in inputs())
    streams = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, arguments, out: streams.append(out))
    with autocast("bf16", device):
        model(x, t, y)
    for stream in streams:
        kept = (stream.bfloat16().float() == stream).float().mean()
        assert kept < 0.5, "the residual stream holds bf16 values"


@torch.no_grad()
def test_the_rotary_embedding_is_float32(random_model, inputs, device, monkeypatch):
    from ig_core import layers

    seen, original = set(), layers.rotate

    def rotate(x, tables):
        out = original(x, tables)
        seen.update((tables[0].dtype, tables[1].dtype, out.dtype))
        return out

    monkeypatch.setattr(layers, "rotate", rotate)
    model = random_model(**LIGHT).to(device)
    with autocast("bf16", device):
        model(*(value.to(device) for value in inputs()))
    assert seen == {torch.float32}


@OPTIONS
@torch.no_grad()
def test_bf16_is_float32_to_its_rounding(random_model, inputs, options, device):
    model = random_model(std=0.1, **options).to(device)
    x, t, y = (value.to(device) for value in inputs())
    exact = model(x, t, y)
    with autocast("bf16", device):
        rounded = model(x, t, y)
    for low, full in zip(rounded, exact, strict=True):
        deviation = float((low - full).norm() / full.norm())
        # bf16 has 8 bits of mantissa; exactly zero would mean that nothing was cast.
        assert 0 < deviation < 2.0**-6


def test_float32_is_no_autocast(device):
    with autocast("float32", device):
        assert not torch.is_autocast_enabled(device.type)
    assert not loss_scaler("float32", device).is_enabled()
    assert not loss_scaler("bf16", device).is_enabled()
    assert loss_scaler("fp16", device).is_enabled()


def test_sampling_has_the_precision_of_its_configuration(random_model, inputs):
    model = random_model(std=0.1)
    x, _, y = inputs()
    seen = []
    model.blocks[0].attn.qkv.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    for precision, dtype in {"float32": torch.float32, **LOW}.items():
        config = SamplerConfig(method="heun", num_steps=1, precision=precision)
        out = sample(guided_velocity(model, y, Guidance()), x, config)
        assert out.dtype == torch.float32
        assert set(seen) == {dtype}
        seen.clear()


def gradients(model, x, t, y):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.device)
    terms = ig_loss(model, x, y, t, noise, LossConfig())
    terms.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return float(terms.total.detach()), found


@OPTIONS
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_activation_checkpointing_changes_no_bit(random_model, inputs, options, precision, device):
    model = random_model(**options).to(device)
    batch = tuple(value.to(device) for value in inputs())
    calls = []
    model.blocks[1].attn.register_forward_hook(lambda *_: calls.append(1))
    with autocast(precision, device):
        loss, kept = gradients(model, *batch)
        model.activation_checkpointing = True
        calls.clear()
        again, recomputed = gradients(model, *batch)
    assert len(calls) == 2, "the block was not run again in the backward pass"
    assert again == loss
    assert all(torch.equal(recomputed[name], kept[name]) for name in kept)


def test_sampling_recomputes_nothing(random_model, inputs):
    model = random_model()
    model.activation_checkpointing = True
    x, t, y = inputs()
    with torch.no_grad():
        assert torch.equal(model(x, t, y).final, model.final_velocity(x, t, y))


@pytest.mark.slow
@OPTIONS
@SIZES
def test_compiled_blocks_agree_to_rounding(random_model, options, size, device):
    """Forward, backward and both heads; slow, because a compiler for the machine is run."""
    torch._dynamo.reset()
    model, compiled = (random_model(std=0.15, **options, **size).to(device) for _ in range(2))
    compiled.compile_blocks()
    assert compiled.state_dict().keys() == model.state_dict().keys()
    for batch, checkpointing in itertools.product((5, 3), (False, True)):
        arguments = (
            torch.randn(batch, 2, model.config.input_size, model.config.input_size),
            torch.rand(batch),
            torch.arange(batch) % 5,
        )
        arguments = tuple(value.to(device) for value in arguments)
        compiled.activation_checkpointing = checkpointing
        loss, theirs = gradients(model, *arguments)
        found, ours = gradients(compiled, *arguments)
        assert found == pytest.approx(loss, rel=1e-5)
        total = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in theirs.values()))
        for name, gradient in theirs.items():
            # Fused kernels sum in another order. (The gradient of k_norm's bias is nothing else:
            # a shift of all keys leaves the softmax.)
            tolerance = 1e-4 * float(gradient.norm()) + 1e-6 * total
            assert float((ours[name] - gradient).norm()) <= tolerance, name
