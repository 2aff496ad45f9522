from __future__ import annotations

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from ig_core.data.sources import listing as sources
from ig_core.data.sources.listing import identify, read_listing
from ig_core.data.sources.rows import image_files, latent_rows, read_normalisation
from ig_core.data.sources.source import list_source
from tests.equipment.latent_sets import (
    CLASSES,
    IMAGE_FORMATS,
    pictures,
    write_folder,
    write_npy,
    write_parquet,
    write_safetensors,
    write_tars,
    write_zip,
)

# Formats


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_every_format_gives_the_same_files_and_labels(tmp_path, name):
    images = pictures()
    listing = list_source(IMAGE_FORMATS[name](tmp_path / name, images), len(CLASSES))
    assert (listing.format, len(listing)) == (name, 7)
    read = list(image_files(listing, 0, 7))
    assert [(row.label, data) for row, data in read] == images
    assert [data for _, data in image_files(listing, 2, 6)] == [data for _, data in images[2:6]]
    listing.write(tmp_path / "listing.parquet")
    again = read_listing(tmp_path / "listing.parquet", listing.root)
    assert list(image_files(again, 3, 7)) == read[3:7]
    assert identify(again) == identify(listing)


def test_a_pattern_chooses_files(tmp_path):
    root = write_parquet(tmp_path / "data", pictures())
    write_parquet(tmp_path / "other", pictures(3))
    for file in (tmp_path / "other").iterdir():
        file.rename(root / file.name.replace("train", "validation"))
    with pytest.raises(ValueError, match=r"several splits \(train, validation\)"):
        list_source(root, 3)
    assert len(list_source(root / "train-*.parquet", 3)) == 7
    with pytest.raises(ValueError, match="holds nothing"):
        list_source(root / "test-*.parquet", 3)


def test_class_folders_are_numbered_by_name_or_by_a_mapping(tmp_path):
    root = write_folder(tmp_path / "set", pictures())
    (root / "classes.json").write_text(json.dumps({"n01": 7, "n02": 0, "n03": 5}))
    labels = [row.label for row in list_source(root, 8).rows(0, 7)]
    assert labels == [7, 7, 7, 0, 0, 5, 5]
    (root / "classes.json").unlink()
    names = sorted(p.relative_to(root).as_posix() for p in root.glob("*/*.png"))
    pairs = [[name, number] for number, name in enumerate(names)]
    (root / "dataset.json").write_text(json.dumps({"labels": pairs}))
    assert [row.label for row in list_source(root, 7).rows(0, 7)] == list(range(7))


def broken_zip(path, labels):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x")
        if labels is not None:
            archive.writestr("dataset.json", json.dumps(labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"dataset\.json is missing"),
        ({"labels": None}, "has no labels"),
        ({"labels": [["b.png", 0]]}, r"no label for a\.png"),
        ({"labels": [["a.png", 3]]}, r"label of a\.png must be in 0\.\.2"),
        ({"labels": [["a.png", -1]]}, r"label of a\.png must be in 0\.\.2"),
        ({"labels": [["a.png"]]}, "has no labels"),
    ],
)
def test_a_zip_without_right_labels_is_refused(tmp_path, labels, message):
    broken_zip(tmp_path / "set.zip", labels)
    with pytest.raises(ValueError, match=message):
        list_source(tmp_path / "set.zip", 3)


def test_sources_that_are_none(tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=message):
            list_source(path, 3)

    refused(tmp_path / "gone", "nothing is at")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no images")
    for name in ("x.zip", "x.tar", "x.parquet", "x.safetensors"):
        (tmp_path / name).write_bytes(b"something else")
        refused(tmp_path / name, "x\\.")
    refused(tmp_path, "of one kind")
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "a.png").write_bytes(b"x")
    refused(loose, "lies in no class folder")
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "y.parquet")
    refused(tmp_path / "y.parquet", "must have columns image and label")
    tars = write_tars(tmp_path / "tars", pictures())
    with (tars / "set-0000.tar").open("r+b") as file:
        content = file.read().replace(b".cls", b".cla")
        file.seek(0)
        file.write(content)
    refused(tars, "no label|cannot be read")


def test_a_file_that_has_gone_is_a_faulty_image(tmp_path):
    root = write_folder(tmp_path / "set", pictures())
    listing = list_source(root, 3)
    (root / CLASSES[0] / "001.png").unlink()
    assert [isinstance(data, str) for _, data in image_files(listing, 0, 3)] == [False, True, False]


# Identity


