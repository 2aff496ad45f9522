from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ig_core.codecs.codec import load_codec
from ig_core.codecs.files import open_codec
from ig_core.config import SettingError
from ig_core.images.sets import from_uint8, to_uint8
from tests.equipment.latent_sets import autoencoder_class, make_sd_vae, make_va_vae
from tests.equipment.ldm_autoencoder import LdmAutoencoder


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_sd_vae_gives_the_moments_of_diffusers_posterior(tmp_path, images):
    codec = load_codec("sd-vae", make_sd_vae(tmp_path / "vae"))
    moments = codec.encode(images)
    network = autoencoder_class().from_pretrained(tmp_path / "vae").eval()
    with torch.no_grad():
        posterior = network.encode(images.float() / 127.5 - 1).latent_dist
        decoded = network.decode(posterior.mean).sample
    assert moments.shape == (3, 8, 4, 4)
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.std], dim=1))
    assert torch.equal(codec.decode(moments[:, :4]), to_uint8(decoded))


def test_va_vae_computes_what_latent_diffusion_computes(tmp_path, images):
    path, network = make_va_vae(tmp_path / "vavae.pt")
    codec = load_codec("va-vae", path)
    expected = network.encode(from_uint8(images))
    moments = codec.encode(images)
    assert moments.shape == (3, 64, 2, 2)
    torch.testing.assert_close(moments, expected, atol=1e-4, rtol=1e-4)
    decoded = codec.decode(moments[:, :32])
    away = (decoded.int() - to_uint8(network.decode(expected[:, :32])).int()).abs()
    assert decoded.float().std() > 1
    assert away.max() <= 1


def test_the_published_shape_of_the_va_vae_is_read_off_its_weights(tmp_path):
    from ig_core.codecs.ldm_names import diffusers_settings, diffusers_weights

    with torch.device("meta"):
        weights = LdmAutoencoder().state_dict()
    settings = diffusers_settings(weights)
    assert settings["block_out_channels"] == (128, 128, 256, 256, 512)
    assert settings["latent_channels"] == 32
    assert settings["layers_per_block"] == 2
    assert settings["down_block_types"].count("AttnDownEncoderBlock2D") == 1
    assert settings["up_block_types"][0] == "AttnUpDecoderBlock2D"
    with torch.device("meta"):
        expected = autoencoder_class()(**settings).state_dict()
    found = diffusers_weights(weights)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


def edit_sd(folder, change):
    """Rewrite the weights of a folder of diffusers."""
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: {k: v for k, v in w.items() if not k.startswith("decoder.")},
            r"missing decoder\.conv_in\.bias; .*and \d+ more",
        ),
        (
            lambda w: {k: v for k, v in w.items() if k != "decoder.conv_out.bias"},
            r"missing decoder\.conv_out\.bias$",
        ),
        (lambda w: {**w, "decoder.more": torch.zeros(1)}, r"unexpected decoder\.more$"),
        (
            lambda w: {**w, "decoder.conv_out.bias": torch.zeros(4)},
            r"decoder\.conv_out\.bias has shape \(4,\) instead of \(3,\)",
        ),
        (
            lambda w: {**w, "decoder.conv_out.bias": torch.zeros(3, dtype=torch.int64)},
            r"decoder\.conv_out\.bias holds torch\.int64",
        ),
        (
            lambda w: {k.replace("down_blocks", "down"): v for k, v in w.items()},
            "the file may be the va-vae",
        ),
    ],
)
def test_an_sd_vae_must_hold_every_tensor_and_no_other(change, words, tmp_path):
    folder = edit_sd(make_sd_vae(tmp_path / "vae"), change)
    for read in (open_codec, load_codec):
        with pytest.raises(ValueError, match=words):
            read("sd-vae", folder)


def test_names_of_older_versions_of_diffusers_are_read(tmp_path, images):
    folder = make_sd_vae(tmp_path / "vae")
    before = load_codec("sd-vae", folder).encode(images)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights):
        for new, old in former.items():
            weights = {k.replace(f".{new}.", f".{old}."): v for k, v in weights.items()}
        return weights

    edit_sd(folder, rename)
    assert any(
        ".proj_attn." in k for k in load_file(folder / "diffusion_pytorch_model.safetensors")
    )
    assert torch.equal(load_codec("sd-vae", folder).encode(images), before)


