import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ig_core.images.folders import (
    count_images,
    png_files,
    read_image_batches,
    read_labels,
    write_folder,
    write_npz,
)


def images(count, channels=3, size=(4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, *size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def read(path, batch=3):
    return torch.cat(list(read_image_batches(path, batch)))


def write(path, x, **options):
    write_npz(path, x.split(3), len(x), **options)
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "pngs"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_folder_comes_back_as_it_was_written(folder, channels, batch):
    x = images(7, channels)
    assert write_folder(folder, x.split(2)) == count_images(folder) == 7
    assert [path.name for path in png_files(folder)][:2] == ["000000.png", "000001.png"]
    assert torch.equal(read(folder, batch), x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_npz_comes_back_as_it_was_written(tmp_path, channels, batch):
    x = images(7, channels)
    path = write(tmp_path / "set.npz", x)
    assert count_images(path) == 7
    assert torch.equal(read(path, batch), x)
    assert read_labels(path) is None


def test_npz_is_what_numpy_makes_of_the_format(tmp_path):
    x, labels = images(7), torch.arange(7) % 3
    with np.load(write(tmp_path / "set.npz", x, labels=labels), allow_pickle=False) as file:
        assert sorted(file.files) == ["arr_0", "arr_1"]
        assert file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], x.permute(0, 2, 3, 1))
        assert file["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(file["arr_1"], labels)
    assert torch.equal(read_labels(tmp_path / "set.npz"), labels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_numpy_is_read_stored_or_compressed(tmp_path, save):
    x = images(7)
    save(tmp_path / "set.npz", x.permute(0, 2, 3, 1).contiguous().numpy())
    assert torch.equal(read(tmp_path / "set.npz"), x)


def test_npz_depends_on_the_images_alone(tmp_path):
    x = images(7)
    write_npz(tmp_path / "a.npz", x.split(2), 7)
    write_npz(tmp_path / "b.npz", x.split(5), 7)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_npz_is_read_a_batch_at_a_time(tmp_path, monkeypatch):
    path, sizes = write(tmp_path / "set.npz", images(8)), []
    original = zipfile.ZipExtFile.read

    def counting(self, n=-1):
        data = original(self, n)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
    assert len(list(read_image_batches(path, 2))) == 4
    assert max(sizes) <= max(2 * 60, 4096)
    assert sum(size == 2 * 60 for size in sizes) == 4


def test_files_come_in_the_order_of_their_names(folder):
    folder.mkdir()
    for name, value in (("b.png", 2), ("a.PNG", 1), ("10.png", 0)):
        with (folder / name).open("wb") as file:
            Image.new("L", (2, 2), value).save(file, format="PNG")
    (folder / "notes.txt").write_text("not an image")
    assert read(folder)[:, 0, 0, 0].tolist() == [0, 1, 2]


def save(folder, image, name="000000.png"):
    folder.mkdir(exist_ok=True)
    image.save(folder / name)


def test_palettes_one_bit_and_opaque_alpha_are_resolved(folder):
    colour = Image.fromarray(images(1)[0].permute(1, 2, 0).numpy())
    palette = colour.quantize(8)
    save(folder, palette, "0.png")
    save(folder, colour.convert("RGBA"), "1.png")
    found = read(folder)
    expected = np.array(palette.convert("RGB"))
    np.testing.assert_array_equal(found[0].permute(1, 2, 0), expected)
    np.testing.assert_array_equal(found[1].permute(1, 2, 0), np.array(colour))


def test_grey_with_opaque_alpha_and_one_bit_images_have_one_channel(folder):
    grey = Image.fromarray(images(1, 1)[0, 0].numpy())
    save(folder, grey.convert("LA"), "0.png")
    save(folder, grey.convert("1"), "1.png")
    found = read(folder)
    np.testing.assert_array_equal(found[0, 0], np.array(grey))
    assert set(found[1].unique().tolist()) <= {0, 255}


def sixteen_bit_colour():
    """A PNG of 16-bit RGB, which Pillow reads and cannot write."""
    import struct
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(bytes([0]) + bytes(range(12)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_images_that_would_be_changed_are_an_error(folder):
    save(folder, Image.new("RGBA", (2, 2), (1, 2, 3, 254)))
    with pytest.raises(ValueError, match=r"000000\.png must be one opaque .* mode RGBA"):
        read(folder)
    save(folder, Image.new("I;16", (2, 2), 300))
    with pytest.raises(ValueError, match=r"8 bits, but has mode I;16, 16 bits"):
        read(folder)
    (folder / "000000.png").write_bytes(sixteen_bit_colour())
    with pytest.raises(ValueError, match=r"8 bits, but has mode RGB, 16 bits"):
        read(folder)
    frames = [Image.new("RGB", (2, 2), (value, 0, 0)) for value in (0, 9)]
    frames[0].save(folder / "000000.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"mode RGB and 2 frame"):
        read(folder)


@pytest.mark.parametrize(
    ("second", "shown"),
    [(Image.new("RGB", (5, 4)), r"\(4, 5, 3\)"), (Image.new("L", (4, 4)), r"\(4, 4, 1\)")],
    ids=["size", "channels"],
)
def test_images_unlike_the_first_are_named(folder, second, shown):
    save(folder, Image.new("RGB", (4, 4)), "0.png")
    save(folder, second, "1.png")
    with pytest.raises(ValueError, match=rf"1\.png has .* {shown}, but 0\.png has \(4, 4, 3\)"):
        read(folder, batch=1)


@pytest.mark.parametrize("keep", [0, 8, 40, -20])
def test_damaged_png_is_named(folder, keep):
    write_folder(folder, [images(2, size=(16, 16))])
    path = folder / "000001.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"000001\.png is not a readable PNG file"):
        read(folder)


@pytest.mark.parametrize("place", [45, 60, -20, -14])
def test_changed_byte_in_a_png_is_noticed(folder, place):
    write_folder(folder, [images(1, size=(16, 16))])
    path = folder / "000000.png"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"000000\.png is not a readable PNG file"):
        read(folder)


def test_folder_without_png_files_or_with_others_is_an_error(folder):
    folder.mkdir()
    with pytest.raises(ValueError, match=r"pngs holds no PNG files"):
        read(folder)
    write_folder(folder, [images(2)])
    save(folder, Image.new("RGB", (5, 4)), "1.jpg")
    with pytest.raises(ValueError, match=r"1\.jpg is not a PNG file"):
        read(folder)


def test_folder_that_holds_images_is_not_written_into(folder):
    write_folder(folder, [images(2)])
    with pytest.raises(ValueError, match=r"pngs already holds PNG files"):
        write_folder(folder, [images(2)])


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"uint8 \(2, 3, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), r"uint8 \(4, 4, 3\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"uint8 \(0, 4, 4, 3\)"),
    ],
    ids=["float", "channels first", "one image", "none"],
)
def test_npz_of_something_else_is_an_error(tmp_path, array, shown):
    np.savez(tmp_path / "set.npz", array)
    for use in (read, count_images):
        with pytest.raises(ValueError, match=rf"must be uint8 \(N, H, W, C\) .* but is {shown}"):
            use(tmp_path / "set.npz")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_npz_of_objects_is_refused_unopened(tmp_path):
    np.savez(tmp_path / "set.npz", np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="pickled Python objects, which are never loaded"):
        read(tmp_path / "set.npz")


def test_npz_without_images_names_what_it_holds(tmp_path):
    np.savez(tmp_path / "set.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"array 'arr_0' is missing; the file holds mu, sigma"):
        read(tmp_path / "set.npz")


def test_npz_stored_by_columns_is_refused(tmp_path):
    np.savez(tmp_path / "set.npz", np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)))
    with pytest.raises(ValueError, match="stored by columns"):
        read(tmp_path / "set.npz")


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_cut_npz_is_an_error(tmp_path, keep):
    path = write(tmp_path / "set.npz", images(7))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"set\.npz is not a readable \.npz file"):
        read(path)


def test_changed_byte_in_an_npz_is_noticed(tmp_path):
    path = write(tmp_path / "set.npz", images(7))
    data = bytearray(path.read_bytes())
    data[250] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"set\.npz is not a readable \.npz file: Bad CRC"):
        read(path)


def test_npz_that_announces_more_than_it_holds_is_an_error(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (1000, 4, 4, 3)}
    )
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue() + bytes(500))
    with pytest.raises(ValueError, match=r"array 'arr_0' ends early"):
        read(tmp_path / "set.npz")


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.npz does not exist"):
        read(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("labels", [np.zeros(6, np.int64), np.zeros(7)])
def test_labels_that_do_not_fit_are_an_error(tmp_path, labels):
    np.savez(tmp_path / "set.npz", images(7).permute(0, 2, 3, 1).contiguous().numpy(), labels)
    with pytest.raises(ValueError, match=r"'arr_1' must hold 7 integers"):
        read_labels(tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("batches", "count", "message"),
    [
        ([images(3)], 4, "4 images were announced, but 3 came"),
        ([images(3), images(2, 1)], 5, r"one shape, but got \(4, 5, 1\) after \(4, 5, 3\)"),
        ([images(3).float()], 3, r"must be uint8 \(B, C, H, W\), but got torch.float32"),
        ([], 0, "0 images were announced, but 0 came"),
    ],
    ids=["count", "shape", "type", "none"],
)
def test_npz_that_cannot_be_written_leaves_nothing(tmp_path, batches, count, message):
    with pytest.raises(ValueError, match=message):
        write_npz(tmp_path / "set.npz", batches, count)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_another_length_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), but got \(2,\)"):
        write_npz(tmp_path / "set.npz", [images(3)], 3, torch.zeros(2))


def test_folder_takes_only_uint8_images(folder):
    with pytest.raises(ValueError, match=r"uint8 \(B, C, H, W\) with C 1 or 3, but got torch.f"):
        write_folder(folder, [images(2).float()])


def test_batch_below_one_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="batch must be at least 1, but got 0"):
        next(read_image_batches(tmp_path, 0))


def test_hidden_files_are_none_of_a_set(folder):
    write_folder(folder, [torch.zeros(3, 3, 8, 8, dtype=torch.uint8)])
    (folder / "._000000.png").write_bytes(b"of a Mac")
    (folder / "._000000.npz").write_bytes(b"of a Mac")
    (folder / "000000.png").rename(folder / "__000000.png")  # a name like any other
    assert count_images(folder) == 3
    assert len(next(read_image_batches(folder, 9))) == 3


def test_images_in_folders_below_are_counted_and_named(folder):
    for name, suffix in (("n01", "JPEG"), ("n02", "jpeg")):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            (folder / name / f"{number}.{suffix}").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no PNG files, but 4 \.jpeg in 2 folders below, such as"):
        count_images(folder)
    write_folder(folder / "a" / "png", [torch.zeros(3, 3, 8, 8, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r"no PNG files; is it .*png that was meant, .* 3 \.png\?"):
        count_images(folder / "a")
