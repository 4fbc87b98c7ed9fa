"""A table that is written while its rows come in, so that a million rows take no memory.

The first rows are measured, and their widths hold for the rest. On a terminal the columns are narrowed
until a row fits, and what is too wide for its column is folded, so that nothing is hidden. In a pipe or
a file nothing is folded.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest
from typing import Final

from .console import style_on, terminal_width

_MEASURED_ROWS: Final = 500
_LINES_AT_ONCE: Final = 128
_SPARE: Final = 4  # by how much the rows that aren't measured may be wider
_GAP: Final = 2  # blanks between columns
_WIDEST: Final = 60  # to which a column grows; a wider cell is rare, and stands out or is folded
_NARROWEST: Final = 4  # to which a column shrinks before the first one does


Cell = tuple[str, str]
"""The text of a cell, which must be escaped, and its style on a terminal."""


def write_table(titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write the titles and the rows on stdout."""
    rows = iter(rows)
    measured = [[(title, "bold") for title in titles], *islice(rows, _MEASURED_ROWS)]
    spare = _SPARE if len(measured) > _MEASURED_ROWS else 0
    widths = [
        min(max(width(text) for text, _ in column), _WIDEST) + spare for column in zip(*measured, strict=True)
    ]
    available = terminal_width(sys.stdout)
    if available is not None:
        _narrow(widths, available)
    lines = _lines(chain(measured, rows), widths, fold=available is not None)
    while text := "".join(islice(lines, _LINES_AT_ONCE)):
        sys.stdout.write(text)


def _lines(rows: Iterable[Sequence[Cell]], widths: list[int], *, fold: bool) -> Iterator[str]:
    """Give the lines of rows; with *fold*, on a terminal, a cell that is wider than its column takes several."""
    style, gap, padded = style_on(sys.stdout), " " * _GAP, [*widths[:-1], 0]
    plain = gap.join([*(f"%-{full}s" for full in widths[:-1]), "%s\n"])
    for row in rows:
        line = plain % tuple([text for text, _ in row])
        if not fold and line.isascii():  # so each character takes one column
            yield line
            continue
        pieces = [folded(text, full) if fold else [text] for (text, _), full in zip(row, widths, strict=True)]
        for texts in zip_longest(*pieces, fillvalue=""):
            cells = zip(texts, row, padded, strict=True)
            yield (
                gap.join([style(text, kind) + " " * (full - width(text)) for text, (_, kind), full in cells])
                + "\n"
            )


def _narrow(widths: list[int], available: int) -> None:
    """Narrow columns, the widest first and the first one last, until a row fits if it can."""
    for first, least in ((1, _NARROWEST), (0, 1)):
        while sum(widths) + _GAP * (len(widths) - 1) > available and max(widths[first:], default=0) > least:
            widths[widths.index(max(widths[first:]), first)] -= 1


def folded(text: str, full: int) -> list[str]:
    """Return *text* in pieces that are at most *full* columns wide."""
    if width(text) <= full:
        return [text]
    pieces, taken = [""], 0
    for c in text:
        if taken and taken + width(c) > full:
            pieces.append("")
            taken = 0
        pieces[-1] += c
        taken += width(c)
    return pieces


def width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )
