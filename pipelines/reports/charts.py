"""Charts as inline SVG in the colours of page.css."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipelines.common.formatting import number as value_text
from pipelines.reports.html import Html, figure, markup, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


WIDTH, HEIGHT = 520, 330
"""Size of a chart in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44
"""Margins of a chart in pixels."""
COLORS = 8
"""Number of colours in page.css."""


@dataclass(frozen=True)
class Sample:
    """Point of a line with its 95 % interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    """Tooltip."""


@dataclass(frozen=True)
class Series:
    """Line of a chart."""

    label: str
    samples: tuple[Sample, ...]
    color: int
    bars: bool = False
    """Draw intervals as bars instead of a band."""
    dashes: int = 0
    """Pattern of the line: 0 is solid; 1 and 2 are for further lines of the same colour."""
    dots: bool = True
    """Draw a dot for each sample."""

    @property
    def css_class(self) -> str:
        """Return the classes of the line in page.css."""
        return f"c{self.color % COLORS} dashes{self.dashes % 3}"


@dataclass(frozen=True)
class Row:
    """Row of an interval chart."""

    label: str
    value: float
    low: float
    high: float
    dots: tuple[float, ...]
    color: int


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    reference: tuple[float, str] | None = None,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Html:
    """Draw lines with their intervals, and a legend; empty if no value is finite.

    Args:
        title: Title of the chart.
        series: Lines.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        log: Make the vertical axis logarithmic.
        reference: Level and name of a horizontal line to compare with.
        x_range: Horizontal range; None: that of the samples.
        y_range: Vertical range; None: that of the intervals.
    """
    series = [_finite(line, positive=log) for line in series]
    series = [line for line in series if line.samples]
    if not series:
        return Html("")
    xs = [s.x for line in series for s in line.samples]
    left, right = x_range or (min(xs), max(xs))
    x = Axis(*_widened(left, right, 0.04), LEFT, WIDTH - RIGHT)
    extra = [] if reference is None else [reference[0]]
    low, high = y_range or y_limits(series, extra, log=log)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    drawing = markup(
        _frame(x, y, x_label, y_label),
        None if reference is None else _reference(y, *reference),
        *(_draw(line, x, y) for line in series),
    )
    svg = tag(
        "svg",
        drawing,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        aria_label=f"{title}: {y_label} over {x_label}",
    )
    legend = _legend(series) if len(series) > 1 or series[0].label else None
    return figure(markup(tag("h3", title), svg), legend, "chart")


def interval_chart(title: str, rows: Sequence[Row], x_label: str) -> Html:
    """Draw a row for each candidate: single values, their mean and its interval, from 0."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return Html("")
    height, space = 44 * len(rows) + 60, 48
    values = [v for r in rows for v in (r.value, r.high, *r.dots) if math.isfinite(v)]
    x = Axis(0.0, max(values) * 1.05 or 1.0, 12, WIDTH - RIGHT)
    bottom = height - space
    parts: list[Html] = []
    for value in x.ticks:
        parts += [
            tag("line", x1=x(value), x2=x(value), y1=4, y2=bottom, class_="grid"),
            _text(x(value), bottom + 18, number(value)),
        ]
    parts.append(_text(WIDTH / 2, height - 6, x_label))
    for place, row in enumerate(rows):
        parts.append(_interval_row(row, 44 * place + 30, x))
    svg = tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {height}",
        class_="chart",
        role="img",
        aria_label=f"{title}: {x_label}",
    )
    return figure(markup(tag("h3", title), svg), None, "chart")


@dataclass(frozen=True)
class Axis:
    """Map from values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[float]:
        """Return round numbers in the range of the axis."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def ticks(low: float, high: float) -> list[float]:
    """Return at least four multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    power = 10.0 ** math.floor(math.log10(high - low))
    for step in (power, power / 2, power / 5, power / 10):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 3:
            break
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in [low, high]; `ticks` if these are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    leading = (1,) if len(powers) > 5 else (1, 2, 5)
    found = [m * 10.0**p for p in powers for m in leading if low <= m * 10.0**p <= high]
    return found if len(found) >= 3 else [t for t in ticks(low, high) if t > 0]


def y_limits(
    series: Sequence[Series], extra: Sequence[float] = (), *, log: bool = False
) -> tuple[float, float]:
    """Return a range that holds all intervals, with margins."""
    values = [
        v
        for line in series
        for s in line.samples
        for v in (s.low, s.y, s.high)
        if v is not None and math.isfinite(v) and (v > 0 or not log)
    ]
    low, high = min([*values, *extra]), max([*values, *extra])
    if log:
        margin = max((high / low) ** 0.06, 1.02)
        return low / margin, high * margin
    return _widened(low, high, 0.06)


def number(value: float) -> str:
    """Format the label of a tick."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    margin = share * (high - low) or max(abs(high), 1.0) * 0.1
    return low - margin, high + margin


