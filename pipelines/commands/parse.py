"""Options of a command, read into a dataclass by tyro."""

from __future__ import annotations

import dataclasses
import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from pipelines.common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


T = TypeVar("T")
NUMBER = re.compile(r"-[\d.]")
"""Beginning of a word that is a negative number and no option."""


def parse_options(kind: type[T], words: Sequence[str], program: str, default: T | None = None) -> T:
    """Read the options of a command.

    Args:
        kind: Dataclass of the options.
        words: The words that follow the command.
        program: The command, for messages.
        default: Values of the options that are not given; None: those of the dataclass.

    Raises:
        UsageError: an option that takes values has none.
        SystemExit: the words cannot be understood, or ask for help.
    """
    _require_values(kind, words)
    if default is None:
        return tyro.cli(kind, args=list(words), prog=program)
    return tyro.cli(kind, default=default, args=list(words), prog=program)


def _require_values(kind: type[Any], words: Sequence[str]) -> None:
    """Refuse an option of many values that is given none: tyro takes that for an empty list.

    Raises:
        UsageError: there is one.
    """
    variadic = set(_variadic(kind))
    for word, following in zip_longest(words, words[1:]):
        if not word.startswith("--") or word[2:].replace("_", "-") not in variadic:
            continue
        if following is None or (following.startswith("-") and not NUMBER.match(following)):
            raise UsageError(f"{word} must be followed by at least one value, but got none")


def _variadic(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Names of the options of a dataclass that take any number of values."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        plain = get_args(hint)[0] if marks else hint
        flat = any(getattr(mark, "name", None) == "" for mark in marks)  # tyro's arg(name="")
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(plain):
            yield from _variadic(plain, prefix if flat else f"{option}.")  # type: ignore[arg-type]
        elif get_origin(plain) is tuple and get_args(plain)[-1] is Ellipsis:
            yield option
