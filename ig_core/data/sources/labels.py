"""Labels of images and latents by the names of their files or folders, from JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ig_core.data.sources.walk import plain_name, preview, suffix_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


@dataclass(frozen=True)
class Labels:
    """Labels by file or folder."""

    where: str
    """Their source, for messages."""
    by_name: dict[str, int]
    """File or folder, relative to the source, with `/` -> label."""

    def of(self, name: str) -> int:
        """Return the label of a file: its own, else that of the innermost folder that has one.

        Raises:
            ValueError: If the file has no label.
        """
        place = name
        while place not in self.by_name:
            place = place.rpartition("/")[0]
            if not place:
                raise ValueError(f"{self.where} has no label for {name}")
        return self.by_name[place]

    def check(self, names: Collection[str], suffixes: Collection[str]) -> None:
        """Raise ValueError if a file that has a label is not there: the source is incomplete.

        Args:
            names: Files that are there.
            suffixes: Of files that would be; anything else that has a label is a folder.
        """
        absent = [
            name for name in self.by_name if suffix_of(name) in suffixes and name not in names
        ]
        if absent:
            raise ValueError(
                f"{self.where} gives labels to {len(self.by_name)} names, but "
                f"{preview(absent)} are not there"
            )


class NoLabels(Labels):
    """Labels of images whose classes do not matter: all are 0, and no file of labels is read."""

    def __init__(self) -> None:
        super().__init__("", {})

    def of(self, name: str) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    def check(self, names: Collection[str], suffixes: Collection[str]) -> None:
        """Find nothing missing."""


def read_labels(path: Path) -> Labels:
    """Read labels from a file.

    Raises:
        ValueError: If the file cannot be read; or as `parse_labels`.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"labels must be in a JSON file, but {path} cannot be read: {error.strerror}"
        ) from error
    return parse_labels(text, str(path))


def parse_labels(text: str | bytes, where: str) -> Labels:
    r"""Parse labels from JSON: {name: label}, or {"labels": [[name, label], ...]} of ADM and EDM2.

    Args:
        text: The JSON; a name may be written with `\`.
        where: Its name in messages.

    Raises:
        ValueError: If the JSON has another form, or a name has two labels or one that is not an
            integer.
    """
    try:
        held = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be JSON, but is not: {error}") from error
    pairs = held.get("labels") if isinstance(held, dict) and "labels" in held else held
    if isinstance(held, dict) and isinstance(pairs, dict | int):  # also a folder called labels
        pairs = [list(item) for item in held.items()]
    if not isinstance(pairs, list) or not pairs or not all(map(_is_pair, pairs)):
        raise ValueError(
            f'{where} must hold {{name: label}} or {{"labels": [[name, label], ...]}}'
            f", but has no labels of that form"
        )
    by_name: dict[str, int] = {}
    for name, value in pairs:
        plain = plain_name(name).strip("/")
        if plain in by_name:
            raise ValueError(
                f"{where} must list each name once, but lists {plain} again, with "
                f"label {value!r} after {by_name[plain]}"
            )
        by_name[plain] = whole_number(value, f"{where}: the label of {plain}")
    return Labels(where, by_name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)


def whole_number(value: object, what: str) -> int:
    """Return the integer that equals a value.

    Raises:
        ValueError: If no integer equals it; the message begins with `what`.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} must be an integer, but is {value!r}")
    return value
