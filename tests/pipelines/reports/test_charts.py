from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reports.charts import (
    HEIGHT,
    WIDTH,
    Row,
    Sample,
    Series,
    interval_chart,
    line_chart,
    log_ticks,
    ticks,
)
from tests.pipelines.reports.test_html import EVIL, Checked

numbers = st.floats(1e-3, 1e6)


def line(*points: tuple[float, ...], label: str = "a line", **more) -> Series:
    return Series(label, tuple(Sample(*p) for p in points), 1, **more)


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low, width):
    found = ticks(low, low + width)
    assert 4 <= len(found) <= 11
    assert all(low - 1e-6 * width <= t <= low + width * (1 + 1e-6) for t in found)


@given(low=numbers, factor=st.floats(1.02, 1e6))
def test_logarithmic_ticks_are_positive_and_inside(low, factor):
    found = log_ticks(low, low * factor)
    assert 2 <= len(found) <= 20
    assert all(0 < t <= low * factor * (1 + 1e-6) for t in found)


@given(values=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), log=st.booleans())
def test_everything_is_drawn_inside_the_picture(values, log):
    series = [line(*((x, y, y / 2, 2 * y) for x, y in values), bars=True)]
    found = Checked(line_chart("title", series, "x", "y", log=log, reference=(1.0, "one")))
    for circle in found.all("circle"):
        assert 0 <= float(circle["cx"]) <= WIDTH
        assert 0 <= float(circle["cy"]) <= HEIGHT
    assert len(found.all("circle")) == len(values)


def test_values_that_are_not_finite_are_left_out():
    found = line_chart("t", [line((1, math.nan), (2, 5.0), (3, math.inf))], "x", "y")
    assert len(Checked(found).all("circle")) == 1
    assert "nan" not in found
    assert "inf" not in found


def test_nothing_to_draw_is_nothing():
    assert line_chart("t", [line()], "x", "y") == ""
    assert line_chart("t", [line((1, -1.0))], "x", "y", log=True) == ""
    assert interval_chart("t", [], "x") == ""


def test_labels_are_escaped():
    found = line_chart(EVIL, [line((1, 2), label=EVIL), line((1, 3))], EVIL, EVIL)
    assert "<script" not in found
    rows = [Row(EVIL, 1.0, 0.5, 2.0, (1.0,), 0)]
    assert "<script" not in interval_chart(EVIL, rows, EVIL)


@pytest.mark.parametrize(("bars", "element"), [(True, "line"), (False, "polygon")])
def test_intervals_are_bars_or_a_band(bars, element):
    found = Checked(line_chart("t", [line((1, 2, 1, 3), (2, 3, 2, 4), bars=bars)], "x", "y"))
    classes = [e.get("class", "").split()[0] for e in found.all(element) if e.get("class")]
    assert classes.count("bar" if bars else "band") == (2 if bars else 1)


def test_a_wider_interval_is_a_longer_bar():
    rows = [
        Row("one", 5.0, 4.0, 6.0, (), 0),
        Row("two", 5.0, 2.0, 8.0, (), 1),
        Row("alone", 5.0, math.nan, math.nan, (5.0,), 1),
    ]
    found = interval_chart("t", rows, "FID")
    spans = [
        float(b) - float(a)
        for a, b, c in re.findall(
            r'x1="([\d.]+)" x2="([\d.]+)" y1="\d+" y2="\d+" class="bar (c\d)"', found
        )
        if float(b) > float(a)
    ]
    assert len(spans) == 2
    assert spans[1] == pytest.approx(3 * spans[0], rel=0.02)
