"""Result of an inspection."""

from __future__ import annotations

from typing import NamedTuple


class Inspection(NamedTuple):
    """Description of a file or a folder."""

    facts: dict[str, str]
    """Names and values."""
    notes: list[str]
    """Remarks that keep no run from using it."""
    problems: list[str]
    """Reasons for which a run would refuse it."""
