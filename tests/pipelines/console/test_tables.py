from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.console.console import ScreenTable, make_console, numbers, print_table, words
from pipelines.console.plan import print_plan
from pipelines.console.results import print_freed, print_garbage, print_report, print_store
from pipelines.graph.garbage import Garbage
from pipelines.graph.plan import make_plan
from pipelines.results.measurements import collect

NUMBERS = ("311.65", "301.22 .. 320.45", "-62 % (-65 .. -59)", "0.712", "0.613", "9.23")


def printed(table: ScreenTable, width: int, *, terminal: bool = False) -> str:
    screen = io.StringIO()
    console = make_console(file=screen, width=width, terminal=terminal, styled=False)
    print_table(table, console)
    return screen.getvalue()


def by_scale() -> ScreenTable:
    names = ("scale", "FID", "95 % interval", "against scale 1", "prec.", "recall", "IS")
    return ScreenTable("FID by scale", numbers(*names), [("1.8", *NUMBERS)])


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_numbers_are_whole_on_any_screen(width):
    text = printed(by_scale(), width)
    assert [number for number in NUMBERS if number not in text] == []
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert width < 30 or max(map(len, text.splitlines())) <= width


def test_what_does_not_fit_is_continued_below_with_the_name_of_its_row():
    lines = printed(by_scale(), 40).splitlines()
    assert [line.split()[0] for line in lines if line.strip().startswith("1.8")] == ["1.8"] * 3
    assert sum(line.strip().startswith("scale") for line in lines) == 3
    assert len(printed(by_scale(), 100).splitlines()) == 5  # title, head, rule, row, blank


@settings(deadline=None, max_examples=30)
@given(
    cells=st.lists(
        st.tuples(st.text("ab ", max_size=40), *[st.text("0123456789", max_size=12)] * 5),
        max_size=4,
    ),
    width=st.integers(16, 120),
    keys=st.integers(1, 2),
)
def test_no_number_is_lost_whatever_the_table(cells, width, keys):
    columns = [*words("what it is"), *numbers(*(f"number {i}" for i in range(5)))]
    text = printed(ScreenTable("", columns, cells, keys=keys), width)
    for row in cells:
        assert [number for number in row[1:] if number not in text] == []
        assert [word for word in row[0].split() if word not in text] == []


def test_words_wrap_before_a_table_is_continued():
    columns = [*words("stage"), *numbers("to build"), *words("what would run")]
    rows = [("evaluate", "1,234", "step 75 at scale 1 (1,000 samples), step 75 at scale 1.8")]
    lines = printed(ScreenTable("", columns, rows), 40).splitlines()
    assert sum("evaluate" in line for line in lines) == 1
    assert max(map(len, lines)) <= 40
    assert "1,234" in printed(ScreenTable("", columns, rows), 40)


def test_cells_are_no_markup_and_a_path_in_a_title_is_broken_on_a_terminal_alone():
    path = "/home/" + "a" * 60
    table = ScreenTable(path, words("run", "name"), [("[bold]x", "[/]")])
    assert "[bold]x  [/]" in printed(table, 40)
    assert path in printed(table, 40)
    assert path not in printed(table, 40, terminal=True)


@pytest.mark.parametrize("width", [40, 80])
def test_everything_that_the_commands_print_fits(finished, width):
    """Results, a plan, what the store holds and what would be deleted, but for paths."""
    results = collect(finished.home.store, finished.graph)
    screen = io.StringIO()
    console = make_console(file=screen, width=width, terminal=True, styled=False)
    print_report(results, console)
    print_plan(results, make_plan(results.store, results.targets), console)
    print_store(results.store, console)
    print_garbage(Garbage((), ()), console)
    print_freed(Garbage((), ()), console, deleted=False)
    text = screen.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= width
    for m in (*results.final.values(), *results.curve.values()):
        assert f"{m.fid:.2f}" in text
        assert f"{m.metrics['fid_low']:.2f} .. {m.metrics['fid_high']:.2f}" in text


def test_a_column_without_content_is_left_out():
    columns = [*words("stage"), *numbers("cached"), *words("what would run")]
    assert "what" not in printed(ScreenTable("", columns, [("train", "8", "")]), 80)
    assert "what would run" in printed(ScreenTable("", columns, []), 80)
