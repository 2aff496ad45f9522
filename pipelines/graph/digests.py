"""Digests of files and codecs that an experiment names by a path."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pipelines.common.remedies import explained_settings
from pipelines.store.keys import content_digest, file_digest

if TYPE_CHECKING:
    from pathlib import Path


def path_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's images."""
    if path.is_file():
        return file_digest(path)
    images = (
        file
        for file in path.iterdir()
        if file.suffix.lower() in (".png", ".npz") and not file.name.startswith(".")
    )
    return content_digest({file.name: file_digest(file) for file in images})


def codec_digest(name: str, path: Path) -> str:
    """Return the SHA-256 of a codec: of its file, or of the two files of its folder that are read.

    Raises:
        ValueError: If the codec is not there.
    """
    from ig_core.codecs.files import codec_parts

    with explained_settings(path="data.codec_path"):
        parts = codec_parts(name, path)
    if name == "va-vae":
        return known_digest(path)
    return content_digest({part.name: known_digest(part) for part in parts})


def known_digest(path: Path) -> str:
    """Return the digest of a path; a file that did not change is read once a process."""
    if path.is_dir():
        return path_digest(path)
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, *_: int) -> str:
    return file_digest(path)