def test_identity_is_of_names_labels_and_content(tmp_path):
    root = write_zip(tmp_path / "a" / "set.zip", pictures())
    same = write_zip(tmp_path / "b" / "set.zip", pictures())
    first = identify(list_source(root, 3))
    assert first == identify(list_source(same, 3))
    assert first != identify(list_source(write_zip(tmp_path / "c" / "set.zip", pictures(6)), 3))
    swapped = [((label + 1) % 3, data) for label, data in pictures()]
    assert first != identify(list_source(write_zip(tmp_path / "d" / "set.zip", swapped), 3))
    folder = write_folder(tmp_path / "e", pictures())
    before = identify(list_source(folder, 3))
    path = folder / CLASSES[0] / "000.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert before != identify(list_source(folder, 3))


def test_a_large_source_is_identified_by_samples_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FULL_DIGEST_BYTES", 100)
    monkeypatch.setattr(sources, "PROBE_COUNT", 16)
    monkeypatch.setattr(sources, "PROBE_BYTES", 8)
    latents = np.random.default_rng(0).random((6, 8, 4, 4), np.float32)
    one = identify(list_source(write_npy(tmp_path / "a", latents, [0] * 6), 3))
    assert one == identify(list_source(write_npy(tmp_path / "b", latents, [0] * 6), 3))
    assert one != identify(list_source(write_npy(tmp_path / "c", latents + 1, [0] * 6), 3))


# Latents


def test_npy_latents_are_read_as_they_are(tmp_path):
    latents = np.random.default_rng(0).random((5, 8, 4, 4), np.float32)
    root = write_npy(tmp_path / "data", latents, [2, 0, 1, 1, 0])
    for path in (root, root / "vae-sd"):
        listing = list_source(path, 3)
        rows = latent_rows(listing, 1, 4)
        assert np.array_equal(rows.latent, latents[1:4])
        assert rows.label.tolist() == [0, 1, 1]
        assert rows.mirror is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 4, 5), np.float32), "has shape"),
        (np.zeros((8, 4), np.float32), "must be float"),
        (np.zeros((8, 4, 4), np.int32), "must be float"),
        (np.full((8, 4, 4), np.nan, np.float32), "not finite"),
        (np.array([{}]), r"not a readable \.npy file"),
    ],
)
def test_npy_latents_that_are_wrong_are_named(tmp_path, array, message):
    root = write_npy(tmp_path, np.zeros((4, 8, 4, 4), np.float32), [0] * 4)
    np.save(root / "vae-sd" / "00000" / "img-mean-std-00000001.npy", array)
    with pytest.raises(ValueError, match=message) as raised:
        latent_rows(list_source(root, 3), 0, 4)
    assert "img-mean-std-00000001" in str(raised.value)


def test_safetensors_are_read_across_files(tmp_path):
    latents = torch.randn(9, 4, 2, 2)
    root = write_safetensors(tmp_path / "s", latents, latents.flip(-1), torch.arange(9) % 3)
    listing = list_source(root, 3)
    rows = latent_rows(listing, 2, 9)
    assert np.array_equal(rows.latent, latents[2:].numpy())
    assert np.array_equal(rows.mirror, latents.flip(-1)[2:].numpy())
    assert rows.label.tolist() == [2, 0, 1, 2, 0, 1, 2]
    mean, std = read_normalisation(root, 4)
    torch.testing.assert_close(mean.float(), latents.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(std.float(), latents.std(dim=(0, 2, 3)))


def test_safetensors_without_labels_are_refused(tmp_path):
    save_file({"latents": torch.zeros(2, 4, 2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="must hold latents and labels"):
        list_source(tmp_path / "x.safetensors", 3)
    save_file(
        {"latents": torch.zeros(2, 4, 2, 2), "labels": torch.zeros(3, dtype=torch.int64)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ValueError, match="2 latents, but 3 labels"):
        list_source(tmp_path / "x.safetensors", 3)


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": torch.zeros(4)}, "must hold mean and std"),
        ({"mean": torch.zeros(4), "std": torch.zeros(4)}, "positive std of 4"),
        ({"mean": torch.zeros(3), "std": torch.ones(3)}, "positive std of 4"),
        ({"mean": torch.full((4,), torch.nan), "std": torch.ones(4)}, "finite mean"),
        (Evil(), "must hold mean and std"),
    ],
)
def test_statistics_that_are_wrong_are_refused_and_never_executed(tmp_path, content, message):
    torch.save(content, tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match=message):
        read_normalisation(tmp_path, 4)
    assert not Evil.ran
