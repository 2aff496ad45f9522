from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.formatting import (
    change,
    data_size,
    metric,
    metric_interval,
    number,
    percent,
    value_text,
    with_interval,
)
from pipelines.console.console import make_console
from pipelines.console.results import print_report
from pipelines.reports.run_page import headline, run_page
from tests.pipelines.results.test_measurements import WIDE, made_up, spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (311.65123, "311.65"),
        (2.06, "2.06"),
        (0.7123, "0.712"),
        (0.0412, "0.0412"),
        (0.004, "0.00400"),
        (1.3e-5, "1.30e-05"),
        (0, "0.00"),
        (-0.003, "-0.00300"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_a_number_has_two_decimals_and_three_significant_digits(value, text):
    assert number(value) == text


@given(st.floats(1e-30, 1e12))
def test_no_number_but_zero_is_written_as_zero(value):
    assert float(number(value)) == pytest.approx(value, rel=0.005)
    assert float(number(-value)) == -float(number(value))


def test_an_interval_has_the_digits_of_its_number():
    assert with_interval(8.0, 7.123, 9.456) == "8.00 (7.12 .. 9.46)"
    assert with_interval(0.004, 0.00398, 0.0043) == "0.00400 (0.00398 .. 0.00430)"
    assert with_interval(1e-5, -3e-4, 3e-4) == "1.00e-05 (-3.00e-04 .. 3.00e-04)"
    assert with_interval(-0.5, -3.0, 2.0) == "-0.500 (-3.000 .. 2.000)"
    assert with_interval(0, -0.0012, 0.002) == "0.00000 (-0.00120 .. 0.00200)"
    assert with_interval(3.0, -0.001, 6.0) == "3.00 (0.00 .. 6.00)"  # no minus before zero


def test_a_metric_brings_its_interval_or_its_spread():
    found = {"fid": 0.004, "fid_low": 0.003, "fid_high": 0.005, "kid": 2e-3, "kid_std": 1e-3}
    assert metric(found) == "0.00400 (0.00300 .. 0.00500)"
    assert metric_interval(found) == "0.00300 .. 0.00500"
    assert metric(found, "kid") == "0.00200 \N{PLUS-MINUS SIGN} 0.00100"
    assert metric_interval(found, "kid") == ""
    assert metric({"recall": 0.5}, "recall") == "0.500"


def test_values_are_written_for_a_reader():
    value = {"num_steps": 8, "shift": 1.0, "interval": (0.0, 0.5), "tf32": True, "path": None}
    assert value_text(value) == "num steps 8, shift 1, interval 0, 0.5, tf32 yes, path none"
    assert value_text(()) == "none"


def test_changes_show_what_is_below_a_percent():
    assert change((0.2, 0.1, 0.3)) == "-20 % (-30 .. -10)"
    assert change((-0.034, -0.08, 0.002)) == "+3.4 % (-0.2 .. +8.0)"
    assert change((0.003, -0.02, 0.03)) == "-0.30 % (-3.00 .. +2.00)"
    assert change((0.0, 0.0, 0.0)) == "+0 % (+0 .. +0)"
    assert percent(0.62) == "62 %"
    assert percent(0.004) == "0.40 %"


def test_sizes_have_a_unit_that_fits():
    sizes = (0, 812, 3500, 12_300_000, 5e9, 3e15)
    assert [*map(data_size, sizes)] == [
        "0 B",
        "812 B",
        "3.42 KiB",
        "11.7 MiB",
        "4.66 GiB",
        "2,728 TiB",
    ]


def test_a_small_fid_is_shown_wherever_results_are():
    """Two FIDs far below 0.01, on the terminal and on the page."""
    made = made_up(
        s1=spread(0.0051, *(1e-4 * w for w in WIDE)), s1_5=spread(0.0042, *(1e-4 * w for w in WIDE))
    )
    screen = io.StringIO()
    print_report(made, make_console(file=screen, width=160))
    for text in (screen.getvalue(), headline(made), run_page(made)):
        assert "0.00420" in text
        assert re.search(r"\b0\.00\b(?! \()", text[: text.find("Cost")]) is None


def test_metrics_and_losses_are_written_by_these_functions_alone():
    own = re.compile(r"\{[^{}]*(?:fid|metric|loss)[^{}]*:[^{}]*\.\d+[fg%]\}")
    sources = {
        path.name: path.read_text(encoding="utf-8") for path in Path("pipelines").rglob("*.py")
    }
    assert {name: own.findall(text) for name, text in sources.items() if own.search(text)} == {}