def _finite(line: Series, *, positive: bool) -> Series:
    kept = tuple(s for s in line.samples if math.isfinite(s.y) and (s.y > 0 or not positive))
    return replace(line, samples=kept)


def _text(x: float, y: float, text: str, anchor: str = "middle", **more: object) -> Html:
    return tag("text", text, x=x, y=y, text_anchor=anchor, **more)


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Html:
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in y.ticks:
        parts += [
            tag("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="grid"),
            _text(left - 7, y(value) + 4, number(value), "end"),
        ]
    for value in x.ticks:
        parts += [
            tag("line", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 4, class_="axis"),
            _text(x(value), bottom + 18, number(value)),
        ]
    parts += [
        tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"),
        _text((left + right) / 2, HEIGHT - 5, x_label),
        _text(0, 0, y_label, transform=f"translate(13 {(TOP + bottom) / 2}) rotate(-90)"),
    ]
    return markup(*parts)


def _reference(y: Axis, level: float, name: str) -> Html:
    at = y(level)
    line = tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="reference")
    return markup(line, _text(WIDTH - RIGHT, at - 5, name, "end"))


def _draw(line: Series, x: Axis, y: Axis) -> Html:
    color = line.color % COLORS
    points = [(x(s.x), y(s.y)) for s in line.samples]
    ranged = [
        (x(s.x), y(s.low), y(s.high))
        for s in line.samples
        if s.low is not None
        and s.high is not None
        and math.isfinite(s.low)
        and math.isfinite(s.high)
    ]
    parts = []
    if line.bars:
        parts += [
            tag("line", x1=at, x2=at, y1=low, y2=high, class_=f"bar c{color}")
            for at, low, high in ranged
        ]
    elif len(ranged) > 1:
        outline = [(at, low) for at, low, _ in ranged] + [(at, h) for at, _, h in ranged[::-1]]
        parts.append(tag("polygon", points=_path(outline), class_=f"band f{color}"))
    if len(points) > 1:
        parts.append(tag("path", d=f"M{_path(points)}", class_=f"curve {line.css_class}"))
    if not line.dots and len(points) > 1:
        return tag("g", tag("title", line.label), *parts)
    parts += [
        tag(
            "g",
            tag("title", s.text or f"{line.label}: {value_text(s.y)}"),
            tag("circle", cx=px, cy=py, r=3.4, class_=f"f{color}"),
        )
        for s, (px, py) in zip(line.samples, points, strict=True)
    ]
    return tag("g", *parts)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:g},{py:g}" for px, py in points)


def _legend(series: Sequence[Series]) -> Html:
    def key(line: Series) -> Html:
        stroke = tag("line", x1=0, x2=24, y1=5, y2=5, class_=line.css_class, stroke_width=2.5)
        return tag("svg", stroke, viewBox="0 0 24 10", aria_hidden="true")

    return tag("ul", *(tag("li", key(line), line.label) for line in series), class_="legend")


def _interval_row(row: Row, y: float, at: Callable[[float], float]) -> Html:
    color = row.color % COLORS
    parts = [_text(at(0.0), y - 11, row.label, "start", class_="strong")]
    if math.isfinite(row.low) and math.isfinite(row.high):
        low, high = max(row.low, 0.0), row.high
        parts.append(tag("line", x1=at(low), x2=at(high), y1=y, y2=y, class_=f"bar c{color}"))
    parts += [
        tag("circle", cx=at(dot), cy=y, r=3.4, opacity=0.45, class_=f"f{color}") for dot in row.dots
    ]
    parts.append(
        tag(
            "line",
            x1=at(row.value),
            x2=at(row.value),
            y1=y - 7,
            y2=y + 7,
            class_=f"bar c{color}",
            stroke_width=3,
        )
    )
    return tag("g", tag("title", f"{row.label}: {value_text(row.value)}"), *parts)
