"""Seconds for people."""

from __future__ import annotations

from pipelines.number_format import number


def clock(seconds: float) -> str:
    """M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_words(seconds: float) -> str:
    """Like `3.2 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{number(seconds, 2, 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
