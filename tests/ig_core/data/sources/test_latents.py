"""Latents that others stored: what their headers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ig_core.data.sources import listing as sources
from ig_core.data.sources.listing import identify
from ig_core.data.sources.rows import latent_rows, read_normalisation
from ig_core.data.sources.source import list_source
from tests.equipment.latent_sets import write_safetensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_latents_of_every_precision_are_read(tmp_path, dtype):
    latents = torch.randn(9, 4, 2, 2).to(dtype)
    root = write_safetensors(tmp_path / "s", latents, latents.flip(-1), torch.arange(9) % 3)
    rows = latent_rows(list_source(root, 3), 2, 9)
    assert rows.latent.dtype == rows.mirror.dtype == np.float32
    assert np.array_equal(rows.latent, latents[2:].float().numpy())
    assert np.array_equal(rows.mirror, latents.flip(-1)[2:].float().numpy())


def shard(count=3, channels=4, side=2, **changes):
    held = {
        "latents": torch.zeros(count, channels, side, side),
        "latents_flip": torch.zeros(count, channels, side, side),
        "labels": torch.zeros(count, dtype=torch.int64),
    }
    return {k: v for k, v in {**held, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (shard(channels=5), r"latents must be \(N, 4, 2, 2\) as in .*000\.saf.*, but are \(3, 5"),
        (shard(latents_flip=torch.zeros(2, 4, 2, 2)), r"flip must be \(3, 4, 2, 2\).* \(2, 4"),
        (shard(latents_flip=None), r"000\.safetensors holds them and .*002\.saf.* d"),
        (shard(labels=torch.zeros(2, dtype=torch.int64)), "3 latents, but 2 labels"),
        (shard(labels=torch.zeros(3, 1, dtype=torch.int64)), r"labels must be integers \(3,\)"),
        (shard(labels=torch.tensor([0.7, 1.7, 0])), r"integers \(3,\), but are \(3,\) of F32"),
        (shard(latents=torch.zeros(())), r"latents must be \(N, C, H, W\).* but are \(\) of F32"),
        (shard(latents=torch.zeros(3, 4, 2, 2, dtype=torch.int32)), "but are .* of I32"),
    ],
)
def test_a_shard_that_is_not_like_the_others_is_named(tmp_path, third, message):
    for number, held in enumerate((shard(), shard(2), third)):
        save_file(held, tmp_path / f"latents_rank00_shard{number:03d}.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        list_source(tmp_path, 3)
    assert "shard002" in str(raised.value)


def test_statistics_of_a_large_source_are_part_of_its_identity(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FULL_DIGEST_BYTES", 100)
    monkeypatch.setattr(sources, "PROBE_COUNT", 4)
    monkeypatch.setattr(sources, "PROBE_BYTES", 8)
    monkeypatch.setattr(sources, "SMALL_ARCHIVE_BYTES", 900)
    latents, labels = torch.randn(9, 4, 4, 4), torch.arange(9) % 3
    root = write_safetensors(tmp_path / "s", latents, latents.flip(-1), labels)
    last = root / "latents_rank00_shard002.safetensors"
    before = identify(list_source(root, 3))
    statistics = {"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}
    size = (root / "latents_stats.pt").stat().st_size
    torch.save(statistics, root / "latents_stats.pt")
    assert (root / "latents_stats.pt").stat().st_size == size
    assert identify(list_source(root, 3)) != before
    small = shard(1, side=4)
    save_file(small, last)
    assert last.stat().st_size < 900
    before = identify(list_source(root, 3))
    small["latents"][0, 3, 1, 0] = 1
    save_file(small, last)
    assert identify(list_source(root, 3)) != before


# Statistics


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(1, 3, 1, 1), torch.ones(4), r"shapes \(1, 3, 1, 1\) and \(4,\)"),
        (torch.zeros(4), torch.tensor([1, 1, 0, -1.0]), r"2 are .* channel 2: 0\.0 and 0"),
        (torch.tensor([0, torch.nan, 0, 0]), torch.ones(4), r"1 are .* channel 1: nan and 1"),
        ([0.0] * 4, torch.ones(4), "must hold mean and std, two tensors"),
    ],
)
def test_statistics_that_do_not_fit_are_said_in_a_line(tmp_path, mean, std, message):
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match=message) as raised:
        read_normalisation(tmp_path, 4)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", ["pickle", "zeros", "nothing"])
def test_damaged_statistics_give_no_advice_to_read_them_unsafely(tmp_path, content, capsys):
    path = tmp_path / "latents_stats.pt"
    torch.save(Evil(), path)
    if content != "pickle":
        path.write_bytes(bytes(1000) if content == "zeros" else b"")
    with pytest.raises(ValueError, match=r"latents_stats\.pt must hold mean and std") as raised:
        read_normalisation(tmp_path, 4)
    message = str(raised.value)
    assert "\n" not in message
    assert "Re-running" not in message
    assert "safe_globals" not in message
    assert capsys.readouterr().out == ""
