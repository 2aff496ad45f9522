"""One image takes no more than it may, in every container, and is the only one that is lost."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ig_core.data.sources import images as source_images
from ig_core.data.sources import rows as source_rows
from ig_core.data.sources.rows import image_files
from ig_core.data.sources.source import list_source
from ig_core.files import encoded_images as image_bytes
from ig_core.files.npz import open_array, open_npz
from ig_core.images.crop import read_pixels
from tests.equipment.latent_sets import CLASSES, IMAGE_FORMATS, pictures


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_an_image_that_takes_too_much_is_named_and_the_others_are_read(tmp_path, name, monkeypatch):
    images = pictures()
    images[3] = (images[3][0], bytes(20_000))
    monkeypatch.setattr(image_bytes, "MAX_IMAGE_BYTES", 10_000)
    monkeypatch.setattr(image_bytes.read_zip_member, "__defaults__", (10_000,))
    listing = list_source(IMAGE_FORMATS[name](tmp_path / name, images), len(CLASSES))
    read = [data for _, data in image_files(listing, 0, 7)]
    assert "takes over 0.00953674 MiB" in read.pop(3)
    assert read == [data for place, (_, data) in enumerate(images) if place != 3]


def test_what_expands_without_end_is_never_in_memory(tmp_path, monkeypatch):
    path = IMAGE_FORMATS["zip"](tmp_path, [(0, bytes(2**20)), *pictures()[:1]])
    with (
        zipfile.ZipFile(path) as packed,
        zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in packed.namelist():
            archive.writestr(name, packed.read(name))
    sizes = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n)
    )
    listing = list_source(tmp_path / "z.zip", 3)
    assert len(list(image_files(listing, 0, 2))) == 2
    assert all(0 < size <= image_bytes.MAX_LABEL_BYTES + 1 for size in sizes)
    assert sizes.count(image_bytes.MAX_IMAGE_BYTES + 1) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_method_of_compression_expands_a_member_beyond_its_bound(tmp_path, method):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", bytes(2**24))
    with zipfile.ZipFile(path) as archive:
        tracemalloc.start()
        with pytest.raises(ValueError, match="takes over 1 MiB"):
            image_bytes.read_zip_member(archive, "a.png", 2**20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**22


def damage(path, name, how):
    """Change the entry of a member in a zip: its data, or what both of its headers say of it."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(name).header_offset
    central = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    if how == "data":
        start = place + 30 + len(name)
        content[start + 10 : start + 60] = os.urandom(50)
    elif how == "encrypted":
        for flags in (place + 6, central + 8):
            content[flags] |= 1
    else:
        for method in (place + 8, central + 10):
            content[method : method + 2] = struct.pack("<H", 97)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "words"),
    [("data", "cannot be read: "), ("encrypted", "is encrypted"), ("method", "method is not supp")],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_is_one_faulty_image(tmp_path, how, words, method):
    images = pictures()
    made = IMAGE_FORMATS["zip"](tmp_path / "made", images)
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(made) as given, zipfile.ZipFile(path, "w", method) as archive:
        for name in given.namelist():
            archive.writestr(name, given.read(name))
    damage(path, "00001/img00000004.png", how)
    read = [data for _, data in image_files(list_source(path, 3), 0, 7)]
    assert words in read.pop(4)
    assert read == [data for place, (_, data) in enumerate(images) if place != 4]


def test_labels_in_a_zip_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    path = IMAGE_FORMATS["zip"](tmp_path, pictures())
    monkeypatch.setattr(source_images, "MAX_LABEL_BYTES", 100)
    with pytest.raises(ValueError, match=r"set\.zip: dataset\.json takes over "):
        list_source(path, 3)
    damage(path, "dataset.json", "encrypted")
    with pytest.raises(ValueError, match=r"set\.zip: dataset\.json cannot be read: .*encrypted"):
        list_source(path, 3)


def test_a_damaged_row_group_takes_no_others_with_it(tmp_path):
    images = pictures()
    root = IMAGE_FORMATS["parquet"](tmp_path / "set", images)
    path = root / "train-00001-of-00002.parquet"  # the images 3 to 6, two a row group
    place = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    read = [data for _, data in image_files(list_source(root, 3), 0, 7)]
    assert [isinstance(data, str) for data in read] == [False] * 3 + [True] * 2 + [False] * 2
    assert read[5:] == [data for _, data in images[5:]]


def test_rows_that_expand_are_few_in_memory_at_once(tmp_path, monkeypatch):
    """Zeros are a few bytes of Parquet, whatever they expand to."""
    path = tmp_path / "a.parquet"
    images = [{"bytes": bytes([place]) * 2**20} for place in range(8)]
    column = pa.array(images, pa.struct([("bytes", pa.binary())]))
    table = pa.table({"image": column, "label": list(range(8))})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(source_rows, "MAX_IMAGE_BYTES", 3 * 2**20)
    batches = []
    read = pq.ParquetFile.iter_batches

    def noting(file, rows, **options):
        for batch in read(file, rows, **options):
            batches.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    found = [data for _, data in image_files(list_source(path, 8), 0, 8)]
    assert found == [image["bytes"] for image in images]
    assert batches == [2, 2, 2, 2], "as many as one image may take, by their mean"


def test_what_is_no_file_is_not_waited_for(tmp_path):
    root = IMAGE_FORMATS["folder"](tmp_path / "set", pictures())
    os.mkfifo(root / CLASSES[0] / "000x.png")
    assert [data for _, data in image_files(list_source(root, 3), 1, 2)] == ["is no file"]


def test_some_kilobytes_that_say_they_are_gigabytes_are_not_decoded():
    data = b"P6 13000 13000 255\n" + bytes(100)
    assert "13000 x 13000: over 134,217,728 pixels" in read_pixels(data, 16).fault


def test_an_encrypted_npz_is_refused_by_name(tmp_path):
    import numpy as np

    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    damage(tmp_path / "a.npz", "arr_0.npy", "encrypted")
    with (
        pytest.raises(ValueError, match=r"'arr_0' cannot be read: .*encrypted"),
        open_npz(tmp_path / "a.npz") as archive,
        open_array(archive, "arr_0"),
    ):
        pass


def test_a_column_of_nulls_or_of_paths_is_refused_when_it_is_listed(tmp_path):
    path = tmp_path / "a.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": f"{number}.png"} for number in range(12)]
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [0] * 12}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: column image .* all 12 are null .*embed"):
        list_source(path, 3)
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), path)
    with pytest.raises(ValueError, match="must hold bytes, or a struct with bytes, but holds str"):
        list_source(path, 3)
    rows[0]["bytes"] = pictures()[0][1]
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [0] * 12}), path)
    read = [data for _, data in image_files(list_source(path, 3), 0, 12)]
    assert read == [pictures()[0][1], *["holds no image"] * 11]


def test_a_tar_that_was_cut_after_it_was_listed_is_one_faulty_image(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("0.cls", b"1"), ("0.png", bytes(3000))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    listing = list_source(path, 3)
    path.write_bytes(path.read_bytes()[:3000])
    assert [data for _, data in image_files(listing, 0, 1)] == ["is cut short"]
