"""A new data file from what can be read of a damaged one.

All leaf pages of the file are read: those that the tree still leads to, then those that it doesn't, because a
page or a key is damaged. A record proves itself by its checksum, which depends on its N, and of several
with one N that of the highest revision counts. From a page that is free, or may be, a record is taken only if
the index or the mirror knows it: it may be an earlier revision, but no removed task comes back. Schemas and names
of states never change, so any copy of one is right.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Final

from ....errors import CorruptRecord, CorruptStore, UnknownFormat
from ....format.frame import header_of, values_of
from ....format.schema import Schema
from ....index.entries import BLOCK, INDEX_KEY, Row, numbers_of, unpack_members
from ....index.states import unpack_state
from ....system.filesystem import give_owner, is_holes, sync, temporary_name
from ....system.number_set import Numbers
from ....system.temporary import delete_leftovers, delete_tree
from ...interface import INDEX, META, RECORDS, SCHEMAS, SESSIONS, STATES, Item, Tables, Writer
from ..ranges import RANGES
from .contents import ignore
from .meta import MetaPage, Tree, newest_meta_page, opened_data_file, read_meta_page
from .pages import LEAF, DamagedPage, Pages, flags_of, number_of
from .structure import check_structure
from .verification import mark_trusted

_BATCH: Final = 1 << 22  # bytes
_PAGE_SIZES: Final = (4096, 16384, 65536, 8192, 32768, 2048, 1024, 512)
_EMPTY: Final = Tree(0, 0, 0, 0, 0, 0, 0, None)
_NAMES: Final = {range_[0]: table for table, range_ in RANGES.items()}


class _Pages(Enum):
    """What is known of a page."""

    REACHED = "the tree leads to it"
    LOST = "no tree leads to it, and it may be in use"
    FREE = "it is free"


class Salvage:
    """What can be read of a damaged data file.

    Args:
        path: the path of the file, for messages.
        fd: the open file.
        listed: the Ns that the mirror lists.
    """

    def __init__(self, path: str, fd: int, listed: Numbers) -> None:
        self._path = path
        self._fd = fd
        self._known = Numbers(listed)  # Ns of records that are in use
        self._old = False  # whether the newest meta page is lost, and what its transaction has changed with it
        self._pages = Pages(path, fd, self._meta())
        self._free_known = not self._old
        self._reached, self._free = check_structure(self._pages, self._note_fault)
        last_page = os.fstat(fd).st_size // self._pages.size - 1
        self._all = Pages(path, fd, MetaPage(self._pages.size, last_page, 0, _EMPTY, _EMPTY))

    def _note_fault(self, fault: str) -> None:
        if fault.startswith("the list of free pages"):
            self._free_known = False

    def _meta(self) -> MetaPage:
        """Return the newest meta page that can be read; without one no tree is known."""
        try:
            return newest_meta_page(self._path, self._fd)
        except (CorruptStore, UnknownFormat) as error:
            self._old = True
            found = [MetaPage(4096, max(1, os.fstat(self._fd).st_size // 4096 - 1), -1, _EMPTY, _EMPTY)]
            for number, page_size in ((0, 4096), *((1, page_size) for page_size in _PAGE_SIZES)):
                with contextlib.suppress(CorruptStore, UnknownFormat):
                    found.append(read_meta_page(self._path, self._fd, number, page_size))
            if isinstance(error, UnknownFormat) and len(found) == 1:
                raise
            return max(found, key=lambda meta: meta.transaction)

    def _status(self, number: int) -> _Pages:
        """Return what is known of a page; one after the last was written by a transaction that was not committed."""
        byte, bit = number >> 3, 1 << (number & 7)
        beyond = number >= self._pages.marks
        if not beyond and self._reached[byte] & bit:
            return _Pages.REACHED
        return _Pages.FREE if self._free_known and (beyond or self._free[byte] & bit) else _Pages.LOST

    def items(self, *status: _Pages) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield table, key and value of all items in leaf pages of such a status.

        A page that says it has another number was written to a wrong place.
        """
        size = self._pages.size
        for place in () if is_holes(os.fstat(self._fd)) else range(2, self._all.meta.last_page + 1):
            page = os.pread(self._fd, size, place * size)
            if flags_of(page) != LEAF or self._status(number_of(page)) not in status:
                continue
            for node in self._all.nodes(page, ignore):
                table = _NAMES.get(node.key[0]) if node.key else None
                if table is not None:
                    with contextlib.suppress(DamagedPage):
                        yield table, node.key[1:], self._all.value(node)

    # -- filling a new store

    def fill(self, tables: Tables | None) -> str:
        """Write all that can be read to new tables, with None only count it; return what was done."""
        found, lost = Numbers(), Numbers()  # records that the tree leads to, and others
        for some in _batches(chain(self._others(), self._records(found, lost))):
            if tables is not None:
                tables.write(partial(_put, some))
        message = f"the data file is made again, with the {len(found) + len(lost):,} records that can be read"
        if len(lost):
            message += f", {len(lost):,} of them found though nothing led to them any more"
        return message

    def _others(self) -> Iterator[tuple[str, Item]]:
        """Yield all but records; of two items with one key the later one counts.

        Of what isn't reached, that counts which is in use. If that isn't known, it counts if there is no tree at
        all, but for the index: records say better who has them than an old index.
        """
        totals: list[int] = []  # how many tasks the sessions have
        numbering: dict[bytes, bytes] = {}
        damaged: dict[tuple[str, bytes], bytes] = {}
        readable: set[tuple[str, bytes]] = set()
        everything = self._pages.meta.main.root is None
        for status in (_Pages.FREE, _Pages.LOST, _Pages.REACHED):
            counts = status is _Pages.REACHED or (status is _Pages.LOST and self._free_known)
            for table, key, value in self.items(status):
                if table == RECORDS:
                    continue
                if not _can_be(table, key, value):
                    if status is _Pages.REACHED and table != INDEX:
                        damaged[table, key] = value
                    continue
                if table == META and key.startswith(b"next "):
                    numbering[key] = value = max(value, numbering.get(key, b""))
                elif not (
                    counts
                    or table in (SCHEMAS, STATES)
                    or (everything and status is _Pages.LOST and table != INDEX)
                ):
                    continue
                if table == INDEX:
                    self._known.add_all(numbers_of(INDEX_KEY.unpack(key)[1], unpack_members(key, value)))
                elif table == SESSIONS:
                    totals.append(Row.parsed(key, value).total)
                if table in (SCHEMAS, STATES, SESSIONS):
                    readable.add((table, key))
                yield table, (key, value)
        for (table, key), value in damaged.items():
            if (table, key) not in readable:
                yield table, (key, value)
        self._following = int.from_bytes(numbering.get(b"next N", b"\xff" * 8), "big")
        self._all_known = bool(len(self._known)) or (bool(totals) and not any(totals))

    def _records(self, found: Numbers, lost: Numbers) -> Iterator[tuple[str, Item]]:
        """Yield records, after all the others; of two with one N the later one counts."""
        # Of those that may stand elsewhere, too, by block.
        ranks: defaultdict[int, array[int]] = defaultdict(lambda: array("Q", bytes(8 * BLOCK)))
        damaged: dict[bytes, bytes] = {}
        for key, record in self._of_records(_Pages.REACHED):
            rank, number = self._rank(key, record), int.from_bytes(key, "big")
            if not rank:
                damaged[key] = record
                continue
            found.add(number)
            if self._old:
                ranks[number // BLOCK][number % BLOCK] = rank
            yield RECORDS, (key, record)
        for status in (_Pages.LOST, _Pages.FREE):
            for key, record in self._of_records(status):
                rank, number = self._rank(key, record), int.from_bytes(key, "big")
                if not rank or (number in found and not self._old):
                    continue
                # An old page may have an earlier revision. For a task that the index knows that is better than
                # no record.
                in_use = status is _Pages.LOST and (
                    self._free_known or number >= self._following or not header_of(record).home
                )
                if not (in_use or number in self._known or not self._all_known):
                    continue
                if number // BLOCK in ranks and rank <= ranks[number // BLOCK][number % BLOCK]:
                    continue
                ranks[number // BLOCK][number % BLOCK] = rank
                if number not in found:
                    lost.add(number)
                yield RECORDS, (key, record)
        for key, record in damaged.items():
            number = int.from_bytes(key, "big")
            if number not in found and number not in lost:
                yield RECORDS, (key, record)

    def _of_records(self, status: _Pages) -> Iterator[Item]:
        return ((key, value) for table, key, value in self.items(status) if table == RECORDS)

    def _rank(self, key: bytes, record: bytes) -> int:
        """Return by what the best of several records of one N is the greatest; 0 if it can't be read.

        The revision comes first. It stays when a session takes the record in or gives it away.
        """
        number = int.from_bytes(key, "big")
        try:
            if (
                len(key) != 8 or number >> 32 > self._following >> 32
            ):  # its checksum knows the lower half of N only
                return 0
            revision = min(values_of(number, record)[1], 1 << 62)
        except CorruptRecord:
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


def _can_be(table: str, key: bytes, value: bytes) -> bool:
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


def copies_in(directory: str, table: str) -> Iterator[Item]:
    """Yield all items of a table in leaf pages of the data file in *directory*, used or free."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        for name, key, value in Salvage(path, file.fileno(), Numbers()).items(*_Pages):
            if name == table:
                yield key, value


def rebuild(
    directory: str,
    make: Callable[[str], Tables],
    keep: Callable[[str], None],
    listed: Numbers,
    finish: Callable[[Tables, str], None],
) -> None:
    """Replace the data file in *directory* by a new one with all that can be read of the old one.

    The new file takes its place by one renaming. Nobody may have the environment open meanwhile.

    Args:
        directory: the directory of the environment.
        make: returns the tables at a path.
        keep: called with the path of the old file, which it gives a second name.
        listed: the Ns that the mirror lists.
        finish: called with the new tables, which it repairs before they take their place, and with what was done.
    """
    path = os.path.join(directory, "data.mdb")
    delete_leftovers(directory)
    temporary = temporary_name(directory)
    try:
        with contextlib.closing(make(temporary)) as tables, opened_data_file(path) as file:
            done = Salvage(path, file.fileno(), listed).fill(tables)
            tables.write(lambda writer: None)  # so that they are made even if nothing was found
            finish(tables, done)
        new = os.path.join(temporary, "data.mdb")
        give_owner(new, path)
        keep(path)
        lock = os.path.join(directory, "lock.mdb")
        if os.path.lexists(lock):
            os.unlink(lock)
        os.rename(new, path)
        sync(directory)
        mark_trusted(directory)
    finally:
        delete_tree(temporary)


def readable(directory: str, listed: Numbers) -> str:
    """Return what `rebuild` would say that it has done; nothing is written."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        return Salvage(path, file.fileno(), listed).fill(None)
