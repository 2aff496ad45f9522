"""Console of rich with igdit's settings, lines and tables.

Only `make_console` makes a Console, and every command prints through one. `log` prints a line
that is never broken, so that paths and commands can be copied and lines of a file can be searched;
`Console.print` wraps prose at the width of the terminal.
"""

from __future__ import annotations

import io
import os
import select
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.store.files import LENIENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TextIO

    from rich.console import ConsoleOptions, RenderableType


def make_console(
    file: TextIO | None = None,
    *,
    width: int | None = None,
    terminal: bool | None = None,
    styled: bool = True,
) -> Console:
    """Return a Console that prints text as it is: without markup, emoji or highlighting.

    Args:
        file: Stream that it prints to; None: standard output.
        width: Cells of a line; None: COLUMNS, the terminal's width, or 80 where there is none.
        terminal: Print as on a terminal, with progress bars; None: if the stream is one.
        styled: Print colours and bold on a terminal that has them (NO_COLOR, TERM).
    """
    accept_any_text(sys.stdout if file is None else file)
    return Console(
        file=file,
        width=width,
        force_terminal=terminal,
        color_system="auto" if styled else None,
        markup=False,
        emoji=False,
        highlight=False,
    )


def log(console: Console, text: str | Text, style: str = "") -> None:
    """Print a line, above the progress bar if one is shown; the line is not broken.

    Args:
        console: Console to print to.
        text: One line or several.
        style: Style of rich, like `bold`.
    """
    console.print(text, style=style or None, soft_wrap=True)


def ask(console: Console, question: str) -> bool:
    """Ask a question on the terminal; returns whether the answer is `y`."""
    return console.input(f"{question} [y/N] ", markup=False).strip().lower() == "y"


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Print names and values in two columns, a line for each."""
    width = max(map(cell_len, facts), default=0)
    for name, value in facts.items():
        log(console, f"{name:<{width}}  {value}")


# Streams


def accept_any_text(stream: TextIO) -> None:
    """Let a stream take any text, whatever the locale: no work is lost to a character."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=LENIENT)


def has_reader(stream: TextIO) -> bool:
    """Return whether a stream may still have a reader; a pipe whose `| head` ended has none."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return not any(state & select.POLLERR for _, state in poll.poll(0))
    except (OSError, ValueError):  # a stream that is no file, or closed
        return True


def discard_output(stream: TextIO) -> None:
    """Discard the output of a stream from now on, and what it still buffers."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


# Tables are as wide as the screen, and no number is ever cut. On a narrow screen headings and
# columns of words wrap; columns that still do not fit are continued below, with the first columns
# repeated.


GAP_CELLS = 2
"""Cells between two columns."""
UNBROKEN_WORD_CELLS = 20
"""Longest word that is never broken, in columns that do not name the row."""
MIN_PART_CELLS = 8
"""Shortest part into which a word is broken."""


@dataclass(frozen=True)
class Column:
    """Column of a table."""

    title: str
    numbers: bool
    """The cells are numbers, which are never wrapped or cut; words are wrapped if necessary."""


def words(*titles: str) -> list[Column]:
    """Return columns of words."""
    return [Column(title, numbers=False) for title in titles]


def numbers(*titles: str) -> list[Column]:
    """Return columns of numbers."""
    return [Column(title, numbers=True) for title in titles]


