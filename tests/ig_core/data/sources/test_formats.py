"""What is recognised at a path, what is missing there, and where it might be instead."""

from __future__ import annotations

import json

import pytest
import torch

from ig_core.data.sources.formats import detect
from ig_core.data.sources.source import list_source
from tests.equipment.latent_sets import (
    pictures,
    write_folder,
    write_npy,
    write_parquet,
    write_safetensors,
)


@pytest.fixture
def touch(tmp_path):
    """Factory of a folder of empty files."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


# Patterns


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("s-{000..002}.tar", (0, 1, 2)),
        ("s-{001..001}.tar", (1,)),
        ("s-00[12].tar", (1, 2)),
        ("s-00?.tar", (0, 1, 2)),
        ("s-{000,010}.tar", (0, 10)),
        ("s-0{0..1}0.tar", (0, 10)),
        ("s-*.tar", (0, 1, 2, 10)),
    ],
)
def test_patterns_and_braces_choose_files(touch, pattern, numbers):
    root = touch("s-000.tar", "s-001.tar", "s-002.tar", "s-010.tar")
    assert detect(root / pattern).files == [f"s-{number:03d}.tar" for number in numbers]


def test_a_name_that_is_there_is_no_pattern(touch):
    root = touch("set[1]/x.tar", "a{0..1}.tar")
    assert detect(root / "set[1]").files == ["x.tar"]
    assert detect(root / "a{0..1}.tar").files == ["a{0..1}.tar"]


def test_files_that_braces_name_must_be_there(touch):
    root = touch("s-0.tar", "s-2.tar")
    with pytest.raises(
        ValueError, match=r"names 6 files, but 4 \(s-1.tar, s-3.tar, s-4.tar, \.\.\.\)"
    ):
        detect(root / "s-{0..5}.tar")
    with pytest.raises(ValueError, match=r"\{0\.\.99999999999\} must name fewer than 1000000"):
        detect(root / "s-{0..99999999999}.tar")


# Parts that are missing


def test_a_set_that_lacks_parts_is_refused(touch):
    root = touch("train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    for path in (root, root / "train-*"):
        with pytest.raises(ValueError, match=r"incomplete.* 1 \(train-00001-of-00003\.parquet\)"):
            detect(path)
    assert len(detect(root / "train-0000{0,2}-of-00003.parquet").files) == 2
    assert len(detect(root / "train-00000-of-00003.parquet").files) == 1
    touch("train-00001-of-00003.parquet")
    assert len(detect(root).files) == 3


def test_parts_with_a_hash_each_are_counted(touch):
    root = touch("train-00000-of-00002-ab12.parquet")
    with pytest.raises(ValueError, match=r"incomplete.* 1 \(train-00001-of-00002\)"):
        detect(root)
    assert len(detect(touch("train-00001-of-00002-cd34.parquet")).files) == 2


def test_parts_may_count_from_one(touch):
    assert len(detect(touch("p-1-of-2.parquet", "p-2-of-2.parquet")).files) == 2


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ([(0, 0), (0, 1), (2, 0)], "latents_rank01_shard000"),
        ([(0, 0), (0, 2), (1, 0)], "latents_rank00_shard001"),
        ([(1, 0)], "latents_rank00_shard000"),
    ],
)
def test_shards_of_lightningdit_that_are_missing_are_named(touch, there, missing):
    root = touch(*(f"latents_rank{r:02d}_shard{s:03d}.safetensors" for r, s in there))
    with pytest.raises(ValueError, match=rf"incomplete.* 1 \({missing}\.safetensors\)"):
        detect(root)


def test_ranks_may_have_different_numbers_of_shards(touch):
    there = [(0, 0), (0, 1), (1, 0)]
    root = touch(*(f"latents_rank{r:02d}_shard{s:03d}.safetensors" for r, s in there))
    assert len(detect(root).files) == 3


def test_files_that_a_mac_leaves_are_no_containers(touch):
    assert detect(touch("a.tar", "._a.tar", ".DS_Store")).files == ["a.tar"]


# A level too high or too low


def test_the_folder_below_is_hinted_at(tmp_path):
    write_parquet(tmp_path / "hub" / "data", pictures())
    with pytest.raises(ValueError, match=r"holds no images.*is it .*hub/data that was meant"):
        list_source(tmp_path / "hub", 3)
    train = tmp_path / "hub" / "data" / "train-00000-of-00002.parquet"
    train.with_name("test-00000-of-00001.parquet").write_bytes(train.read_bytes())
    with pytest.raises(ValueError, match=r"several splits \(train, test\).*hub/data/train-\*"):
        list_source(tmp_path / "hub", 3)


def test_the_folder_above_is_hinted_at(tmp_path):
    latents = torch.zeros(3, 8, 2, 2).numpy()
    root = write_npy(tmp_path / "npy", latents, [0, 1, 2])
    with pytest.raises(ValueError, match=r"left out: 3 \.npy; is it .*npy/vae-sd that was meant"):
        list_source(root / "vae-sd" / "00000", 3)
    folder = write_folder(tmp_path / "set", pictures())
    with pytest.raises(ValueError, match=r"lies in no class folder.*give the one above \(.*set\)"):
        list_source(folder / "n01", 3)


def test_labels_of_parquet_and_safetensors_are_their_own(tmp_path):
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({"n01": 0}))
    latents = torch.zeros(3, 4, 2, 2)
    parquet = write_parquet(tmp_path / "p", pictures())
    shards = write_safetensors(tmp_path / "s", latents, latents + 1, torch.arange(3))
    for root in (parquet, shards):
        with pytest.raises(ValueError, match="labels must be left out"):
            list_source(root, 3, mapping)
