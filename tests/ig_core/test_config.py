import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from ig_core.config import (
    MODELS,
    Guidance,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    TrainConfig,
    model_config,
)
from ig_core.transformer import DiffusionTransformer

MODEL = {
    "depth": 4,
    "width": 16,
    "num_heads": 2,
    "patch_size": 2,
    "input_size": 8,
    "in_channels": 1,
    "num_classes": 10,
    "aux_layer": 2,
}
VALID = {
    ModelConfig: MODEL,
    LossConfig: {},
    OptimConfig: {},
    Guidance: {},
    SamplerConfig: {"num_steps": 10},
    TrainConfig: {"steps": 10, "batch_size": 4, "checkpoint_every": 5},
}
NAN, INFINITY = math.nan, math.inf

INVALID = [
    *[
        (ModelConfig, {name: 0}, name, 0, "at least 1")
        for name in (
            "depth",
            "width",
            "num_heads",
            "patch_size",
            "input_size",
            "in_channels",
            "num_classes",
        )
    ],
    (ModelConfig, {"width": 18, "num_heads": 4}, "width", 18, "a multiple of num_heads=4"),
    (ModelConfig, {"width": 18, "num_heads": 3}, "width", 18, "a multiple of 4"),
    (ModelConfig, {"input_size": 9}, "input_size", 9, "a multiple of patch_size=2"),
    (
        ModelConfig,
        {"width": 24, "num_heads": 4, "rope": True},
        "width / num_heads",
        6,
        "a multiple of 4 with rope",
    ),
    (ModelConfig, {"aux_layer": 0}, "aux_layer", 0, "None or in 1..3"),
    (ModelConfig, {"aux_layer": -1}, "aux_layer", -1, "None or in 1..3"),
    (ModelConfig, {"aux_layer": 4}, "aux_layer", 4, "None or in 1..3"),
    (ModelConfig, {"mlp_ratio": 0.0}, "mlp_ratio", 0.0, "positive"),
    (ModelConfig, {"mlp_ratio": NAN}, "mlp_ratio", NAN, "a finite number"),
    (ModelConfig, {"time_scale": -1.0}, "time_scale", -1.0, "positive"),
    (ModelConfig, {"embedding_std": 0.0}, "embedding_std", 0.0, "positive"),
    (LossConfig, {"aux_weight": -0.5}, "aux_weight", -0.5, "at least 0"),
    (LossConfig, {"aux_weight": NAN}, "aux_weight", NAN, "a finite number"),
    (LossConfig, {"cosine_weight": -1.0}, "cosine_weight", -1.0, "at least 0"),
    (LossConfig, {"label_dropout": -0.1}, "label_dropout", -0.1, "in [0, 1]"),
    (LossConfig, {"label_dropout": 1.1}, "label_dropout", 1.1, "in [0, 1]"),
    (OptimConfig, {"lr": 0.0}, "lr", 0.0, "positive"),
    (OptimConfig, {"lr": NAN}, "lr", NAN, "a finite number"),
    (OptimConfig, {"betas": (1.0, 0.999)}, "betas", (1.0, 0.999), "both in [0, 1)"),
    (OptimConfig, {"betas": (0.9, -0.1)}, "betas", (0.9, -0.1), "both in [0, 1)"),
    (OptimConfig, {"weight_decay": -0.1}, "weight_decay", -0.1, "at least 0"),
    (OptimConfig, {"warmup_steps": -1}, "warmup_steps", -1, "at least 0"),
    (OptimConfig, {"grad_clip": 0.0}, "grad_clip", 0.0, "positive"),
    (OptimConfig, {"ema_decay": 1.0}, "ema_decay", 1.0, "in [0, 1)"),
    (OptimConfig, {"ema_decay": -0.1}, "ema_decay", -0.1, "in [0, 1)"),
    *[
        (Guidance, {f"{kind}_scale": scale}, f"{kind}_scale", scale, "a finite number")
        for kind in ("ig", "cfg", "auto")
        for scale in (INFINITY, NAN)
    ],
    *[
        (Guidance, {f"{kind}_interval": ends}, f"{kind}_interval", ends, "0 <= low <= high <= 1")
        for kind in ("ig", "cfg", "auto")
        for ends in ((0.6, 0.4), (-0.1, 1.0), (0.0, 1.1))
    ],
    (SamplerConfig, {"num_steps": 0}, "num_steps", 0, "at least 1"),
    (SamplerConfig, {"shift": 0.0}, "shift", 0.0, "positive"),
    (SamplerConfig, {"last_step": 0.0}, "last_step", 0.0, "in (0, 1)"),
    (SamplerConfig, {"last_step": 1.0}, "last_step", 1.0, "in (0, 1)"),
    (TrainConfig, {"steps": 0}, "steps", 0, "at least 1"),
    (TrainConfig, {"batch_size": 0}, "batch_size", 0, "at least 1"),
    (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every", 0, "at least 1"),
    (TrainConfig, {"seed": -1}, "seed", -1, "in 0..2^63 - 1"),
    (TrainConfig, {"seed": 2**63}, "seed", 2**63, "in 0..2^63 - 1"),
]


def case_name(value) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


@pytest.mark.parametrize(("kind", "change", "field", "value", "expected"), INVALID, ids=case_name)
def test_error_names_field_value_and_expectation(kind, change, field, value, expected):
    with pytest.raises(ValueError) as caught:
        kind(**(VALID[kind] | change))
    message = str(caught.value)
    assert message.startswith(f"{field} must be ")
    assert expected in message
    assert message.endswith(f"but got {value!r}")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (ModelConfig, "backbone"),
        (LossConfig, "path"),
        (LossConfig, "time_distribution"),
        (SamplerConfig, "method"),
        (SamplerConfig, "path"),
        (SamplerConfig, "state_dtype"),
    ],
    ids=case_name,
)
def test_unknown_choice_is_rejected_by_name(kind, field):
    with pytest.raises(ValueError, match=f"{field} must be .*, but got 'quadratic'"):
        kind(**(VALID[kind] | {field: "quadratic"}))


