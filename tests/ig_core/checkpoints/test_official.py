"""Published checkpoints in and out."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ig_core.checkpoints.official import load_official, save_official
from ig_core.config import ModelConfig, SettingError
from ig_core.transformer import DiffusionTransformer

SIT = ModelConfig(
    backbone="sit",
    depth=3,
    width=32,
    num_heads=2,
    patch_size=2,
    input_size=8,
    in_channels=4,
    num_classes=10,
    aux_layer=2,
)
LIGHT = replace(SIT, backbone="lightningdit", patch_size=1, rope=True, rms_norm=True, swiglu=True)
BOTH = pytest.mark.parametrize("config", [SIT, LIGHT], ids=["sit", "lightningdit"])


def published(config, seed=0):
    """A state dict in published names, no tensor of it zero."""
    torch.manual_seed(seed)
    tensors = save_official(DiffusionTransformer(config))
    noisy = {
        k: v if k.startswith("feat_rope.") else v + 0.1 * torch.randn(v.shape)
        for k, v in tensors.items()
    }
    return {key: value.contiguous() for key, value in noisy.items()}


def test_sit_goes_in_and_out_bit_for_bit():
    before = published(SIT)
    after = save_official(load_official(before, SIT))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_lightningdit_goes_in_and_out_to_rounding():
    before = published(LIGHT)
    after = save_official(load_official(before, LIGHT))
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert (after[key] - value).norm() <= 1e-6 * value.norm(), key


def test_lightningdit_time_is_turned_round():
    tensors = published(LIGHT)
    ours = load_official(tensors, LIGHT)
    # The same weights under SiT's convention are the published network as it is.
    plain = {k: v for k, v in tensors.items() if not k.startswith("feat_rope.")}
    theirs = load_official(plain, replace(LIGHT, backbone="sit"))
    x, t, y = torch.randn(5, 4, 8, 8), torch.rand(5), torch.randint(11, (5,))
    with torch.no_grad():
        for mine, other in zip(ours(x, t, y), theirs(x, 1 - t, y), strict=True):
            # float32 rounding of 1 - t inside cosines, relative
            assert (mine + other).norm() <= 1e-5 * other.norm()


@BOTH
def test_the_position_table_is_the_files(config):
    tensors = published(config)
    assert torch.equal(load_official(tensors, config).pos_embed, tensors["pos_embed"])


@BOTH
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_hold_a_state_dict(config, suffix, tmp_path):
    tensors, path = published(config), tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    loaded = load_official(path, config)
    again = load_official(tensors, config)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True)
    )


def test_ema_is_taken_before_model_and_the_arguments_are_let_through(tmp_path):
    ema, raw = published(SIT, 0), published(SIT, 1)
    path = tmp_path / "sit.pt"
    prefixed = {f"module.{key}": value for key, value in raw.items()}
    torch.save(
        {
            "model": prefixed,
            "ema": ema,
            "opt": {"state": {}},
            "steps": 7,
            "args": argparse.Namespace(lr=1e-4),
        },
        path,
    )
    weight = load_official(path, SIT).x_embedder.proj.weight
    assert torch.equal(weight, ema["x_embedder.proj.weight"])
    torch.save({"model": prefixed}, path)
    weight = load_official(path, SIT).x_embedder.proj.weight
    assert torch.equal(weight, raw["x_embedder.proj.weight"])


@BOTH
def test_a_checkpoint_without_auxiliary_head(config):
    plain = {k: v for k, v in published(config).items() if not k.startswith("final_layer_xr.")}
    assert load_official(plain, replace(config, aux_layer=None)).aux_head is None
    with pytest.raises(
        SettingError, match=r"missing final_layer_xr\..*no auxiliary head"
    ) as caught:
        load_official(plain, config)
    assert caught.value.settings == {"aux_layer": "None"}


def test_one_message_names_everything_that_does_not_fit():
    tensors = published(SIT)
    del tensors["blocks.1.attn.qkv.bias"]
    tensors["blocks.3.attn.qkv.weight"] = torch.zeros(1)
    tensors["final_layer.linear.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load_official(tensors, SIT)
    message = str(caught.value)
    assert "missing blocks.1.attn.qkv.bias" in message
    assert "unexpected blocks.3.attn.qkv.weight" in message
    assert "final_layer.linear.bias has shape (5,) instead of (16,)" in message


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "sit.pt"
    torch.save(published(SIT), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"sit\.pt cannot be read as a checkpoint"):
        load_official(path, SIT)


def test_what_is_no_tensor_is_named():
    with pytest.raises(ValueError, match="the names found, epoch"):
        load_official({"epoch": 3}, SIT)
    with pytest.raises(ValueError, match="must hold tensors by name, but got list"):
        load_official([1, 2], SIT)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "sit.pt"
    torch.save({"ema": published(SIT), "args": Trap()}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_official(path, SIT)
    assert not (tmp_path / "sprung").exists()


def test_the_original_sits_variance_is_left_out_and_its_time_turned_round():
    """Its final layer is twice as wide, split after patches are put together; t=1 is data."""
    config = replace(SIT, aux_layer=None)
    doubled = {k: v for k, v in published(SIT).items() if not k.startswith("final_layer_xr.")}
    wide = torch.randn(2 * 16, 32), torch.randn(2 * 16)
    doubled |= {"final_layer.linear.weight": wide[0], "final_layer.linear.bias": wide[1]}
    # The same network with 8 output channels, in its own convention.
    plain = DiffusionTransformer(replace(config, in_channels=8))
    plain.load_state_dict(
        {
            key.replace("final_layer.", "final_head."): value
            for key, value in doubled.items()
            if key != "x_embedder.proj.weight"
        }
        | {
            "x_embedder.proj.weight": torch.nn.functional.pad(
                doubled["x_embedder.proj.weight"], (0, 0, 0, 0, 0, 4)
            )
        }
    )
    x, t, y = torch.randn(5, 4, 8, 8), torch.rand(5), torch.randint(11, (5,))
    with torch.no_grad():
        ours = load_official(doubled, config)(x, t, y).final
        both = plain(torch.cat([x, torch.zeros_like(x)], dim=1), 1 - t, y).final
        theirs = both.chunk(2, dim=1)[0]
    # float32 rounding of 1 - t inside cosines, relative
    assert (ours + theirs).norm() <= 1e-5 * theirs.norm()


def test_the_time_direction_can_be_said():
    tensors = published(SIT)
    x, t, y = torch.randn(5, 4, 8, 8), torch.rand(5), torch.randint(11, (5,))
    with torch.no_grad():
        plain = load_official(tensors, SIT)(x, 1 - t, y).final
        turned = load_official(tensors, SIT, time_reversed=True)(x, t, y).final
    assert (turned + plain).norm() <= 1e-5 * plain.norm()


def test_the_projection_of_repa_is_left_out():
    tensors = published(SIT)
    extra = {"projectors.0.0.weight": torch.zeros(3, 32)}
    assert save_official(load_official(tensors | extra, SIT)).keys() == tensors.keys()


def test_rotary_tables_must_be_ours():
    tensors = published(LIGHT)
    with pytest.raises(ValueError, match=r"unexpected feat_rope\.freqs_cos; .*freqs_sin"):
        load_official(tensors, replace(LIGHT, rope=False))
    stretched = tensors | {"feat_rope.freqs_sin": tensors["feat_rope.freqs_sin"] * 0.9}
    with pytest.raises(ValueError, match=r"feat_rope\.freqs_sin holds other angles"):
        load_official(stretched, LIGHT)


def changed(**changes):
    return published(SIT) | changes


BIAS = "final_layer.linear.bias"
STRANGE = {
    "a scalar": (changed(**{BIAS: torch.tensor(1.0)}), rf"{BIAS} has shape \(\) instead"),
    "NaN": (changed(**{BIAS: torch.full((16,), float("nan"))}), f"these are none: {BIAS}"),
    "too large": (changed(**{BIAS: torch.full((16,), 1e300, dtype=torch.float64)}), BIAS),
    "whole numbers": (changed(**{BIAS: torch.zeros(16, dtype=torch.int32)}), BIAS),
    "complex": (changed(**{BIAS: torch.zeros(16, dtype=torch.complex64)}), BIAS),
    "sparse": (changed(**{BIAS: torch.zeros(16).to_sparse()}), BIAS),
    "meta": (changed(**{BIAS: torch.zeros(16, device="meta")}), BIAS),
    "a key of another type": ({**published(SIT), 7: torch.zeros(1)}, "these are none: 7"),
    "twice": (changed(**{f"module.{BIAS}": torch.zeros(16)}), "each tensor once"),
    "our names": (changed(**{"final_head.linear.bias": torch.zeros(16)}), "each tensor once"),
    "nothing": ({}, "it is empty"),
    "empty parts": ({"ema": {}, "model": {}}, "the names found, ema, model"),
    "a doubled auxiliary head": (
        changed(**{"final_layer_xr.linear.bias": torch.zeros(32)}),
        "final_layer_xr.linear.bias has",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_content_is_a_clear_value_error(case):
    held, words = STRANGE[case]
    with pytest.raises(ValueError, match=words):
        load_official(held, SIT)


def test_half_precision_weights_are_read_as_float32():
    tensors = {k: v.half() for k, v in published(SIT).items()}
    model = load_official(tensors, SIT)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_empty_average_is_passed_over_and_any_mapping_will_do():
    from types import MappingProxyType

    tensors = published(SIT)
    held = MappingProxyType({"ema": {}, "model": MappingProxyType(tensors)})
    weight = load_official(held, SIT).x_embedder.proj.weight
    assert torch.equal(weight, tensors["x_embedder.proj.weight"])


def test_a_foreign_file_does_not_list_hundreds_of_names():
    deep = replace(SIT, depth=12)
    with pytest.raises(ValueError, match=r"missing .*; and \d+ more") as caught:
        load_official(published(SIT), deep)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"hello world", b"", b"\x80\x02}q\x00.", b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_said_to_be_none(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (cannot be read|must hold)"):
        load_official(path, SIT)
    with pytest.raises(ValueError, match="cannot be read"):
        load_official(tmp_path / "absent.pt", SIT)
    with pytest.raises(ValueError, match="cannot be read"):
        load_official(tmp_path, SIT)


def test_damaged_bytes_are_never_another_error(tmp_path):
    path = tmp_path / "sit.pt"
    torch.save({"ema": published(SIT), "steps": 3}, path)
    good = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    start = good.find(b"data.pkl")
    places = torch.randint(start, start + 6000, (150,), generator=generator).tolist()
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_official(path, SIT)
        except ValueError:
            continue


def test_refused_code_is_named_without_advice_to_run_it(tmp_path):
    path = tmp_path / "sit.pt"
    torch.save({"ema": published(SIT), "args": {"path": Path("/tmp")}}, path)
    with pytest.raises(ValueError, match="more than tensors and plain values") as caught:
        load_official(path, SIT)
    assert "weights_only=False" not in str(caught.value)
    assert "\n" not in str(caught.value)