class ScreenTable:
    """Table for rich that fits the width at which it is printed."""

    def __init__(
        self,
        title: str,
        columns: Sequence[Column],
        rows: Iterable[Sequence[str]],
        *,
        keys: int = 1,
        marked: Iterable[int] = (),
    ) -> None:
        """Describe a table.

        Args:
            title: Title above the table; empty: none.
            columns: Columns of the table.
            rows: Rows, with a cell for each column.
            keys: Number of first columns that name the row; they are repeated where the table is
                continued below.
            marked: Numbers of the rows that are printed in bold.
        """
        self.title, self.columns, self.keys = title, tuple(columns), keys
        self.marked = set(marked)
        self.rows = [tuple(cell.strip() for cell in row) for row in rows]
        assert all(len(row) == len(self.columns) for row in self.rows)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        if self.title:
            # In a file or a pipe a path must not be broken.
            no_wrap = not console.is_terminal
            yield Text(
                self.title,
                style="bold",
                no_wrap=no_wrap,
                overflow="ignore" if no_wrap else "fold",
            )
        for block in self._blocks(options.max_width):
            yield self._table(block, options.max_width)
            yield ""

    def _blocks(self, width: int) -> list[list[int]]:
        """Return groups of columns that fit side by side; the keys are in each of them."""
        keys = list(range(self.keys))
        blocks, block = [], list(keys)
        for column in filter(self._has_content, range(self.keys, len(self.columns))):
            if len(block) > len(keys) and _total(self._least([*block, column], width)) > width:
                blocks.append(block)
                block = list(keys)
            block.append(column)
        return [*blocks, block]

    def _table(self, block: Sequence[int], width: int) -> Table:
        widths = self._widths(block, width)
        # A block that still does not fit is printed at its width, as a number must not be broken.
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
            width=_total(widths),
        )
        for column, cells in zip(block, widths, strict=True):
            is_number = self.columns[column].numbers
            table.add_column(
                Text(self._heading(column, cells)),
                width=cells,
                no_wrap=is_number,
                justify="right" if is_number else "left",
            )
        for number, row in enumerate(self.rows):
            table.add_row(
                *(Text(row[column], overflow="fold") for column in block),
                style="bold" if number in self.marked else None,
            )
        return table

    def _heading(self, column: int, width: int) -> str:
        """Return the title of a column in lines that fit, as rich wraps no column of numbers."""
        lines: list[str] = []
        for word in self.columns[column].title.split():
            if lines and cell_len(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return "\n".join(lines)

    def _widths(self, block: Sequence[int], width: int) -> list[int]:
        """Return the width of each column: its longest cell, or less where it can be wrapped."""
        widths = [max(map(cell_len, self._cells(column))) for column in block]
        least = self._least(block, width)
        while _total(widths) > width:
            room, widest = max((widths[i] - least[i], i) for i in range(len(block)))
            if room == 0:
                break
            widths[widest] -= 1
        return widths

    def _cells(self, column: int) -> list[str]:
        return [self.columns[column].title, *(row[column] for row in self.rows)]

    def _has_content(self, column: int) -> bool:
        return not self.rows or any(row[column] for row in self.rows)

    def _least(self, block: Sequence[int], width: int) -> list[int]:
        """Return the least width of each column."""
        keys = [self._longest_word(column) for column in block[: self.keys]]
        # The name of a row is copied by users: it is broken between words only. Words in other
        # columns are broken if there is no room for them beside the name.
        room = max(width - _total([*keys, 0]), MIN_PART_CELLS)
        others = [
            self._longest_word(column)
            if self.columns[column].numbers
            else min(self._longest_word(column), UNBROKEN_WORD_CELLS, room)
            for column in block[self.keys :]
        ]
        return keys + others

    def _longest_word(self, column: int) -> int:
        """Return the cells of the longest word; a cell of numbers counts as one word."""
        title = max(map(cell_len, self.columns[column].title.split()), default=0)
        cells = [row[column] for row in self.rows]
        if self.columns[column].numbers:
            return max([title, *map(cell_len, cells)])
        return max([title, *(cell_len(word) for cell in cells for word in cell.split())])


def _total(widths: Iterable[int]) -> int:
    widths = list(widths)
    return sum(widths) + GAP_CELLS * (len(widths) - 1)


def print_table(table: ScreenTable, console: Console) -> None:
    """Print a table without cutting it at the edge of the screen."""
    console.print(table, crop=False)
