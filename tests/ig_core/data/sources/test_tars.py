"""WebDataset tars: labels in .cls and .json, and what is cut."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from ig_core.data.sources.rows import image_files
from ig_core.data.sources.source import list_source


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tar(tmp_path):
    """Factory of a tar of such members."""
    return lambda *members: write_tar(tmp_path / "x.tar", members)


def labels(path):
    listing = list_source(path, 10)
    return [(data, row.label) for row, data in image_files(listing, 0, len(listing))]


def test_labels_may_stand_in_json(tar):
    path = tar(
        ("a.json", json.dumps({"label": 3}).encode()),
        ("a.jpg", b"A"),
        ("b.jpg", b"B"),
        ("b.json", json.dumps({"label": "cat", "cls": 4}).encode()),
        ("c.json", json.dumps({"label": "cat"}).encode()),
        ("c.cls", b"5\n"),
        ("c.jpg", b"C"),
    )
    assert labels(path) == [(b"A", 3), (b"B", 4), (b"C", 5)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"A"), ("a.txt", b"cat")], r"a\.jpg has no label.*beside it are \.txt"),
        ([("a.jpg", b"A")], "beside it are none"),
        ([("a.jpg", b"A"), ("a.json", b'{"id": 1, "url": 2}')], r"or cls, but has 2 \(id, url\)"),
        ([("a.jpg", b"A"), ("a.json", b"[1]")], r"label or cls, but has 0"),
        ([("a.jpg", b"A"), ("a.json", b"{")], r"a\.json must be JSON"),
        ([("a.jpg", b"A"), ("a.json", b'{"label": 1.5}')], "label in a.json must be an integer"),
        ([("a.jpg", b"A"), ("a.cls", b"1_0")], r"a\.cls must hold an integer, but holds b'1_0'"),
        ([("a.jpg", b"A"), ("a.png", b"B"), ("a.cls", b"1")], r"of a it holds a\.jpg and a\.png"),
        ([("d/a.jpg", b"A"), ("d/a.jpg", b"B"), ("d/a.cls", b"1")], r"of d/a it holds d/a\.jpg"),
        ([("a.jpg", b"A"), ("a.cls", b"1"), ("a.cls", b"2")], r"of a it holds a\.cls and a\.cls"),
    ],
)
def test_keys_without_one_image_and_one_label_are_named(tar, members, message):
    with pytest.raises(ValueError, match=message) as raised:
        list_source(tar(*members), 10)
    assert "x.tar" in str(raised.value)


def test_what_a_mac_leaves_is_no_image(tar):
    path = tar(("._a.jpg", b"x"), ("a.jpg", b"A"), ("a.cls", b"1"), ("__MACOSX/._a.jpg", b"x"))
    assert labels(path) == [(b"A", 1)]


def test_names_may_begin_with_the_folder_itself(tar, tmp_path):
    path = tar(("./n01/a.jpg", b"A"), ("./n01/a.cls", b"1"))
    assert labels(path) == [(b"A", 1)]
    (tmp_path / "map.json").write_text('{"n01": 7}')
    assert list_source(path, 10, tmp_path / "map.json").rows(0, 1)[0].label == 7


def test_a_tar_that_is_cut_anywhere_is_refused(tar):
    """Each member takes two blocks of 512 bytes; then come the blocks of zeros that end a tar."""
    path = tar(*((f"{key}.{kind}", b"1") for key in "abc" for kind in ("cls", "jpg")))
    content = path.read_bytes()
    assert len(labels(path)) == 3
    for length in range(2048, 6 * 1024 + 512, 256):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.tar"):
            list_source(path, 10)


def test_a_damaged_header_is_no_end(tar):
    path = tar(*((f"{key}.{kind}", b"1") for key in "abc" for kind in ("cls", "jpg")))
    content = bytearray(path.read_bytes())
    for damage in (b"\xff" * 512, bytes(1024)):  # rubbish, and a hole
        path.write_bytes(content[:2048] + damage + content[2048 + len(damage) :])
        with pytest.raises(ValueError, match=r"cut short or damaged: at byte 2048"):
            list_source(path, 10)


def pair(stem, label=1, content=b"x"):
    return [(f"{stem}.cls", str(label).encode()), (f"{stem}.jpg", content)]


def test_a_key_ends_at_the_first_dot(tar):
    path = tar(
        *pair("a.v2", 1, b"A"),
        ("b.left.jpg", b"B"),
        ("b.cls", b"2"),
        ("c.jpg", b"C"),
        ("c.mask.png", b"m"),
        ("c.json", b'{"label": 3}'),
        ("d.x.json", b'{"cls": 4}'),
        ("d.x.jpg", b"D"),
    )
    assert labels(path) == [(b"A", 1), (b"B", 2), (b"C", 3), (b"D", 4)]
    assert list_source(path, 10).ignored == {".mask.png": 1}


@pytest.mark.parametrize("lost", [["a.1", "a.2", "a.3"], ["00", "00.1", "00.2", "00.3"]])
def test_images_that_share_a_key_are_counted_and_refused(tar, lost):
    others = [member for number in range(9) for member in pair(f"{number:02d}")]
    extra = [member for stem in lost if stem != "00" for member in pair(stem)]
    with pytest.raises(ValueError, match=r"3 of 12 images would be left out.*: 3 \(x\.tar/") as e:
        list_source(tar(*others, *extra), 10)
    assert "rename them" in str(e.value)


def test_a_few_images_that_share_a_key_are_left_out_and_counted(tar, caplog):
    many = [member for number in range(300) for member in pair(f"{number:03d}")]
    listing = list_source(tar(*many, *pair("a.1"), *pair("a.2")), 10)
    assert len(listing) == 300
    assert "2 images that share a key (2 (x.tar/a.1.jpg, x.tar/a.2.jpg))" in caplog.text


def test_images_that_share_a_key_by_a_mapping_are_counted_too(tar, tmp_path):
    names = {f"{stem}.jpg": 1 for stem in ("a", "a.1", "b")}
    (tmp_path / "map.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=r"1 of 3 images would be left out"):
        list_source(tar(*((name, b"x") for name in names)), 10, tmp_path / "map.json")


@pytest.mark.parametrize("module", ["gzip", "bz2", "lzma"])
def test_a_compressed_tar_is_refused_with_what_to_do(tar, module):
    import importlib

    path = tar(*pair("a"))
    path.write_bytes(importlib.import_module(module).compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"must be a plain tar, but is compressed by .*PLAIN\.tar"):
        list_source(path, 10)
