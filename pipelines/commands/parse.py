"""Options of commands, parsed into dataclasses by tyro, and requests for help."""

from __future__ import annotations

import dataclasses
import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from pipelines.common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


T = TypeVar("T")
HELP = ("-h", "--help")
NEGATIVE_NUMBER = re.compile(r"-[\d.]")
"""Beginning of a word that is a negative number, not an option."""


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether the first word after a command asks for help."""
    return bool(arguments) and arguments[0] in HELP


def list_names(table: Mapping[str, Callable[..., object]]) -> str:
    """List names, each with the first line of the docstring of the function that it names."""
    return "\n".join(
        f"  {name:<24}{(make.__doc__ or '').strip().splitlines()[0]}"
        for name, make in table.items()
    )


def parse_options(kind: type[T], words: Sequence[str], program: str, default: T | None = None) -> T:
    """Read the options of a command.

    Args:
        kind: Dataclass of the options.
        words: The words that follow the command.
        program: The command, for messages.
        default: Values of the options that are not given; None: those of the dataclass.

    Raises:
        UsageError: If an option that takes values has none.
        SystemExit: If the words cannot be parsed, or ask for help.
    """
    import tyro

    _require_values(kind, words)
    if default is None:
        return tyro.cli(kind, args=list(words), prog=program)
    return tyro.cli(kind, default=default, args=list(words), prog=program)


def _require_values(kind: type[Any], words: Sequence[str]) -> None:
    """Refuse an option of many values that has none: tyro would read it as an empty list.

    Raises:
        UsageError: If there is such an option.
    """
    variadic = set(_variadic(kind))
    for word, following in zip_longest(words, words[1:]):
        if not word.startswith("--") or word[2:].replace("_", "-") not in variadic:
            continue
        if following is None or (
            following.startswith("-") and not NEGATIVE_NUMBER.match(following)
        ):
            raise UsageError(f"{word} must be followed by at least one value, but got none")


def _variadic(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the options of a dataclass that take any number of values."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        plain = get_args(hint)[0] if marks else hint
        flat = any(getattr(mark, "name", None) == "" for mark in marks)  # tyro's arg(name="")
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(plain):
            yield from _variadic(plain, prefix if flat else f"{option}.")  # type: ignore[arg-type]
        elif get_origin(plain) is tuple and get_args(plain)[-1] is Ellipsis:
            yield option
