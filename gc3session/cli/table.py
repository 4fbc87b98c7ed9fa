"""A table that is written while its rows come in, so that a million rows take no memory.

The first rows are measured, and their widths hold for the rest. On a terminal rich draws it, and
folds what is too wide for its column, so that a narrow terminal hides nothing. In a pipe or a file
it is text in aligned columns, and nothing is folded.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from .console import colours

if TYPE_CHECKING:
    from rich.console import Console

_MEASURED_ROWS: Final = 500
_GAP: Final = 2  # blanks between columns
_WIDEST: Final = 60  # to which a column grows; a wider cell is rare, and stands out or is folded


class Cell(NamedTuple):
    """The text of a cell, which must be escaped, and its style on a terminal."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column.

    Attributes:
        title: its heading.
        least: the width to which it may shrink on a narrow terminal.
        spare: by how much the rows that aren't measured may be wider than those that are.
    """

    title: str
    least: int
    spare: int = 0


Row = Sequence[Cell]
"""A cell for each column."""


def write_table(columns: Sequence[Column], rows: Iterable[Row], console: Console | None) -> None:
    """Write the rows on *console*, or if it is None as plain text on stdout."""
    rows = iter(rows)
    measured = list(islice(rows, _MEASURED_ROWS))
    more = len(measured) == _MEASURED_ROWS
    widths = []
    for i, column in enumerate(columns):
        widest = max((width(row[i].text) for row in measured), default=0)
        widths.append(max(len(column.title), min(widest, _WIDEST) + column.spare * more))
    if console is None:
        _write_plain(columns, widths, chain(measured, rows))
    else:
        _write_rich(columns, widths, chain(measured, rows), console)


def terminal() -> Console | None:
    """Return a console for stdout if it is a terminal."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(no_color=not colours(sys.stdout), highlight=False)


def width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _write_plain(columns: Sequence[Column], widths: list[int], rows: Iterable[Row]) -> None:
    write = sys.stdout.write
    for row in chain([tuple(Cell(column.title) for column in columns)], rows):
        *padded, last = (cell.text for cell in row)
        for text, full in zip(padded, widths, strict=False):
            write(text + " " * (max(0, full - width(text)) + _GAP))
        write(f"{last}\n")


def _fitted(widths: list[int], least: list[int], available: int) -> list[int] | None:
    """Return the widths shrunk, the widest first, until they fit; None if they can't."""
    widths = list(widths)
    while sum(widths) + _GAP * (len(widths) - 1) > available:
        room = [full - low for full, low in zip(widths, least, strict=True)]
        if max(room) <= 0:
            return None
        widths[max((full, i) for i, full in enumerate(widths) if room[i] > 0)[1]] -= 1
    return widths


def _stacked(columns: Sequence[Column], widths: list[int], available: int) -> tuple[list[range], list[int]]:
    """Return which columns stand below one another, and how wide each of these groups is.

    If a row is too wide for one line it takes two, with the second half of the columns below the
    first one; or three, and so on.
    """
    count = len(columns)
    for lines in range(1, count + 1):
        groups_per_line = -(-count // lines)
        groups = [range(first, count, groups_per_line) for first in range(groups_per_line)]
        wide = [max(widths[i] for i in group) for group in groups]
        least = [max(columns[i].least for i in group) for group in groups]
        fitted = _fitted(wide, least if lines < 2 else [min(8, full) for full in wide], available)
        if fitted is not None:
            return groups, fitted
    return [range(count)], [max(available, 1)]


def _write_rich(columns: Sequence[Column], widths: list[int], rows: Iterator[Row], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def text(*cells: Cell) -> Text:
        lines = [Text(cell.text, cell.style, overflow="fold") for cell in cells]
        return Text("\n", overflow="fold").join(lines)

    titles = [Cell(column.title, "bold") for column in columns]
    groups, fitted = _stacked(columns, widths, console.width)
    block, heading = list(islice(rows, _MEASURED_ROWS)), True
    while block or heading:
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),  # with the blank that the box has between columns: _GAP
            show_edge=False,
            pad_edge=False,
            show_header=heading,
        )
        for group, full in zip(groups, fitted, strict=True):
            table.add_column(text(*(titles[i] for i in group)), width=full, overflow="fold")
        for row in block:
            table.add_row(*(text(*(row[i] for i in group)) for group in groups))
        console.print(table)
        block, heading = list(islice(rows, _MEASURED_ROWS)), False
