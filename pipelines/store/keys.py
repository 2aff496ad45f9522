"""Content keys: names of results made from what the results are made from, and which are legal."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def canonical_json(value: object) -> str:
    """JSON in which equal values are equal text: sorted keys, 2.0 written as 2."""

    def plain(item: object) -> object:
        if isinstance(item, dict):
            return {str(key): plain(item[key]) for key in sorted(item)}
        if isinstance(item, list | tuple):
            return [plain(entry) for entry in item]
        if isinstance(item, float) and item.is_integer():
            return int(item)
        return item

    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False)


def content_digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_key(value: object) -> str:
    """Key of a value: the first 20 digits of its digest."""
    return content_digest(value)[:20]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_name(text: str) -> bool:
    """Whether a text is a legal kind or key."""
    legal = text.replace("-", "").isalnum() and text.isascii() and len(text) <= 200
    return legal and not text.startswith("-")


def check_name(*parts: str) -> None:
    """Raise ValueError unless each is a legal kind or key, which cannot lead elsewhere."""
    for part in parts:
        if not is_name(part):
            raise ValueError(f"kind and key must be letters, digits and '-', but got {part!r}")


def check_file_name(name: object) -> None:
    """Raise ValueError unless a file's name in a manifest stays below its artifact."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ValueError(f"the file name {name!r} does not stay in the artifact")
