"""Encoded images out of files and archives: never more bytes than one image may take.

A name says nothing of what lies behind it: a file may have no end, a member of a zip may expand to
gigabytes, be encrypted, damaged, or compressed by a method that is not known. Each of these is the
fault of one image, which is named, and not the end of reading the others.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path

MAX_IMAGE_BYTES = 2**27
"""Bytes that the file of one image may take: more than the largest image that is decoded needs."""
MAX_LABEL_BYTES = 2**30
"""Bytes that a list of labels in a zip may take."""

Encoded = bytes | str
"""The file of an image, or its fault."""


def read_image_file(path: Path) -> Encoded:
    """Read the file of an image."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is no file"
        with path.open("rb") as file:
            return bounded(file.read(MAX_IMAGE_BYTES + 1))
    except OSError as error:
        return f"is missing or cannot be read: {error.strerror}"


def bounded(data: bytes) -> Encoded:
    """Return the file of an image, or the fault that it is too large."""
    return too_large(len(data)) or data


def too_large(size: int) -> str | None:
    """Return the fault of an image file of so many bytes, None if it is small enough."""
    if size <= MAX_IMAGE_BYTES:
        return None
    return f"takes over {MAX_IMAGE_BYTES / 2**20:g} MiB, which is no training image"


def read_zip_member(archive: zipfile.ZipFile, name: str, most: int = MAX_IMAGE_BYTES) -> bytes:
    """Read a member of a zip; its checksum is compared.

    Raises:
        ValueError: If the member expands to more bytes than `most`, is encrypted or damaged, or is
            compressed by an unknown method.
    """
    try:
        with archive.open(name) as stream:
            # bzip2 and LZMA expand all that was read, whatever is asked for: the size that the
            # member says it has is looked at first. Beyond that nothing is given.
            size = archive.getinfo(name).file_size
            data = stream.read(most + 1) if size <= most else b""
    except MemoryError:
        raise
    except Exception as error:  # each method of compression has errors of its own
        raise ValueError(f"cannot be read: {error or type(error).__name__}") from error
    if size > most:
        raise ValueError(f"takes over {most / 2**20:g} MiB")
    return data
