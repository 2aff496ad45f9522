"""Sets of images as other programs write and read them: folders of PNG files, ADM's .npz files.

Both are read and written a batch at a time, so that a set need not fit into memory. In a .npz file
the images are `arr_0`, uint8 (N, H, W, C), and `arr_1`, if there, their labels (N,) int64.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ig_core.data.sources.formats import CONTAINERS
from ig_core.data.sources.listing import IMAGES
from ig_core.data.sources.walk import suffix_of, walk
from ig_core.files.encoded_images import read_image_file
from ig_core.files.extras import extra
from ig_core.files.npz import names, open_array, open_npz, read_array, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image

OTHER_IMAGES = {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Suffixes that make a folder ambiguous: lossy, or several images in one file."""


def read_image_batches(path: Path, batch: int) -> Iterator[Tensor]:
    """Read images of a PNG folder, an .npz file or a folder of .npz shards, `batch` at a time.

    A folder's files come in the order of their names, character by character (`10.png` before
    `9.png`). Palettes are resolved; an alpha channel is dropped where everything is opaque. Grey
    images have one channel.

    Args:
        path: A folder, or a file.
        batch: Images at a time; the last batch holds the rest.

    Yields:
        uint8 (B, C, H, W), C 1 or 3.

    Raises:
        ValueError: If there are no images; if one cannot be read, has another size or number of
            channels than the first, more than 8 bits, or transparent pixels; or if an array
            is not uint8 (N, H, W, C).
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, but got {batch}")
    if not path.is_dir():
        yield from _read_npz(path, batch)
    elif shards := npz_shards(path):
        yield from _read_shards(shards, batch)
    else:
        yield from _read_folder(png_files(path), batch)


def count_images(path: Path) -> int:
    """Count the images of a PNG folder, an .npz file or a folder of .npz shards by their headers.

    Raises:
        ValueError: As `read_image_batches`, as far as names and headers show it.
    """
    if path.is_dir():
        shards = npz_shards(path)
        return sum(map(count_images, shards)) if shards else len(png_files(path))
    with open_npz(path) as archive, open_array(archive, "arr_0") as (header, _):
        return _checked_shape(header.shape, header.dtype, path)[0]


def holds_samples(folder: Path, side: int | None) -> bool:
    """Check whether a folder holds samples: .npz shards, or PNG files alone.

    Args:
        folder: The folder.
        side: Height and width that the PNG files must have; None: any. What is no PNG file has
            none, and shows when it is read.

    Raises:
        ValueError: If there are .npz shards and PNG files, or a shard holds no images.
    """
    if shards := npz_shards(folder):
        for shard in shards:
            count_images(shard)
        return True
    kinds = [(entry, suffix_of(entry.name)) for entry in _entries(folder) if entry.is_file()]
    pngs = [entry for entry, kind in kinds if kind == ".png"]
    others = any(kind in IMAGES or kind in CONTAINERS for _, kind in kinds if kind != ".png")
    if not pngs or others:
        return False
    return side is None or all(_png_size(file) in (None, (side, side)) for file in pngs)


def _png_size(file: Path) -> tuple[int, int] | None:
    """Read width and height from the header of a PNG file; None if it is not a PNG file."""
    try:
        with file.open("rb") as stream:
            start = stream.read(24)
    except OSError:
        return None
    if len(start) < 24 or not start.startswith(b"\x89PNG") or start[12:16] != b"IHDR":
        return None
    return int.from_bytes(start[16:20]), int.from_bytes(start[20:24])


def npz_shards(folder: Path) -> list[Path]:
    """List the .npz shards of a set of images by name; empty if it has none.

    Raises:
        ValueError: If there are PNG files beside them.
    """
    suffixes: dict[str, list[Path]] = {}
    for entry in _entries(folder):
        suffixes.setdefault(entry.suffix.lower(), []).append(entry)
    if ".npz" in suffixes and ".png" in suffixes:
        raise ValueError(f"{folder} holds both .npz and PNG files; a set must be of one kind")
    return suffixes.get(".npz", [])


def png_files(folder: Path) -> list[Path]:
    """List the PNG files of a folder by name; raise ValueError for other images.

    Raises:
        ValueError: If there are none, or there are images of another kind.
    """
    files = [entry for entry in _entries(folder) if entry.is_file()]
    for file in files:
        if file.suffix.lower() in OTHER_IMAGES:
            raise ValueError(f"{file} is not a PNG file; a set must hold PNG files only")
    pngs = [file for file in files if file.suffix.lower() == ".png"]
    if not pngs:
        raise ValueError(f"{folder} holds no PNG files{_below(folder)}")
    return pngs


def _entries(folder: Path) -> list[Path]:
    """List the entries of a folder by name, without hidden files: a Mac leaves `._000000.png`."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _below(folder: Path) -> str:
    """Describe the images in the subfolders of a folder that holds none, for a message."""
    below, _ = walk(folder, {".png", ".npz", *OTHER_IMAGES})
    if not below:
        return ""
    kinds = Counter(suffix_of(name) for name, _ in below)
    folders = sorted({name.rpartition("/")[0] for name, _ in below})
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    if len(folders) == 1 and not kinds.keys() & OTHER_IMAGES:
        return f"; is it {folder / folders[0]} that was meant, which holds {named}?"
    return (
        f", but {named} in {len(folders):,} folders below, such as {folder / folders[0]}: a "
        f"set is one folder of PNG files of one size"
    )


