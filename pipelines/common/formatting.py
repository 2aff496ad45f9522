"""Formats of numbers for people, with enough significant digits that none is shown as 0.00.

The terminal, the pages, the plots and MLflow's texts all write metrics by these functions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


SIGNIFICANT_DIGITS = 3
MIN_DECIMALS = 2
"""Digits after the point at least: FIDs are published with two, however large they are."""
MIN_FIXED_VALUE = 1e-4
"""Smallest number that is written without an exponent."""
MAX_PERCENT_DECIMALS = 2


def decimals(value: float, significant: int = SIGNIFICANT_DIGITS, least: int = MIN_DECIMALS) -> int:
    """Count the digits after the point that show enough significant digits of a value.

    Args:
        value: The number.
        significant: Number of significant digits.
        least: Digits after the point at least.
    """
    if value == 0 or not math.isfinite(value):
        return least
    return max(least, significant - 1 - math.floor(math.log10(abs(value))))


def number(
    value: float,
    significant: int = SIGNIFICANT_DIGITS,
    least: int = MIN_DECIMALS,
    *,
    sign: str = "",
    separator: str = "",
) -> str:
    """Write a number like `2.06`, `0.0412` or `1.30e-05`.

    Args:
        value: The number.
        significant: Number of significant digits.
        least: Digits after the point at least.
        sign: `+` writes it for positive numbers as well.
        separator: Between thousands.
    """
    return _written(value, value, significant, least, sign=sign, separator=separator)


def _written(
    value: float, like: float, significant: int, least: int, *, sign: str = "", separator: str = ""
) -> str:
    """Write a number with the digits that the number `like` needs, so that both can be compared."""
    if 0 < abs(like) < MIN_FIXED_VALUE:
        return f"{value:{sign}.{significant - 1}e}"
    return f"{value:{sign}z{separator}.{decimals(like, significant, least)}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """Write a number with its interval, all with the same digits: `2.06 (1.98 .. 2.15)`."""
    return f"{_like(value, value, low, high)} ({interval(value, low, high)})"


def interval(value: float, low: float, high: float) -> str:
    """Write the interval of a number, `1.98 .. 2.15`, with the digits of the number."""
    return f"{_like(low, value, low, high)} .. {_like(high, value, low, high)}"


def _like(each: float, value: float, low: float, high: float) -> str:
    like = value if value != 0 else max(abs(low), abs(high))
    return _written(each, like, SIGNIFICANT_DIGITS, MIN_DECIMALS)


def metric(metrics: Mapping[str, Any], name: str = "fid") -> str:
    """Write a metric with its interval, or its spread over splits, where it has one.

    Args:
        metrics: Metrics of an evaluation.
        name: Name of the metric.
    """
    value = metrics[name]
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is not None and high is not None:
        return with_interval(value, low, high)
    spread = metrics.get(f"{name}_std")
    if spread is None:
        return number(value)
    return f"{number(value)} \N{PLUS-MINUS SIGN} {number(spread)}"


def metric_interval(metrics: Mapping[str, Any], name: str = "fid") -> str:
    """Write the interval of a metric; empty if it has none."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else interval(metrics[name], low, high)


def percent(share: float) -> str:
    """Write a share of 1, like `62 %`, `3.4 %` or `0.31 %`."""
    return percents(share, sign="")[0] + " %"


def change(gain: tuple[float, float, float]) -> str:
    """Write the relative fall of FID, and its interval, as a change: `-62 % (-65 .. -59)`.

    Args:
        gain: Relative fall, and the ends of its interval.
    """
    value, low, high = gain
    texts = percents(-value, -high, -low)
    return f"{texts[0]} % ({texts[1]} .. {texts[2]})"


def percents(*shares: float, sign: str = "+") -> list[str]:
    """Write shares of 1 in percent, all with the digits that the first one needs.

    Args:
        shares: The shares.
        sign: `+` writes it for positive numbers as well.
    """
    digits = min(decimals(100 * shares[0], 2, 0), MAX_PERCENT_DECIMALS)
    return [f"{100 * share:{sign}z.{digits}f}" for share in shares]


def value_text(value: object) -> str:
    """Write a value of a configuration for a reader: `none`, `yes`, `0, 1`, `method sde, shift 1`.

    Args:
        value: Of any type that a configuration holds.
    """
    if isinstance(value, dict):
        pairs = (
            f"{str(name).replace('_', ' ')} {value_text(each)}" for name, each in value.items()
        )
        return ", ".join(pairs) or "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(value_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def data_size(count: float) -> str:
    """Write a number of bytes like `812 B`, `3.41 KiB` or `12.3 MiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        count /= 1024
        if count < 1024 or unit == "TiB":
            break
    return f"{number(count, least=0, separator=',')} {unit}"


def clock(seconds: float) -> str:
    """Write a duration like `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_words(seconds: float) -> str:
    """Write a duration like `3.2 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{number(seconds, 2, 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
