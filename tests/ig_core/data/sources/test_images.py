"""Images that lie about in folders, zips and Parquet files."""

from __future__ import annotations

import io
import json
import logging
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ig_core.data.sources.listing import identify, read_listing
from ig_core.data.sources.rows import image_files
from ig_core.data.sources.source import list_source
from ig_core.data.sources.walk import walk
from tests.equipment.latent_sets import pictures, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", pictures())


# Folders


def test_a_link_that_leads_nowhere_is_one_faulty_image(folder):
    (folder / "n01" / "000x.png").symlink_to(folder / "gone.png")
    (folder / "n01" / "000y.png").symlink_to("000y.png")
    listing = list_source(folder, 3)
    read = {row.name: isinstance(data, str) for row, data in image_files(listing, 0, 9)}
    assert [name for name, missing in read.items() if missing] == ["n01/000x.png", "n01/000y.png"]
    assert len(identify(listing)) == 64


def test_links_in_a_loop_are_not_followed(folder):
    (folder / "n01" / "self").symlink_to(folder / "n01")
    (folder / "n02" / "up").symlink_to(folder)
    assert len(list_source(folder, 3)) == 7


def test_a_folder_that_is_reached_twice_is_refused(folder):
    (folder / "n04").symlink_to(folder / "n01")
    with pytest.raises(ValueError, match=r"n0[14] and .*n0[14] are one folder"):
        list_source(folder, 4)


def test_linked_class_folders_are_followed(folder, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("n01", "n02", "n03"):
        (tmp_path / "links" / name).symlink_to(folder / name)
    assert identify(list_source(tmp_path / "links", 3)) == identify(list_source(folder, 3))


def test_every_file_is_asked_for_its_size_once(folder, monkeypatch):
    """A million calls on a network's file system take minutes."""
    listing = list_source(folder, 3)
    (folder / "n01" / "000.png").write_bytes(b"longer than it was" * 100)
    size = listing.table["size"].to_pylist()[0]
    assert size != 1800
    assert identify(listing) != identify(list_source(folder, 3))
    assert dict(walk(folder, {".png"}).files)["n01/000.png"] == 1800


def test_images_of_all_kinds_are_rows_and_other_files_are_counted(folder, caplog, tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "GIF")
    (folder / "n01" / "a.gif").write_bytes(stream.getvalue())
    (folder / "n01" / "b.HEIC").write_bytes(b"not known")
    for name in ("notes.txt", "more.txt", "Thumbs.db", ".DS_Store", "._a.gif"):
        (folder / "n02" / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        listing = list_source(folder, 3)
    names = [row.name for row in listing.rows(0, len(listing))]
    assert {"n01/a.gif", "n01/b.HEIC"} < set(names)
    assert len(names) == 9
    assert listing.ignored == {".txt": 2, ".db": 1, ".DS_Store": 1, ".gif": 1}
    assert "2 .txt" in caplog.text
    listing.write(tmp_path / "listing.parquet")
    assert read_listing(tmp_path / "listing.parquet", folder) == listing


# Zips


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_a_zip_made_on_a_mac(tmp_path):
    image = pictures()[0][1]
    mapping = json.dumps({"labels": [["00000/img0.png", 2]]})
    path = write_zip(
        tmp_path / "set.zip",
        [
            ("00000/", b""),
            ("00000/img0.png", image),
            ("__MACOSX/00000/._img0.png", b"x"),
            ("00000/.hidden.png", b"x"),
            ("00000/notes.txt", b"x"),
            ("dataset.json", mapping),
        ],
    )
    listing = list_source(path, 3)
    assert [(row.label, data) for row, data in image_files(listing, 0, 1)] == [(2, image)]
    assert len(listing) == 1


def test_backslashes_in_a_zip_are_slashes(tmp_path):
    image = pictures()[0][1]
    mapping = json.dumps({"labels": [["00000/img0.png", 2]]})
    path = write_zip(tmp_path / "x.zip", [("00000\\img0.png", image), ("dataset.json", mapping)])
    listing = list_source(path, 3)
    assert [(row.label, data) for row, data in image_files(listing, 0, 1)] == [(2, image)]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_incomplete_or_holds_an_image_twice(tmp_path):
    mapping = json.dumps({"labels": [["a.png", 0], ["b.png", 1], ["c.png", 1]]})
    path = write_zip(tmp_path / "x.zip", [("a.png", b"x"), ("dataset.json", mapping)])
    with pytest.raises(ValueError, match=r"x\.zip.*2 \(b\.png, c\.png\) are not there"):
        list_source(path, 3)
    write_zip(path, [("a.png", b"x"), ("a.png", b"y"), ("dataset.json", mapping)])
    with pytest.raises(ValueError, match=r"x\.zip .*holds a\.png twice"):
        list_source(path, 3)


# Parquet


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["cat"], "column label must hold integers, but holds string"),
        ([0.7], "label of row 0 must be an integer, but is 0.7"),
        ([1, None], "label of row 1 must be an integer, but is None"),
    ],
)
def test_labels_of_parquet_must_be_integers(tmp_path, values, message):
    table = pa.table({"image": [b"x"] * len(values), "label": values})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"x\.parquet: .*{message}"):
        list_source(tmp_path / "x.parquet", 3)


def test_whole_floats_are_labels(tmp_path):
    table = pa.table({"image": [b"x"] * 2, "label": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [row.label for row in list_source(tmp_path / "x.parquet", 3).rows(0, 2)] == [1, 2]


def test_a_zip_of_one_top_folder_is_that_folder(tmp_path):
    path, image = tmp_path / "set.zip", pictures(1)[0][1]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("set/", b"")
        archive.writestr("set/0/a.png", image)
        archive.writestr("__MACOSX/set/0/._a.png", b"x")
        archive.writestr("set/dataset.json", json.dumps({"labels": [["0/a.png", 2]]}))
    listing = list_source(path, 3)
    assert [(row.label, data) for row, data in image_files(listing, 0, 1)] == [(2, image)]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/b.png", image)
    with pytest.raises(ValueError, match=r"set\.zip: dataset\.json is missing"):
        list_source(path, 3)