@pytest.mark.parametrize("kind", VALID, ids=case_name)
def test_configurations_are_frozen_hashable_and_keyword_only(kind):
    config = kind(**VALID[kind])
    first = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, first, 7)
    with pytest.raises(TypeError, match="positional"):
        kind(1)
    assert hash(config) == hash(kind(**VALID[kind]))


@pytest.mark.parametrize("kind", VALID, ids=case_name)
def test_validation_never_changes_a_value(kind):
    config = kind(**VALID[kind])
    assert dataclasses.replace(config) == config


@pytest.mark.parametrize("aux_layer", [None, 1, 2, 3])
def test_aux_layer_may_be_any_block_but_the_last(aux_layer):
    assert ModelConfig(**(MODEL | {"aux_layer": aux_layer})).aux_layer == aux_layer


def test_model_without_room_for_an_auxiliary_layer_needs_none():
    assert ModelConfig(**(MODEL | {"depth": 1, "aux_layer": None})).depth == 1
    with pytest.raises(ValueError, match="aux_layer"):
        ModelConfig(**(MODEL | {"depth": 1, "aux_layer": 1}))


def test_rope_accepts_head_width_that_holds_two_axes_of_pairs():
    assert ModelConfig(**(MODEL | {"rope": True})).head_dim == 8


def test_derived_sizes_follow_from_the_fields():
    config = ModelConfig(**MODEL)
    assert (config.head_dim, config.grid_size, config.null_label) == (8, 4, 10)


def test_ends_of_ranges_are_valid():
    LossConfig(aux_weight=0.0, cosine_weight=0.0, label_dropout=1.0)
    OptimConfig(betas=(0.0, 0.0), ema_decay=0.0, warmup_steps=0, weight_decay=0.0)
    Guidance(ig_interval=(0.0, 0.0), cfg_interval=(1.0, 1.0), auto_scale=-1.0)
    TrainConfig(steps=1, batch_size=1, checkpoint_every=1, seed=2**63 - 1)


