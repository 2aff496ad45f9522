"""Labels from JSON, and by class folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ig_core.data.sources.labels import parse_labels
from ig_core.data.sources.listing import identify
from ig_core.data.sources.source import list_source
from tests.equipment.latent_sets import pictures, write_folder, write_npy, write_zip


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", pictures())


def labels(root, num_classes=3, mapping=None):
    listing = list_source(root, num_classes, mapping)
    return [row.label for row in listing.rows(0, len(listing))]


# JSON


@pytest.mark.parametrize(
    "text", ['{"a": 1, "b/c": 2}', '{"labels": [["a", 1], ["b\\\\c", 2.0]]}', '{"a/": 1, "b/c": 2}']
)
def test_both_forms_are_read(text):
    assert parse_labels(text, "x.json").by_name == {"a": 1, "b/c": 2}


def test_a_folder_may_be_called_labels():
    assert parse_labels('{"labels": 1}', "x.json").of("labels/a.png") == 1


def test_the_innermost_name_gives_the_label():
    found = parse_labels('{"a": 0, "a/b": 1, "a/b/c.png": 2}', "x.json")
    assert [found.of(f"a/{name}") for name in ("x.png", "b/x.png", "b/c.png", "c/d/x")] == [
        0,
        1,
        2,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ('["a"]', "has no labels"),
        ("3", "has no labels"),
        ("{}", "has no labels"),
        ('{"labels": null}', "has no labels"),
        ('{"labels": [["a"]]}', "has no labels"),
        ('{"labels": [[1, 2]]}', "has no labels"),
        ('{"n01": "cat"}', "label of n01 must be an integer, but is 'cat'"),
        ('{"n01": 1.9}', "label of n01 must be an integer, but is 1.9"),
        ('{"n01": true}', "must be an integer, but is True"),
        ('{"n01": null}', "must be an integer, but is None"),
        ('{"n01": NaN}', "must be an integer, but is nan"),
        ('{"labels": [["a", 0.7]]}', "label of a must be an integer, but is 0.7"),
        ('{"labels": [["a", 0], ["a", 1]]}', "lists a again, with label 1 after 0"),
        ('{"a": 0, "a": 1}', "'a' stands there twice"),
    ],
)
def test_what_is_no_mapping_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_labels(text, "x.json")
    assert str(raised.value).startswith("x.json")


def test_files_that_are_listed_must_be_there(folder, tmp_path):
    names = [f"{label}/{n}.png" for label, n in ((0, 1), (1, 2), (2, 3), (3, 4))]
    pairs = [[p.relative_to(folder).as_posix(), 0] for p in folder.glob("*/*.png")]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs + [[n, 0] for n in names]}))
    with pytest.raises(ValueError, match=r"labels to 11 names, but 4 \(0/1.png, 1/2.png, 2/3.png"):
        list_source(folder, 3)
    npy = write_npy(tmp_path / "npy", np.zeros((3, 8, 2, 2), np.float32), [0, 1, 2])
    (npy / "vae-sd" / "00000" / "img-mean-std-00000001.npy").unlink()
    with pytest.raises(ValueError, match=r"1 \(00000/img-mean-std-00000001\.npy\) are not there"):
        list_source(npy, 3)


# Class folders


def test_only_folders_that_hold_images_are_classes(folder):
    for name in (".cache", "__MACOSX", "empty", "a_notes"):
        (folder / name).mkdir()
    (folder / "__MACOSX" / "._000.png").write_bytes(b"x")
    (folder / ".cache" / "000.png").write_bytes(b"x")
    (folder / "a_notes" / "readme.txt").write_bytes(b"x")
    assert labels(folder) == [0, 0, 0, 1, 1, 2, 2]


def test_class_folders_must_be_as_many_as_classes(folder):
    with pytest.raises(ValueError, match=r"1000 class folders .*holds 3 \(n01, n02, n03\)$"):
        list_source(folder, 1000)
    with pytest.raises(ValueError, match="2 class folders"):
        list_source(folder, 2)


def test_a_level_too_high_is_no_set_of_two_classes(tmp_path):
    for split in ("train", "val"):
        write_folder(tmp_path / "imagenet" / split, pictures())
    for num_classes in (2, 3):
        with pytest.raises(ValueError, match=r"2 \(train, val\).*lower, as in .*imagenet/train"):
            list_source(tmp_path / "imagenet", num_classes)


def test_images_may_lie_deeper_in_their_class(folder):
    (folder / "n01" / "images").mkdir()
    (folder / "n01" / "000.png").rename(folder / "n01" / "images" / "000.png")
    assert labels(folder) == [0, 0, 0, 1, 1, 2, 2]


# A mapping that lies elsewhere


def test_a_mapping_may_lie_anywhere_and_its_labels_are_part_of_the_identity(folder, tmp_path):
    mapping = tmp_path / "elsewhere.json"
    plain = identify(list_source(folder, 3))
    mapping.write_text(json.dumps({"n01": 7, "n02": 0, "n03": 5, "n99": 9}))
    folder.chmod(0o555)
    assert labels(folder, 10, mapping) == [7, 7, 7, 0, 0, 5, 5]
    one = identify(list_source(folder, 10, mapping))
    mapping.write_text(json.dumps({"n01": 6, "n02": 0, "n03": 5}))
    assert len({plain, one, identify(list_source(folder, 10, mapping))}) == 3
    mapping.write_text(json.dumps({"n01": 0, "n02": 1, "n03": 2}))
    assert identify(list_source(folder, 3, mapping)) == plain
    folder.chmod(0o755)


def test_a_mapping_goes_before_what_lies_with_the_data(folder, tmp_path):
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({"n01": 2, "n02": 1, "n03": 0, "n01/001.png": 1}))
    (folder / "classes.json").write_text(json.dumps({"n01": 0, "n02": 0, "n03": 0}))
    assert labels(folder, 3, mapping) == [2, 1, 2, 1, 1, 0, 0]
    path = write_zip(tmp_path / "z" / "set.zip", pictures())
    mapping.write_text(json.dumps({"00000": 1, "00001": 2, "00002": 0}))
    assert labels(path, 3, mapping) == [1, 1, 1, 2, 2, 2, 0]


def test_a_mapping_that_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file"):
        list_source(folder, 3, tmp_path / "none.json")
