"""Images in class folders, Parquet files and zips, listed; see `ig_core.data.sources.listing`."""

from __future__ import annotations

import zipfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ig_core.config import SettingError
from ig_core.data.sources.formats import CLASSES, MAPPING, SPLITS, Row
from ig_core.data.sources.labels import Labels, parse_labels, read_labels, whole_number
from ig_core.data.sources.listing import IMAGES, ListingContext, image_type, labelled
from ig_core.data.sources.walk import is_hidden, plain_name, preview, suffix_of, walk
from ig_core.files.encoded_images import MAX_LABEL_BYTES, read_zip_member

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def list_folder(context: ListingContext) -> list[Row]:
    """List images below class folders, labelled by a mapping or by the order of the folders."""
    root = context.found.root
    files, ignored = walk(root, IMAGES)
    context.ignored.update(ignored)
    labels = context.labels
    for name in (MAPPING, CLASSES):
        if (root / name).is_file():
            context.ignored -= Counter({".json": 1})
            labels = labels or read_labels(root / name)
    if labels is None:
        labels = _numbered_folders(context, [name for name, _ in files])
    return labelled(files, labels, IMAGES)


def _numbered_folders(context: ListingContext, names: Sequence[str]) -> Labels:
    """Number the class folders that hold images, by name.

    Raises:
        ValueError: If an image lies in no class folder, or the folders are not `num_classes`.
    """
    root, num_classes = context.found.root, context.num_classes
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise ValueError(
            f"{root / loose} lies in no class folder, and there is no {MAPPING}; of a "
            f"class folder give the one above ({root.parent})"
        )
    folders = sorted({name.partition("/")[0] for name in names})
    deeper = any(name.count("/") > 1 for name in names)
    splits = deeper and set(folders) <= set(SPLITS)
    if names and (splits or len(folders) != num_classes):
        below = f"; its classes seem to lie a level lower, as in {root / folders[0]}"
        raise SettingError(
            f"{root} must hold {num_classes} class folders (num_classes) with images, or their "
            f"labels be given ({MAPPING} or {CLASSES} in it, or another file), but it holds "
            f"{preview(folders)}{below if deeper else ''}",
            num_classes="",
            labels="FILE",
        )
    return Labels(str(root), {name: number for number, name in enumerate(folders)})


def list_parquet(context: ListingContext) -> list[Row]:
    """List rows of Parquet files with columns image and label."""
    rows = []
    for file in context.found.files:
        path = context.found.root / file
        table = pq.ParquetFile(path)
        schema = table.schema_arrow
        wanted = ["image"] if context.labels else ["image", "label"]
        if not set(wanted) <= set(schema.names):
            plural = "s" if len(wanted) > 1 else ""
            raise ValueError(
                f"{path} must have column{plural} {' and '.join(wanted)}, but has "
                f"{', '.join(schema.names)}"
            )
        _check_images(table, path)
        labels = [0] * table.metadata.num_rows if context.labels else _label_column(table, path)
        rows += [
            Row(f"{file}[{number}]", file, number, -1, label) for number, label in enumerate(labels)
        ]
    return rows


def _label_column(table: pq.ParquetFile, path: Path) -> list[int]:
    kind = table.schema_arrow.field("label").type
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        raise ValueError(f"{path}: column label must hold integers, but holds {kind}")
    labels = table.read(columns=["label"])["label"].to_pylist()
    return [
        label if type(label) is int else whole_number(label, f"{path}: the label of row {number}")
        for number, label in enumerate(labels)
    ]


def _check_images(table: pq.ParquetFile, path: Path) -> None:
    """Raise ValueError unless column image has bytes; statistics of the file say how many lack.

    Hugging Face's `Image` may hold paths alone, of files on the machine where it was made.
    """
    image_type(table.schema_arrow, path)
    metadata, wanted = table.metadata, ("image", "image.bytes")
    places = [n for n in range(metadata.num_columns) if metadata.schema.column(n).path in wanted]
    lacking = 0
    for number in range(metadata.num_row_groups if places else 0):
        column = metadata.row_group(number).column(places[0])
        if column.statistics is not None and column.statistics.has_null_count:
            lacking += column.statistics.null_count
    if lacking and lacking == metadata.num_rows:
        raise ValueError(
            f"{path}: column image must hold the bytes of images, but all "
            f"{lacking} are null (paths alone? embed the files, as "
            f"datasets' Image(decode=False) and embed_external_files do)"
        )


def list_zip(context: ListingContext) -> list[Row]:
    """List images in zips, labelled by the `dataset.json` in each."""
    rows = []
    for file in context.found.files:
        path = context.found.root / file
        try:
            with zipfile.ZipFile(path) as archive:
                top = _top_folder(archive)
                images = _members(archive, context, str(path), top)
                labels = context.labels or _labels_within(archive, top, str(path))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{path} is not a readable zip file: {error}") from error
        rows += [
            Row(info.filename, file, 0, info.file_size, labels.of(name))
            for name, info in images.items()
        ]
        if context.labels is None:
            labels.check(images, IMAGES)
    return rows


def _top_folder(archive: zipfile.ZipFile) -> str:
    """Find the one folder with `/` that all files of a zip and their labels lie in; empty if none.

    So a folder that was packed from above comes out: names in its labels start within it.
    """
    names = [plain_name(name) for name in archive.namelist()]
    tops = {name.partition("/")[0] for name in names if not is_hidden(name)}
    top = f"{next(iter(tops))}/" if len(tops) == 1 else ""
    return top if top and f"{top}{MAPPING}" in names else ""


def _members(
    archive: zipfile.ZipFile, context: ListingContext, where: str, top: str = ""
) -> dict[str, Any]:
    """Find the images of a zip by their names with `/`, below its top folder."""
    images: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = plain_name(info.filename).removeprefix(top)
        *folders, last = name.split("/")
        if name == MAPPING or not last:  # a folder's own entry
            continue
        if suffix_of(name) not in IMAGES or last.startswith(".") or any(map(is_hidden, folders)):
            context.ignored[suffix_of(name) or last] += 1
            continue
        if name in images:
            raise ValueError(f"{where} must hold each image once, but holds {name} twice")
        images[name] = info
    return images


def _labels_within(archive: zipfile.ZipFile, top: str, path: str) -> Labels:
    wanted = f"{top}{MAPPING}"
    where = f"{path}: {wanted}"
    name = next((each for each in archive.namelist() if plain_name(each) == wanted), None)
    if name is None:
        raise SettingError(
            f"{where} is missing; without it, or another file of labels, there are none",
            labels="FILE",
        )
    try:
        text = read_zip_member(archive, name, MAX_LABEL_BYTES)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from error
    return parse_labels(text, where)