def test_importing_config_loads_no_torch():
    code = "import sys, ig_core.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_is_valid_and_of_its_family(name):
    config = model_config(name)
    assert name.lower().startswith(config.backbone)
    assert name.endswith(f"/{config.patch_size}")
    assert config.num_classes == 1000
    assert config.aux_layer == (4 if name.split("-")[1][0] in "SB" else 8)


def test_presets_are_the_published_set():
    sit = {f"SiT-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)}
    light = {f"LightningDiT-{s}/{p}" for s in ("B", "L", "XL", "1p0B", "1p6B") for p in (1, 2)}
    assert set(MODELS) == sit | light


def test_model_config_overrides_fields_of_the_preset():
    config = model_config("SiT-B/2", aux_layer=None, num_classes=10)
    assert (config.aux_layer, config.num_classes, config.width) == (None, 10, 768)


def test_model_config_checks_overrides():
    with pytest.raises(ValueError, match=r"aux_layer must be .*1\.\.11.*got 12"):
        model_config("SiT-B/2", aux_layer=12)


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"model must be one of .*SiT-XL/2.*, but got 'SiT-XXL/2'"):
        model_config("SiT-XXL/2")


@pytest.fixture
def count_parameters(monkeypatch):
    monkeypatch.setattr(DiffusionTransformer, "initialise", lambda self: None)

    def count(name, **overrides):
        with torch.device("meta"):
            model = DiffusionTransformer(model_config(name, **overrides))
        return sum(parameter.numel() for parameter in model.parameters())

    return count


def test_xl_has_the_published_size(count_parameters):
    trainable = count_parameters("SiT-XL/2", aux_layer=None)
    assert trainable == pytest.approx(675e6, rel=1e-3)
    # The published count includes the fixed position table and a head that predicts a variance
    # next to each of the 4 channels.
    position_table, variance_head = 256 * 1152, 2 * 2 * 4 * (1152 + 1)
    assert trainable + position_table + variance_head == 675_129_632


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("SiT-S/2", 33),
        ("SiT-B/2", 130),
        ("SiT-L/2", 458),
        ("LightningDiT-B/1", 130),
        ("LightningDiT-L/1", 458),
        ("LightningDiT-XL/1", 675),
        ("LightningDiT-1p0B/1", 1000),
        ("LightningDiT-1p6B/1", 1600),
    ],
)
def test_presets_have_the_size_of_their_name(count_parameters, name, millions):
    # "1p0B" and "1p6B" are rounded to one digit, hence 3 %.
    assert count_parameters(name, aux_layer=None) == pytest.approx(millions * 1e6, rel=0.03)


def expected_parameters(name):
    """Weights and biases of a preset without auxiliary head, counted by hand from its shape."""
    shape = MODELS[name]
    d, blocks, patch = shape["width"], shape["depth"], shape["patch_size"]
    pixels = patch**2 * shape["in_channels"]
    light = shape["backbone"] == "lightningdit"
    attention = (3 * d * d + 3 * d) + (d * d + d)
    if light:  # SwiGLU, and the gains of two RMSNorms
        hidden = int(2 / 3 * 4 * d)
        mlp, norms = (d * 2 * hidden + 2 * hidden) + (hidden * d + d), 2 * d
    else:
        mlp, norms = (d * 4 * d + 4 * d) + (4 * d * d + d), 0
    block = attention + mlp + norms + (6 * d * d + 6 * d)
    embeddings = (pixels * d + d) + (256 * d + d) + (d * d + d) + (1000 + 1) * d
    head = (2 * d * d + 2 * d) + (d * pixels + pixels) + (d if light else 0)
    return embeddings + blocks * block + head


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_has_exactly_the_parameters_of_its_shape(count_parameters, name):
    assert count_parameters(name, aux_layer=None) == expected_parameters(name)


