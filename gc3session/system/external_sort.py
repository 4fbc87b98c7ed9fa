"""Sorting of more items than memory should hold.

A hundred thousand or so are sorted at a time, and put into a temporary file without a name, some
hundred of them to a block of msgpack; the runs are merged as they are read again, a block of each
in memory.  What fits into the first run never leaves memory.
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
"""An item: of values that msgpack keeps as they are, and that can be compared with those of others."""


def in_order(items: Iterable[Sortable], *, reverse: bool = False) -> Iterator[Sortable]:
    """Read all *items*; return them sorted, from the greatest with *reverse*.

    Raise WriteError if there is no room for a temporary file.
    """
    source = iter(items)
    run = sorted(islice(source, _RUN), reverse=reverse)
    if len(run) < _RUN:
        return iter(run)
    with keeping("what is to be sorted"):
        file = tempfile.TemporaryFile()  # noqa: SIM115 (it is read after the return)
        runs = []
        while run:
            runs.append(_written(file, run))
            run = sorted(islice(source, _RUN), reverse=reverse)
    return heapq.merge(*(_read(file, blocks) for blocks in runs), reverse=reverse)


def _written(file: IO[bytes], run: list[Sortable]) -> list[tuple[int, int]]:
    """Write a sorted run; return where its blocks are, and how long."""
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