def test_the_encoder_is_known_by_its_own_tensors(tmp_path):
    folder = make_sd_vae(tmp_path / "vae")
    one = open_codec("sd-vae", folder).encoder_digest
    edit_sd(folder, lambda w: {**w, "decoder.conv_out.bias": torch.ones(3)})
    assert open_codec("sd-vae", folder).encoder_digest == one
    edit_sd(folder, lambda w: {k: v.double() for k, v in w.items()})
    assert open_codec("sd-vae", folder).encoder_digest == one
    edit_sd(folder, lambda w: {**w, "quant_conv.bias": torch.ones(8)})
    other = open_codec("sd-vae", folder).encoder_digest
    assert other != one
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "norm_num_groups": 16}))
    assert open_codec("sd-vae", folder).encoder_digest not in (one, other)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"down_block_types": ["Mystery"] * 4}, "down_block_types must be DownEncoderBlock2D or"),
        ({"block_out_channels": 32}, "block_out_channels must be a list"),
        ({"layers_per_block": 10**9}, r"layers_per_block must be in 1\.\.64"),
        ({"layers_per_block": 2}, r"missing decoder\.up_blocks\.0\.resnets\.2"),
        ({"act_fn": 7}, "act_fn must be of type str"),
    ],
)
def test_a_configuration_that_is_none(config, words, tmp_path):
    path = make_sd_vae(tmp_path / "vae") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ValueError, match=words):
        open_codec("sd-vae", path.parent)


def test_weights_that_are_missing_or_left_over_are_refused(tmp_path):
    _, network = make_va_vae(tmp_path / "vavae.pt")
    weights = network.state_dict()
    for change, words in (
        (
            {k: v for k, v in weights.items() if "decoder.mid" not in k},
            r"missing decoder\.mid_block",
        ),
        ({**weights, "decoder.extra.weight": torch.zeros(1)}, r"unexpected decoder\.extra\.weight"),
        (
            {**weights, "quant_conv.weight": torch.zeros(2, 2, 1, 1)},
            r"quant_conv\.weight has shape",
        ),
        (
            {**weights, "quant_conv.weight": torch.zeros(())},
            r"must hold quant_conv\.weight with four dimensions",
        ),
        ({"model": torch.zeros(1)}, r"no encoder\.conv_in\.weight .*, state_dict\.model"),
    ):
        torch.save({"state_dict": change}, tmp_path / "changed.pt")
        with pytest.raises(ValueError, match=words):
            open_codec("va-vae", tmp_path / "changed.pt")


def test_one_codec_given_as_the_other_is_said_to_be_that(tmp_path):
    folder, (path, _) = make_sd_vae(tmp_path / "vae"), make_va_vae(tmp_path / "vavae.pt")
    with pytest.raises(
        ValueError, match="diffusers' AutoencoderKL: their folder may be the sd-vae"
    ):
        open_codec("va-vae", folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(SettingError, match="a folder as the sd-vae's") as caught:
        open_codec("va-vae", folder)
    assert caught.value.settings == {"codec": "sd-vae"}
    with pytest.raises(ValueError, match=r"must be a folder with .*vavae\.pt' is a file"):
        open_codec("sd-vae", path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 broken", b"\x80\x02}q\x00."])
def test_damaged_files_are_one_line(content, tmp_path):
    (tmp_path / "vavae.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"vavae\.pt") as caught:
        open_codec("va-vae", tmp_path / "vavae.pt")
    assert "\n" not in str(caught.value)
    weights = make_sd_vae(tmp_path / "vae") / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(content or whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        open_codec("sd-vae", tmp_path / "vae")
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_a_checkpoint_that_would_execute_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="more than tensors") as caught:
        open_codec("va-vae", tmp_path / "evil.pt")
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_a_folder_of_another_autoencoder_is_refused(tmp_path):
    make_sd_vae(tmp_path / "sdxl", scale=0.13025)
    with pytest.raises(ValueError, match=r"scaling_factor 0\.18215, but is .*0\.13025"):
        load_codec("sd-vae", tmp_path / "sdxl")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_codec("sd-vae", tmp_path)
    vae = make_sd_vae(tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderTiny"}))
    with pytest.raises(ValueError, match="must be an AutoencoderKL"):
        load_codec("sd-vae", vae)
    with pytest.raises(ValueError, match="checkpoint file of the va-vae"):
        load_codec("va-vae", vae)
