"""Source of images or latents: detect its format and list its rows."""

from __future__ import annotations

import dataclasses
import functools
import logging
import tarfile
from typing import TYPE_CHECKING

import pyarrow as pa

from ig_core.config import SettingError
from ig_core.data.sources.formats import ONE_ROW_PER_FILE, SELF_LABELLED, Row, detect, hint
from ig_core.data.sources.images import list_folder, list_parquet, list_zip
from ig_core.data.sources.labels import NoLabels, read_labels
from ig_core.data.sources.latents import list_npy, list_safetensors
from ig_core.data.sources.listing import Listing, ListingContext, identify
from ig_core.data.sources.tars import list_tar

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from pathlib import Path


logger = logging.getLogger(__name__)
LISTERS: dict[str, Callable[[ListingContext], list[Row]]] = {
    "folder": list_folder,
    "parquet": list_parquet,
    "tar": list_tar,
    "zip": list_zip,
    "npy": list_npy,
    "safetensors": list_safetensors,
}
"""Format -> what lists its rows."""


def list_images(path: Path) -> Listing:
    """List images whose labels do not matter: as `list_source`, but each is given label 0.

    Raises:
        ValueError: If nothing there has one of the formats of images, or a part of it is missing.
    """
    found = detect(path)._replace(extra=())
    if found.format in ("npy", "safetensors"):
        raise ValueError(f"{path} must hold images, but holds {found.format}")
    return _list(path, ListingContext(found, 1, NoLabels()))


def list_source(path: Path, num_classes: int, labels: Path | None = None) -> Listing:
    """List what lies at a path.

    Args:
        path: A folder, a file, or a pattern in the last part of the name (`train-*.parquet`,
            `set-{000..099}.tar`).
        num_classes: Labels must be below; class folders that no mapping labels must be as many.
        labels: A JSON file {folder or file: label}, instead of those that lie with the data.

    Raises:
        ValueError: If nothing there has one of the formats, a part of it is missing, or a row has
            no label in 0..num_classes - 1.
    """
    found = detect(path)
    if labels is not None:
        if found.format in SELF_LABELLED:
            raise SettingError(
                f"labels must be left out: {path} holds {found.format}, which has labels of its "
                f"own",
                labels="None",
            )
        found = found._replace(extra=())
    return _list(
        path, ListingContext(found, num_classes, None if labels is None else read_labels(labels))
    )


def _list(path: Path, context: ListingContext) -> Listing:
    found, num_classes = context.found, context.num_classes
    try:
        rows = LISTERS[found.format](context)
    except (OSError, KeyError, TypeError, tarfile.TarError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as {found.format}: {type(error).__name__}: {error}"
        ) from error
    if not rows:
        raise ValueError(
            f"{path} holds no images or latents (looked for: {found.format})"
            f"{_ignored(context.ignored)}{hint(path)}"
        )
    if found.format in ("folder", "npy", "zip"):
        rows.sort(key=lambda row: row.name)
    for row in rows:
        if not 0 <= row.label < num_classes:
            raise SettingError(
                f"{path}: the label of {row.name} must be in 0..{num_classes - 1} "
                f"(num_classes={num_classes}), but is {row.label}",
                num_classes="",
            )
    if context.ignored:
        _warn(f"{path}: only images or latents are used{_ignored(context.ignored)}")
    table = pa.table({name: [getattr(row, name) for row in rows] for name in Row._fields})
    files = (
        tuple(row.file for row in rows) if found.format in ONE_ROW_PER_FILE else tuple(found.files)
    )
    return Listing(found.root, found.format, table, files, found.extra, dict(context.ignored))


def _ignored(ignored: Counter[str]) -> str:
    """Describe ignored files for a message: at most 5 kinds."""
    kinds = [f"{count} {kind}" for kind, count in ignored.most_common(5)]
    more = ", ..." if len(ignored) > len(kinds) else ""
    return f"; left out: {', '.join(kinds)}{more}" if kinds else ""


@functools.lru_cache(maxsize=64)
def _warn(text: str) -> None:
    """Log it once a process: a study lists its source for every trial."""
    logger.warning("%s", text)


def identify_images(listing: Listing) -> str:
    """Compute `identify` without regard to labels."""
    unlabelled = listing.table["label"].combine_chunks().is_null().cast(pa.int64())
    place = listing.table.schema.get_field_index("label")
    table = listing.table.set_column(place, "label", unlabelled)
    return identify(dataclasses.replace(listing, table=table, extra=()))
