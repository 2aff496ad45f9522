from __future__ import annotations

import json
import os

import pytest
import torch

from ig_core.codecs import load_codec
from ig_core.images import from_uint8, to_uint8
from tests.latent_sets import autoencoder_class, make_sd_vae, make_va_vae
from tests.ldm_autoencoder import LdmAutoencoder


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
    from ig_core.ldm_names import diffusers_settings, diffusers_weights

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


def test_weights_that_are_missing_or_left_over_are_refused(tmp_path):
    _, network = make_va_vae(tmp_path / "vavae.pt")
    weights = network.state_dict()
    for name, change in (
        ("less", {k: v for k, v in weights.items() if "decoder.mid" not in k}),
        ("more", {**weights, "decoder.extra.weight": torch.zeros(1)}),
        ("none", {"model": torch.zeros(1)}),
    ):
        torch.save({"state_dict": change}, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=r"cannot be read as va-vae|must hold"):
            load_codec("va-vae", tmp_path / f"{name}.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_a_checkpoint_that_would_execute_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="no file of weights"):
        load_codec("va-vae", tmp_path / "evil.pt")
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
