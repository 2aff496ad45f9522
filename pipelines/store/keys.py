"""Names of artifacts: content keys, and the kinds and keys that are legal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, order=True)
class Ref:
    """Name of an artifact, written KIND/KEY.

    The key is a content hash. That of a state of a training is the hash of its trajectory, and the
    step: HASH-00001000.

    Raises:
        ValueError: If the kind or the key is not legal.
    """

    kind: str
    key: str

    def __post_init__(self) -> None:
        check_name(self.kind, self.key)

    @classmethod
    def of(cls, kind: str, digest: str, step: int | None = None) -> Ref:
        """Name an artifact by its content hash, and a state of a training by its step too."""
        return cls(kind, digest if step is None else f"{digest}-{step:08d}")

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read KIND/KEY.

        Raises:
            ValueError: If the text is no such name.
        """
        return cls._split(text, "/")

    @classmethod
    def parse_flat(cls, text: str) -> Ref:
        """Read KIND-KEY, the form without folders; see `flat`.

        Raises:
            ValueError: If the text is no such name.
        """
        return cls._split(text, "-")

    @classmethod
    def _split(cls, text: str, separator: str) -> Ref:
        kind, _, key = text.partition(separator)
        if not (is_name(kind) and is_name(key)):
            raise ValueError(
                f"the name of an artifact must be KIND{separator}KEY, but got {text!r}"
            )
        return cls(kind, key)

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"

    @property
    def flat(self) -> str:
        """KIND-KEY, as locks and folders under construction are named."""
        return f"{self.kind}-{self.key}"

    @property
    def short(self) -> str:
        """Kind and first digits of the key, for people."""
        return f"{self.kind}/{self.key[:8]}"

    @property
    def hash(self) -> str:
        """Content hash: the key without the step."""
        return self.key.rpartition("-")[0] if self.has_step else self.key

    @property
    def has_step(self) -> bool:
        """True if the key ends in a step, as those of the states of a training do."""
        digest, _, step = self.key.rpartition("-")
        return bool(digest) and step.isdecimal()

    @property
    def step(self) -> int:
        """Training step.

        Raises:
            ValueError: If the artifact is no state of a training.
        """
        if not self.has_step:
            raise ValueError(f"the key of a state of a training must end in -STEP, but got {self}")
        return int(self.key.rpartition("-")[2])


def canonical_json(value: object) -> str:
    """Return JSON in which equal values are equal text: sorted keys, 2.0 written as 2."""

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
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_key(value: object) -> str:
    """Return the key of a value: the first 20 digits of its digest."""
    return content_digest(value)[:20]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_name(text: str) -> bool:
    """Return True if a text is a legal kind or key."""
    legal = text.replace("-", "").isalnum() and text.isascii() and len(text) <= 200
    return legal and not text.startswith("-")


def check_name(*parts: str) -> None:
    """Check that each part is a legal kind or key, which cannot lead to another folder.

    Raises:
        ValueError: If one is not.
    """
    for part in parts:
        if not is_name(part):
            raise ValueError(f"kind and key must be letters, digits and '-', but got {part!r}")


def check_file_name(name: object) -> None:
    """Check that a file's name in a manifest stays below its artifact.

    Raises:
        ValueError: If it does not.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ValueError(f"the file name {name!r} does not stay in the artifact")
