"""Checks that every configuration goes through. Loads no torch."""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError naming the field, the value it got and what was expected."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, but got {value!r}")


def require_file_name(name: str, value: str) -> None:
    """Raise ValueError unless a text can name a file or folder, of all places only where it is put.

    Letters and digits of any language, space, and . _ - + = ( ) @ , are taken.
    """
    plain = re.fullmatch(r"\w[\w .+=(),@-]*", value) is not None and value == value.strip()
    expected = "a file name (letters, digits, spaces and ._-+=(),@ after a letter or digit)"
    require(plain and len(value.encode()) <= 120, name, value, expected)


def check_fields(config: object) -> None:
    """What holds for every field: it has its type, choices are among those named, numbers finite.

    Raises:
        ValueError: a field does not.
    """
    for name, kind in get_type_hints(type(config)).items():
        _check(name, getattr(config, name), kind)


def _check(name: str, value: Any, kind: Any) -> None:  # noqa: ANN401
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        require(value in inner, name, value, f"one of {', '.join(map(str, inner))}")
    elif origin in (Union, types.UnionType):
        if value is not None:
            _check(name, value, next(a for a in inner if a is not type(None)))
    elif origin is tuple:
        require(isinstance(value, tuple), name, value, "a tuple")
        if inner[-1] is not Ellipsis:
            require(len(value) == len(inner), name, value, f"a tuple of {len(inner)}")
        for item in value:
            _check(name, item, inner[0])
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number and abs(value) < float("inf"), name, value, "a finite number")
    elif kind is int:
        require(type(value) is int, name, value, "a whole number")
    elif kind is bool or kind is str:
        require(type(value) is kind, name, value, f"of type {kind.__name__}")


def require_interval(name: str, value: tuple[float, float]) -> None:
    """Raise ValueError unless it is an interval of times."""
    low, high = value
    require(0.0 <= low <= high <= 1.0, name, value, "(low, high) with 0 <= low <= high <= 1")


LARGEST = {
    "depth": 1000,
    "width": 100_000,
    "num_heads": 10_000,
    "patch_size": 10_000,
    "input_size": 10_000,
    "in_channels": 10_000,
    "num_classes": 10_000_000,
}
"""Sizes of a model beyond which it is a mistake, or a file that is damaged."""


def require_sizes(config: Any) -> None:  # noqa: ANN401
    """Raise ValueError unless each of a model's sizes is at least 1 and not absurd."""
    for name, most in LARGEST.items():
        value = getattr(config, name)
        require(value >= 1, name, value, "at least 1")
        require(value <= most, name, value, f"at most {most:,}")