def _read_shards(files: Sequence[Path], batch: int) -> Iterator[Tensor]:
    """Read shards as one set, in batches that do not depend on where a shard ends."""
    waiting: list[Tensor] = []
    first: tuple[int, ...] | None = None
    for file in files:
        for images in _read_npz(file, batch):
            first = first or tuple(images.shape[1:])
            if tuple(images.shape[1:]) != first:
                raise ValueError(
                    f"{file} has channels, height and width {tuple(images.shape[1:])},"
                    f" but {files[0].name} has {first}"
                )
            waiting.append(images)
            if sum(map(len, waiting)) >= batch:
                whole = torch.cat(waiting)
                yield whole[:batch]
                waiting = [whole[batch:]]
    rest = torch.cat(waiting) if waiting else None
    if rest is not None and len(rest):
        yield rest


def _read_folder(files: Sequence[Path], batch: int) -> Iterator[Tensor]:
    first: tuple[int, ...] | None = None
    for start in range(0, len(files), batch):
        images = []
        for file in files[start : start + batch]:
            pixels = _read_png(file)
            first = first or pixels.shape
            if pixels.shape != first:
                raise ValueError(
                    f"{file} has height, width and channels {pixels.shape}, but "
                    f"{files[0].name} has {first}"
                )
            images.append(pixels)
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _read_png(file: Path) -> NDArray[np.uint8]:
    """Read a PNG file as uint8 (H, W, C)."""
    with extra("metrics"):
        from PIL import Image

    content = read_image_file(file)
    if isinstance(content, str):
        raise ValueError(f"{file} is not a readable PNG file: it {content}")
    try:
        data = io.BytesIO(content)
        Image.open(data, formats=["PNG"]).verify()  # checksums, which decoding does not look at
        with Image.open(data, formats=["PNG"]) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            deep = any("16" in str(tile[3]) for tile in image.tile)  # cut to 8 bits by Pillow
            image.load()
            plain = None if deep or frames > 1 else _without_alpha(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not a readable PNG file: {error}") from error
    if plain is None:
        depth = ", 16 bits" if deep else ""
        raise ValueError(
            f"{file} must be one opaque grey or RGB image of 8 bits, but has mode "
            f"{mode}{depth} and {frames} frame(s)"
        )
    pixels = np.array(plain, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _without_alpha(image: Image) -> Image | None:
    """Convert an image to L or RGB; None where that would change its looks."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return None
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            return None
    return image.convert("L" if grey else "RGB")


def _checked_shape(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], path: Path
) -> tuple[int, ...]:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{path}: array 'arr_0' must be uint8 (N, H, W, C) with C 1 or 3 and no "
            f"size 0, but is {dtype} {shape}"
        )
    return shape


def _read_npz(path: Path, batch: int) -> Iterator[Tensor]:
    with open_npz(path) as archive, open_array(archive, "arr_0") as (header, stream):
        count = _checked_shape(header.shape, header.dtype, path)[0]
        for start in range(0, count, batch):
            size = min(batch, count - start)
            pixels = read_rows(header, stream, size, f"{path}: array 'arr_0'")
            yield torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        stream.read(1)  # the end of the data, where their checksum is compared


def read_labels(path: Path) -> Tensor | None:
    """Read the labels (N,) int64 of an .npz file; None where it has none.

    Raises:
        ValueError: If the labels are not integers, or not one for each image.
    """
    with open_npz(path) as archive:
        if "arr_1" not in names(archive):
            return None
        labels = read_array(archive, "arr_1", (None,))
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) != count_images(path):
        raise ValueError(
            f"{path}: array 'arr_1' must hold {count_images(path)} integers, but is "
            f"{labels.dtype} {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def write_npz(
    path: Path, batches: Iterable[Tensor], count: int, labels: Tensor | None = None
) -> None:
    """Write ADM's .npz file; a function of the images alone, and there only once it is whole.

    Args:
        path: The file; its folder must exist.
        batches: uint8 (B, C, H, W), one after another.
        count: Images in all, which the format wants to know before.
        labels: (count,), written as `arr_1`.

    Raises:
        ValueError: If images are of another type or of several shapes, or not `count` in number.
    """
    if labels is not None and labels.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), but got {tuple(labels.shape)}")
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            _write_images(archive, batches, count)
            if labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as stream:
                    np.lib.format.write_array(stream, labels.long().cpu().numpy())
        os.replace(part, path)  # noqa: PTH105 - replaces on every system
    finally:
        part.unlink(missing_ok=True)


def _write_images(archive: zipfile.ZipFile, batches: Iterable[Tensor], count: int) -> None:
    written, shape = 0, None
    with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
        for images in batches:
            if images.dtype != torch.uint8 or images.dim() != 4:
                raise ValueError(
                    f"images must be uint8 (B, C, H, W), but got {images.dtype} "
                    f"{tuple(images.shape)}"
                )
            pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            if shape is None:
                shape = pixels.shape[1:]
                np.lib.format.write_array_header_1_0(
                    stream,
                    {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)},
                )
            if pixels.shape[1:] != shape:
                raise ValueError(
                    f"images must have one shape, but got {pixels.shape[1:]} after {shape}"
                )
            stream.write(pixels.tobytes())
            written += len(pixels)
    if written != count or shape is None:
        raise ValueError(f"{count} images were announced, but {written} came")


def write_folder(folder: Path, batches: Iterable[Tensor]) -> int:
    """Write a folder of `000000.png`, `000001.png`, ...; made if it does not exist.

    Args:
        folder: Must not hold PNG files yet.
        batches: uint8 (B, C, H, W) with C 1 or 3, one after another.

    Returns:
        How many images were written.

    Raises:
        ValueError: If the folder holds PNG files, or a batch is not of that kind.
    """
    with extra("metrics"):
        from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    if any(entry.suffix.lower() == ".png" for entry in folder.iterdir()):
        raise ValueError(f"{folder} already holds PNG files, which would mix with the new ones")
    written = 0
    for images in batches:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (B, C, H, W) with C 1 or 3, but got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        for pixels in images.permute(0, 2, 3, 1).cpu().numpy():
            flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
            Image.fromarray(np.ascontiguousarray(flat)).save(folder / f"{written:06d}.png")
            written += 1
    return written
