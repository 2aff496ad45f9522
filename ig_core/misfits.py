"""What does not fit between the tensors of a file and those of an architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Shapes = Mapping[str, tuple[int, ...]]
    """Name of a tensor -> its shape."""

SHOWN = 20
"""Misfits that a message lists."""


def shape_misfits(found: Shapes, wanted: Shapes) -> list[str]:
    """Names that are missing, names that are left over, and shapes that differ."""
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys())]
    return problems + [
        f"{name} has shape {found[name]} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name] != wanted[name]
    ]


def listed(problems: Sequence[str]) -> str:
    """The first of them in one line, and how many more there are."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
