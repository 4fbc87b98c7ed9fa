"""A new data file from what can be read of a damaged one.

What the tree still leads to is read through the tree. For what it doesn't, because a page or a key is
damaged, all leaf pages of the file are read. A record in one proves itself by its checksum, which
depends on its N, and of several with one N that of the highest revision counts. From a page that is free, or
may be, a record is taken only if the index or the mirror knows it: it may be an earlier revision, but no
removed task comes back. Schemas and names of states never change, so any copy of one is right.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Final

import msgpack

from ....errors import CorruptRecord, CorruptStore, UnknownFormat
from ....format.frame import FORMAT, header_of, values_of
from ....format.schema import Schema
from ....index.entries import BLOCK, INDEX_KEY, Row, numbers_of, unpack_members
from ....index.states import unpack_state
from ....system.filesystem import give_owner, is_holes, sync, temporary_name
from ....system.number_set import Numbers
from ....system.temporary import delete_leftovers, delete_tree
from ...interface import INDEX, META, RECORDS, SCHEMAS, SESSIONS, STATES, TABLES, Item, Tables, Writer
from ..ranges import RANGES
from .contents import LmdbContents, ignore
from .meta import MetaPage, Tree, newest_meta_page, opened_data_file, read_meta_page
from .pages import LEAF, DamagedPage, Pages, flags_of, number_of
from .structure import check_structure
from .verification import mark_trusted

_BATCH: Final = 1 << 22  # bytes
_PAGE_SIZES: Final = (4096, 16384, 65536, 8192, 32768, 2048, 1024, 512)
_EMPTY: Final = Tree(0, 0, 0, 0, 0, 0, 0, None)
_NAMES: Final = {range_[0]: table for table, range_ in RANGES.items()}


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
        self._listed = listed
        self._old = False  # whether the newest meta page is lost, and what its transaction has changed with it
        self._pages = Pages(path, fd, self._meta())
        self._free_known = not self._old
        self._free = check_structure(self._pages, self._note_fault)
        self._contents = LmdbContents(self._pages)
        everything = MetaPage(self._pages.size, os.fstat(fd).st_size // self._pages.size, 0, _EMPTY, _EMPTY)
        self._all = Pages(path, fd, everything)  # also those that the newest state doesn't reach

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

    def strays(self) -> Iterator[tuple[str, bytes, bytes, bool]]:
        """Yield table, key and value of all items in leaf pages, and whether the page may be in use.

        A page after the last one was written by a transaction that was not committed. One that says it has
        another number was written to a wrong place.
        """
        size = self._pages.size
        for place in () if is_holes(os.fstat(self._fd)) else range(2, self._all.meta.last_page):
            page = os.pread(self._fd, size, place * size)
            if len(page) < size or flags_of(page) != LEAF:
                continue
            number = number_of(page)
            free = number >= self._pages.marks or bool(self._free[number >> 3] & 1 << (number & 7))
            for node in self._all.nodes(page, ignore):
                table = _NAMES.get(node.key[0]) if node.key else None
                if table is not None:
                    with contextlib.suppress(DamagedPage):
                        yield table, node.key[1:], self._all.value(node), not (self._free_known and free)

    # -- filling a new store

    def fill(self, tables: Tables | None) -> str:
        """Write all that can be read to new tables, with None only count it; return what was done."""
        version = self._contents.get(META, b"format")
        if version is not None and version != msgpack.packb(FORMAT) and len(version) == 1 and version[0] < 0x80:
            raise UnknownFormat(f"{self._path} has the format version {version[0]}; upgrade gc3session")
        found, lost = Numbers(), Numbers()  # records that the tree leads to, and others
        for some in _batches(self._items(found, lost)):
            if tables is not None:
                tables.write(partial(_put, some))
        message = f"the data file is made again, with the {len(found) + len(lost):,} records that can be read"
        if len(lost):
            message += f", {len(lost):,} of them found though nothing led to them any more"
        return message

    def _items(self, found: Numbers, lost: Numbers) -> Iterator[tuple[str, Item]]:
        """Yield all that can be read; of two items with one key the later one counts."""
        contents, known = self._contents, Numbers(self._listed)
        numbering: dict[bytes, bytes] = {}
        totals: list[int] = []  # how many tasks the sessions have
        for table, key, value in chain(self._reached(), self._missing()):
            if table == INDEX:
                known.add_all(_members(key, value))
            elif table == SESSIONS:
                totals.append(_total(key, value))
            elif table == META and key.startswith(b"next "):
                numbering[key] = value = max(value, numbering.get(key, b""))
            yield table, (key, value)
        following = int.from_bytes(numbering.get(b"next N", b"\xff" * 8), "big")
        anything = not len(known) and (not totals or any(totals))  # nothing says which are in use
        # Of records that may stand elsewhere, too, by block.
        ranks: defaultdict[int, array[int]] = defaultdict(lambda: array("Q", bytes(8 * BLOCK)))
        damaged: dict[bytes, bytes] = {}

        def rank_of(key: bytes, record: bytes) -> int:
            """Return by what the best of several records of one N is the greatest; 0 if it can't be read.

            The revision comes first. It stays when a session takes the record in or gives it away.
            """
            number = int.from_bytes(key, "big")
            try:
                if (
                    len(key) != 8 or number >> 32 > following >> 32
                ):  # what the checksum knows of N is its lower half
                    return 0
                held = anything or number in known
                revision = min(values_of(number, record)[1], 1 << 62)
                return 2 * revision + (bool(header_of(record).home) == held)
            except CorruptRecord:
                return 0

        for key, record in contents.walk(RECORDS):
            rank = rank_of(key, record)
            if not rank:
                damaged[key] = record
                continue
            number = int.from_bytes(key, "big")
            found.add(number)
            if self._old:
                ranks[number // BLOCK][number % BLOCK] = rank
            yield RECORDS, (key, record)
        for table, key, record, in_use in self.strays():
            number = int.from_bytes(key, "big")
            if table != RECORDS or (number in found and not self._old):
                continue
            rank = rank_of(key, record)
            if not rank or (number // BLOCK in ranks and rank <= ranks[number // BLOCK][number % BLOCK]):
                continue
            # An old page may have an earlier revision. For a task that the index knows that is better than no record.
            is_new = in_use and (self._free_known or number >= following or not header_of(record).home)
            if number in known or anything or is_new:
                ranks[number // BLOCK][number % BLOCK] = rank
                if number not in found:
                    lost.add(number)
                damaged.pop(key, None)
                yield RECORDS, (key, record)
        yield from ((RECORDS, item) for item in damaged.items())

    def _reached(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield what the tree leads to, but for records."""
        for table in TABLES:
            if table != RECORDS:
                yield from ((table, *item) for item in self._contents.walk(table))

    def _missing(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield what is right but stands only in pages to which no tree leads, but for records."""
        for table, key, value, in_use in self.strays():
            if table != RECORDS and self._is_missing(table, key, value, in_use):
                yield table, key, value

    def _is_missing(self, table: str, key: bytes, value: bytes, in_use: bool) -> bool:
        there = self._contents.get(table, key)
        if table in (SCHEMAS, STATES):
            return _is_right(table, key, value) and not _is_right(table, key, there or b"")
        if table == META and key.startswith(b"next "):
            return there is None or self._old
        # Without a tree at all it isn't known what is old. Records say better than an old index who has them.
        if not in_use or not (self._free_known or (self._pages.meta.main.root is None and table != INDEX)):
            return False
        return there is None and (table != INDEX or bool(_members(key, value)))


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


def _members(key: bytes, value: bytes) -> list[int]:
    """Return the members in an entry of the index, none if it can't be read."""
    try:
        return numbers_of(INDEX_KEY.unpack(key)[1], unpack_members(key, value))
    except (CorruptRecord, struct.error):
        return []


def _total(identity: bytes, data: bytes) -> int:
    """Return how many tasks a session's row says that it has; -1 if it can't be read."""
    try:
        return Row.parsed(identity, data).total
    except CorruptRecord:
        return -1


def _is_right(table: str, key: bytes, data: bytes) -> bool:
    """Return whether a schema, or the name of a state, can be read."""
    try:
        if table == SCHEMAS:
            Schema.from_item(key, data)
        else:
            unpack_state(int.from_bytes(key, "big"), data)
    except CorruptRecord:
        return False
    return len(key) == 4


def copies_in(directory: str, table: str) -> Iterator[Item]:
    """Yield all items of a table in leaf pages of the data file in *directory*, used or free."""
    path = os.path.join(directory, "data.mdb")
    with opened_data_file(path) as file:
        for name, key, value, _ in Salvage(path, file.fileno(), Numbers()).strays():
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
