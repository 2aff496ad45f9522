"""WebDataset tars: labels in .cls and .json, and what is cut."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from ig_core.source_rows import image_files
from ig_core.sources import list_source


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
    path = tar(("a.json", json.dumps({"label": 3}).encode()), ("a.jpg", b"A"),
               ("b.jpg", b"B"), ("b.json", json.dumps({"label": "cat", "cls": 4}).encode()),
               ("c.json", json.dumps({"label": "cat"}).encode()), ("c.cls", b"5\n"),
               ("c.jpg", b"C"))  # fmt: skip
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
)  # fmt: skip
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
