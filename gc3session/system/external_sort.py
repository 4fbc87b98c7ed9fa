"""Sorting of more items than memory should hold.

The items are sorted in runs of 65,536, which are written to a temporary file in blocks of msgpack. Then the
runs are merged while they are read again, with one block of each in memory. If there is only one run it stays in
memory.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, Final

import msgpack

from .temporary import keeping

_RUN: Final = 1 << 16  # items
_BLOCK: Final = 256  # items

Sortable = tuple[Any, ...]
"""An item: values that msgpack stores unchanged, and that can be compared with those of the other items."""


def in_order(items: Iterable[Sortable], *, reverse: bool = False) -> Iterator[Sortable]:
    """Read all *items*, and return them sorted; with *reverse* the greatest comes first.

    Raise WriteError if there is no room for a temporary file.
    """
    source = iter(items)
    run = sorted(islice(source, _RUN), reverse=reverse)
    if len(run) < _RUN:
        return iter(run)
    with keeping("the items to be sorted"):
        file = tempfile.TemporaryFile()  # noqa: SIM115 (it is read after the return)
        runs = []
        while run:
            runs.append(_written(file, run))
            run = sorted(islice(source, _RUN), reverse=reverse)
    return heapq.merge(*(_read(file, blocks) for blocks in runs), reverse=reverse)


def _written(file: IO[bytes], run: list[Sortable]) -> list[tuple[int, int]]:
    """Write a sorted run. Return the place and the length of each of its blocks."""
    blocks = []
    for first in range(0, len(run), _BLOCK):
        data = msgpack.packb(run[first : first + _BLOCK], unicode_errors="surrogatepass")
        blocks.append((file.tell(), len(data)))
        file.write(data)
    return blocks


def _read(file: IO[bytes], blocks: list[tuple[int, int]]) -> Iterator[Sortable]:
    for place, size in blocks:
        file.seek(place)
        yield from map(tuple, msgpack.unpackb(file.read(size), unicode_errors="surrogatepass"))
