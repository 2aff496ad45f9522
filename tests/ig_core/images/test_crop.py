"""Encoded images to training pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ig_core.images.crop import center_crop, read_pixels


def picture(width, height, mode="RGB", seed=0) -> Image.Image:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, form="PNG", **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def test_an_image_of_the_right_size_is_taken_as_it_is():
    image = picture(16, 16)
    assert np.array_equal(center_crop(image, 16), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(24, 16), (16, 29)])
def test_what_is_longer_is_cropped_to_its_middle(width, height):
    image = picture(width, height)
    top, left = (height - 16) // 2, (width - 16) // 2
    expected = np.asarray(image)[top : top + 16, left : left + 16]
    assert np.array_equal(center_crop(image, 16), expected.transpose(2, 0, 1))


def test_large_images_are_halved_by_means_of_four_pixels():
    image = picture(32, 32)
    means = np.asarray(image, np.float64).reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    away = np.abs(center_crop(image, 16).transpose(1, 2, 0) - means)
    assert away.max() <= 1  # Pillow rounds after each direction


def test_halving_stops_before_the_shorter_side_gets_too_short():
    """51 x 70 to 16: once to 25 x 35, then bicubic to 16 x 22 and cropped."""
    image = picture(51, 70)
    half = image.resize((25, 35), Image.Resampling.BOX)
    small = np.asarray(half.resize((16, round(35 * 16 / 25)), Image.Resampling.BICUBIC))
    assert np.array_equal(center_crop(image, 16), small[3:19].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_modes_of_eight_bits_become_rgb(mode):
    found = read_pixels(encoded(picture(20, 20, mode)), 16)
    assert found.fault is None
    assert found.image.shape == (3, 16, 16)


def test_cmyk_is_converted_and_named():
    found = read_pixels(encoded(picture(20, 20, "CMYK"), "JPEG"), 16)
    assert found.image.shape == (3, 16, 16)
    assert "CMYK" in found.fault


def deep_rgb() -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = b"".join(b"\0" + bytes(range(96)) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "data",
    [encoded(Image.fromarray(np.full((16, 16), 40_000, np.uint16))), deep_rgb()],
    ids=["grey", "rgb"],
)
def test_more_than_eight_bits_are_not_clipped_but_refused(data):
    found = read_pixels(data, 16)
    assert found.image is None
    assert "more than 8 bits" in found.fault


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", encoded(picture(40, 40))[:900], encoded(picture(40, 40), "JPEG")[:400]],
)
def test_what_cannot_be_decoded_says_why(data):
    found = read_pixels(data, 16)
    assert found.image is None
    assert found.fault.startswith("cannot be decoded")
    assert "0x" not in found.fault


def ppm(width, height, largest) -> bytes:
    values = np.random.default_rng(0).integers(0, largest + 1, width * height * 3)
    kind = ">u2" if largest > 255 else "u1"
    return b"P6 %d %d %d\n" % (width, height, largest) + values.astype(kind).tobytes()


@pytest.mark.parametrize("width", [16, 720, 1616])
def test_widths_of_a_bmp_are_no_depths(width):
    found = read_pixels(encoded(picture(width, 20), "BMP"), 16)
    assert found.fault is None
    assert found.image.shape == (3, 16, 16)


def test_a_bmp_of_sixteen_bits_a_pixel_is_not_deep():
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 16, 3, 512, 0, 0, 0, 0)
    start = b"BM" + struct.pack("<IHHI", 66 + 512, 0, 0, 66)
    assert read_pixels(start + header + masks + bytes(512), 16).fault is None


@pytest.mark.parametrize("largest", [1, 15, 16, 160, 255])
def test_a_ppm_of_up_to_eight_bits_is_used(largest):
    found = read_pixels(ppm(20, 20, largest), 16)
    assert found.fault is None
    assert found.image.max() >= 200


@pytest.mark.parametrize("largest", [256, 4095, 65535])
def test_a_ppm_of_more_bits_is_refused(largest):
    found = read_pixels(ppm(20, 20, largest), 16)
    assert found.image is None
    assert "more than 8 bits" in found.fault


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (101, 1)])
def test_what_is_far_longer_than_wide_is_refused_before_it_is_decoded(size, monkeypatch):
    data = encoded(Image.new("RGB", size))
    monkeypatch.setattr(Image.Image, "resize", None)
    found = read_pixels(data, 256)
    assert found.image is None
    assert found.fault == f"is {size[0]} x {size[1]}: over 100 times as long as wide"


def test_what_is_a_hundred_times_as_long_as_wide_is_used():
    assert read_pixels(encoded(Image.new("RGB", (200, 2))), 16).fault is None


def test_a_decompression_bomb_is_a_faulty_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found = read_pixels(encoded(picture(20, 20)), 16)
    assert found.image is None
    assert "decompression bomb" in found.fault


def dds() -> bytes:
    """A DDS whose pixels are in a form that Pillow does not implement."""
    pixels = struct.pack("<II4sIIIII", 32, 4, b"XXXX", 0, 0, 0, 0, 0)
    return b"DDS " + struct.pack("<7I44x", 124, 0x1007, 16, 16, 0, 0, 0) + pixels + bytes(20 + 64)


def blp() -> bytes:
    """A BLP of an encoding that is none."""
    head = struct.pack("<IBBBBII", 1, 9, 0, 0, 0, 16, 16)
    return b"BLP2" + head + bytes(16 * 4 * 2 + 1024)


@pytest.mark.parametrize("data", [dds(), blp()], ids=["dds", "blp"])
def test_whatever_a_decoder_raises_is_a_fault_of_the_image(data):
    found = read_pixels(data, 16)
    assert found.image is None
    assert found.fault.startswith("cannot be decoded: ")
    assert len(found.fault) > len("cannot be decoded: ")


def test_memory_that_is_lacking_is_no_fault_of_an_image(monkeypatch):
    def lacking(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", lacking)
    with pytest.raises(MemoryError):
        read_pixels(encoded(picture(20, 20)), 16)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
def test_an_exif_orientation_is_said_and_not_applied(form, orientation):
    image, stream = picture(20, 30), io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(stream, form, exif=exif)
    found, plain = read_pixels(stream.getvalue(), 16), io.BytesIO()
    image.save(plain, form)
    assert found.oriented == (orientation in (3, 6))
    assert np.array_equal(found.image, read_pixels(plain.getvalue(), 16).image)


def test_damaged_exif_data_are_no_fault_of_the_pixels():
    stream = io.BytesIO()
    picture(20, 30).save(stream, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    found = read_pixels(stream.getvalue(), 16)
    assert (found.fault, found.oriented) == (None, False)


def test_what_is_no_image_for_training_starts_no_other_program(monkeypatch):
    """PostScript, whatever its file is called, would be drawn by Ghostscript."""
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append(1))
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n"
    pixels, fault, _ = read_pixels(text, 8)
    assert pixels is None
    assert "cannot be decoded: cannot identify image file" in fault
    assert started == []


def test_grey_is_asked_for():
    data = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), 7, np.uint8)).save(data, "PNG")
    pixels = read_pixels(data.getvalue(), 4, "L").image
    assert pixels.shape == (1, 4, 4)
    assert (pixels == 7).all()
