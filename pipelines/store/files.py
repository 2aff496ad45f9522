"""Reading, writing and deleting files: durable writes, and text that can always be encoded."""

from __future__ import annotations

import codecs
import os
import shutil
import uuid
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


LENIENT = "igdit.lenient"
"""Error handler of encoders. A byte of a file's name that Python could not decode (PEP 383) is
written as that byte; what the encoding lacks becomes a question mark."""


def _encode_leniently(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    codes = map(ord, error.object[error.start : error.end])
    return bytes(c - 0xDC00 if 0xDC80 <= c <= 0xDCFF else ord("?") for c in codes), error.end


codecs.register_error(LENIENT, _encode_leniently)


def read_if_there(path: Path) -> bytes | None:
    """Return the content of a file; None if it is not there."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_tail(path: Path, size: int) -> bytes:
    """Return the last whole lines of a file within `size` bytes of its end; empty if none."""
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(begin)
            text = file.read()
    except OSError:
        return b""
    return text.partition(b"\n")[2] if begin else text


def write_durably(path: Path, text: str) -> None:
    """Write a text file and force it to the disk."""
    with path.open("w", encoding="utf-8", errors=LENIENT) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def follow_umask(directory: Path) -> None:
    """Give the files below a directory the rights that files made in it usually have.

    Some libraries make theirs for their user alone, whatever the umask (safetensors does).
    """
    usual = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o666 != usual:
            path.chmod(usual)


def delete_tree(path: Path, *, as_far_as_possible: bool = False) -> None:
    """Delete a file or a folder with all in it; of a symbolic link the link, not its target.

    Args:
        path: File or folder.
        as_far_as_possible: Leave what cannot be deleted instead of raising OSError.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=as_far_as_possible)
        return
    with suppress(OSError) if as_far_as_possible else nullcontext():
        path.unlink()


def sync_directory(path: Path) -> None:
    """Force the names in a directory to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old content or the new."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        aside.write_text(text, encoding="utf-8", errors=LENIENT)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
