"""What is taken over from a damaged store into a new one.

A record proves itself by its checksum, which depends on its N, and of several with one N that of the
highest revision counts. What is free, or may be, is taken only if the index or the mirror knows it: it may be an
earlier revision, but no removed task comes back. Schemas and names of states never change, so any copy of one is
right.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Final

from ..errors import CorruptRecord
from ..format.frame import header_of
from ..format.schema import Schema
from ..index.entries import BLOCK, INDEX_KEY, Row, numbers_of, unpack_members
from ..index.states import unpack_state
from ..system.number_set import Numbers
from ..tables.interface import (
    INDEX,
    META,
    RECORDS,
    SCHEMAS,
    SESSIONS,
    STATES,
    Item,
    Remains,
    Standing,
    Tables,
    Writer,
)
from .record_reader import revision_in

_BATCH: Final = 1 << 22  # bytes


class Salvage:
    """What can be taken over.

    Args:
        remains: what there is.
        listed: the Ns that the mirror lists.
    """

    def __init__(self, remains: Remains, listed: Numbers) -> None:
        self._remains = remains
        self._known = Numbers(listed)  # Ns of records that are in use

    def fill(self, tables: Tables | None) -> str:
        """Write all that can be read to new tables, with None only count it; return what was done."""
        found, lost = Numbers(), Numbers()  # records that something leads to, and others
        for some in _batches(chain(self._others(), self._records(found, lost))):
            if tables is not None:
                tables.write(partial(_put, some))
        message = f"the data file is made again, with the {len(found) + len(lost):,} records that can be read"
        if len(lost):
            message += f", {len(lost):,} of them found though nothing led to them any more"
        return message

    def _others(self) -> Iterator[tuple[str, Item]]:
        """Yield all but records; of two items with one key the later one counts, so damaged ones are the first.

        Of what isn't reached, that counts which is in use. If that isn't known, it counts if there is no tree at
        all, but for the index: records say better who has them than an old index.
        """
        totals: list[int] = []  # how many tasks the sessions have
        numbering: dict[bytes, bytes] = {}
        everything = not self._remains.is_led_to
        for table, key, value in self._remains.items(Standing.REACHED):
            if table not in (RECORDS, INDEX) and not can_be(table, key, value):
                yield table, (key, value)
        for standing in (Standing.FREE, Standing.LOST, Standing.REACHED):
            counts = standing is Standing.REACHED or (standing is Standing.LOST and self._remains.knows_free)
            for table, key, value in self._remains.items(standing):
                if table == RECORDS or not can_be(table, key, value):
                    continue
                if table == META and key.startswith(b"next "):
                    numbering[key] = value = max(value, numbering.get(key, b""))
                elif not (
                    counts
                    or table in (SCHEMAS, STATES)
                    or (everything and standing is Standing.LOST and table != INDEX)
                ):
                    continue
                if table == INDEX:
                    self._known.add_all(numbers_of(INDEX_KEY.unpack(key)[1], unpack_members(key, value)))
                elif table == SESSIONS:
                    totals.append(Row.parsed(key, value).total)
                yield table, (key, value)
        self._following = int.from_bytes(numbering.get(b"next N", b"\xff" * 8), "big")
        self._all_known = bool(len(self._known)) or (bool(totals) and not any(totals))

    def _records(self, found: Numbers, lost: Numbers) -> Iterator[tuple[str, Item]]:
        """Yield records, after all the others; of two with one N the later one counts."""
        # Of those that may stand elsewhere, too, by block.
        ranks: defaultdict[int, array[int]] = defaultdict(lambda: array("Q", bytes(8 * BLOCK)))
        for key, record, number, rank in self._of_records(Standing.REACHED):
            if rank:
                found.add(number)
                if not self._remains.is_newest:
                    ranks[number // BLOCK][number % BLOCK] = rank
            yield RECORDS, (key, record)
        for standing in (Standing.LOST, Standing.FREE):
            for key, record, number, rank in self._of_records(standing):
                if not rank or (number in found and self._remains.is_newest):
                    continue
                # An old page may have an earlier revision. For a task that the index knows that is better than
                # no record.
                in_use = standing is Standing.LOST and (
                    self._remains.knows_free or number >= self._following or not header_of(record).home
                )
                if not (in_use or number in self._known or not self._all_known):
                    continue
                if number // BLOCK in ranks and rank <= ranks[number // BLOCK][number % BLOCK]:
                    continue
                ranks[number // BLOCK][number % BLOCK] = rank
                if number not in found:
                    lost.add(number)
                yield RECORDS, (key, record)

    def _of_records(self, standing: Standing) -> Iterator[tuple[bytes, bytes, int, int]]:
        """Give key, bytes, N and rank of each record that stands so."""
        for table, key, record in self._remains.items(standing):
            if table == RECORDS:
                yield key, record, int.from_bytes(key, "big"), self._rank(key, record)

    def _rank(self, key: bytes, record: bytes) -> int:
        """Return by what the best of several records of one N is the greatest; 0 if it can't be read.

        The revision comes first. It stays when a session takes the record in or gives it away.
        """
        number, revision = int.from_bytes(key, "big"), revision_in(key, record)
        if not revision or number >> 32 > self._following >> 32:  # its checksum knows the lower half of N only
            return 0
        return 2 * revision + (bool(header_of(record).home) == (number in self._known or not self._all_known))


def _batches(items: Iterator[tuple[str, Item]]) -> Iterator[list[tuple[str, Item]]]:
    """Yield all items, some at a time."""
    some, size = list[tuple[str, Item]](), 0
    for item in items:
        some.append(item)
        size += len(item[1][1])
        if size > _BATCH:
            yield some
            some, size = [], 0
    yield some


def _put(items: list[tuple[str, Item]], writer: Writer) -> None:
    for table, some in groupby(items, key=itemgetter(0)):
        writer.put(table, [item for _, item in some])


def can_be(table: str, key: bytes, value: bytes) -> bool:
    """Return whether an item can be read, as far as it has a checksum."""
    try:
        if table == SCHEMAS:
            Schema.from_item(key, value)
        elif table == STATES:
            unpack_state(int.from_bytes(key, "big"), value)
        elif table == SESSIONS:
            Row.parsed(key, value)
        elif table == INDEX:
            return len(key) == INDEX_KEY.size and bool(unpack_members(key, value))
    except CorruptRecord:
        return False
    return True