def test_the_presets_are_those_of_the_papers():
    sit = [f"SiT-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)]
    light = [
        f"LightningDiT-{size}/{patch}"
        for size in ("B", "L", "XL", "1p0B", "1p6B")
        for patch in (1, 2)
    ]
    assert list(MODELS) == sit + light


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("SiT-S/2", 301_840),
        ("SiT-B/2", 1_193_488),
        ("SiT-L/2", 2_115_600),
        ("SiT-XL/2", 2_674_960),
    ],
)
def test_auxiliary_head_is_the_only_overhead(count_parameters, name, head):
    assert count_parameters(name) - count_parameters(name, aux_layer=None) == head


def test_canonical_resets_intervals_of_guidance_that_is_off():
    guidance = Guidance(
        ig_scale=1.5,
        ig_interval=(0.1, 0.9),
        cfg_interval=(0.2, 0.3),
        auto_interval=(0.4, 0.5),
    )
    assert guidance.canonical() == Guidance(ig_scale=1.5, ig_interval=(0.1, 0.9))


@pytest.mark.parametrize("kind", ["ig", "cfg", "auto"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_canonical_keeps_intervals_of_guidance_that_acts(kind, scale):
    guidance = Guidance(**{f"{kind}_scale": scale, f"{kind}_interval": (0.2, 0.8)})
    assert guidance.canonical() == guidance


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (10, 4, (4, 8, 10)),
        (8, 4, (4, 8)),
        (3, 5, (3,)),
        (5, 5, (5,)),
        (3, 1, (1, 2, 3)),
    ],
)
def test_last_step_is_always_a_checkpoint_step(steps, every, expected):
    config = TrainConfig(steps=steps, batch_size=1, checkpoint_every=every)
    assert config.checkpoint_steps == expected


WRONG_TYPES = [
    (ModelConfig, {"aux_layer": 1.5}, "aux_layer", "a whole number"),
    (ModelConfig, {"depth": 2.5}, "depth", "a whole number"),
    (ModelConfig, {"width": 32.0}, "width", "a whole number"),
    (ModelConfig, {"depth": True}, "depth", "a whole number"),
    (ModelConfig, {"rope": "no"}, "rope", "of type bool"),
    (ModelConfig, {"mlp_ratio": "4"}, "mlp_ratio", "a finite number"),
    (ModelConfig, {"mlp_ratio": None}, "mlp_ratio", "a finite number"),
    (ModelConfig, {"mlp_ratio": 0.01}, "mlp_ratio", "one hidden unit"),
    (OptimConfig, {"betas": (0.9,)}, "betas", "a tuple of 2"),
    (OptimConfig, {"betas": [0.9, 0.99]}, "betas", "a tuple"),
    (OptimConfig, {"lr": True}, "lr", "a finite number"),
    (Guidance, {"ig_interval": 0.5}, "ig_interval", "a tuple"),
    (Guidance, {"ig_interval": (0.1, 0.2, 0.3)}, "ig_interval", "a tuple of 2"),
    (Guidance, {"ig_scale": "1.5"}, "ig_scale", "a finite number"),
    (SamplerConfig, {"num_steps": 2.5}, "num_steps", "a whole number"),
    (TrainConfig, {"steps": float("inf")}, "steps", "a whole number"),
    (TrainConfig, {"batch_size": True}, "batch_size", "a whole number"),
    (TrainConfig, {"seed": 1.5}, "seed", "a whole number"),
]
REQUIRED = {
    ModelConfig: {
        "depth": 3,
        "width": 16,
        "num_heads": 2,
        "patch_size": 2,
        "input_size": 4,
        "in_channels": 2,
        "num_classes": 4,
        "aux_layer": 2,
    },
    SamplerConfig: {"num_steps": 2},
    TrainConfig: {"steps": 2, "batch_size": 2, "checkpoint_every": 1},
}


@pytest.mark.parametrize(("kind", "changes", "name", "expected"), WRONG_TYPES)
def test_a_value_of_another_type_is_named(kind, changes, name, expected):
    with pytest.raises(ValueError, match=rf"{name} must be .*{expected}.*, but got"):
        kind(**(REQUIRED.get(kind, {}) | changes))


def test_fp16_goes_with_adamw_alone():
    with pytest.raises(ValueError, match=r"precision must be float32 or bf16 with muon"):
        OptimConfig(optimizer="muon", precision="fp16")
