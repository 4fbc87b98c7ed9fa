"""The repair of the tables of a store, without loss: what a check says about each finding is changed.

One change may show what another one lacks: an entry that can't be read goes first, and what is missing
then comes back from the records. So the check is repeated, each time in a transaction of its own, until it finds
nothing. It reads the committed state, while the transaction that writes is open: LMDB leaves its pages as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import msgpack

from ..errors import UnknownFormat
from ..format.frame import FORMAT, schema_number_or_0
from ..tables.interface import META, RECORDS, SCHEMAS, Contents, Item, Standing, Tables, Writer
from .check_tables import TablesCheck
from .finding import Change, Finding
from .quarantine import DAMAGED, Quarantine
from .record_reader import revision_in
from .salvage import can_be

_LONGEST_NAME: Final = 64  # of a file, without its ending


class TablesRepair:
    """One repair of tables.

    Args:
        tables: what is repaired.
        identity: that of the session; None if it isn't known.
        damaged: where what is taken out is kept.
        report: called with a line for each thing that is done.
    """

    def __init__(
        self, tables: Tables, identity: bytes | None, damaged: Quarantine, report: Callable[[str], None]
    ) -> None:
        self._tables = tables
        self._identity = identity
        self._damaged = damaged
        self._report = report

    def round(self, writer: Writer | None) -> bool:
        """Change what one check finds, without a *writer* only report it; return whether it has found anything."""
        found = False
        unread: dict[tuple[str, bytes], Finding] = {}
        with self._tables.contents(ignored, writer=writer) as contents:
            _check_format(contents, self._tables.url)
            for finding in TablesCheck(contents, self._identity).check():
                found = True
                kept = [change for change in finding.changes if change.kept]
                unread.update({(change.table, change.key): finding for change in kept})
                if not kept:
                    self._report(f"{finding.where}: {finding.message}; corrected")
                if writer is not None:
                    _write(writer, [change for change in finding.changes if not change.kept])
            self._restore(contents, writer, unread)
        return found

    def _restore(
        self, contents: Contents, writer: Writer | None, unread: dict[tuple[str, bytes], Finding]
    ) -> None:
        """Put copies in the place of what can't be read, and take out what has none."""
        copies: dict[tuple[str, bytes], bytes] = {}
        for table in (SCHEMAS, RECORDS):
            wanted = {key for name, key in unread if name == table}
            for key, value in copies_in(self._tables, table) if wanted else ():
                if key in wanted and _rank(table, key, value) > _rank(table, key, copies.get((table, key), b"")):
                    copies[table, key] = value
        for (table, key), finding in unread.items():
            data, copy = contents.get(table, key), copies.get((table, key))
            if table == RECORDS and data is not None and _rank(table, key, data):  # a copy has the same fault
                copy = None
                if (SCHEMAS, schema_number_or_0(data).to_bytes(4, "big")) in copies:
                    continue  # that was all it lacked
            if data is not None:
                name = str(int.from_bytes(key, "big")) if len(key) in (4, 8) else key.hex()[:_LONGEST_NAME]
                self._damaged.save(f"{name}.{table.removesuffix('s')}", data)
            if data is not None or copy is not None:
                what = f"moved to {DAMAGED}/" if copy is None else "restored from a copy in the data file"
                self._report(f"{finding.where}: {finding.message}; {what}")
                if writer is not None:
                    _write(writer, [Change(table, key, copy)])


def _write(writer: Writer, changes: list[Change]) -> None:
    for change in changes:
        if change.value is None:
            writer.delete(change.table, [change.key])
        else:
            writer.put(change.table, [(change.key, change.value)])


def _rank(table: str, key: bytes, data: bytes) -> int:
    """Return by what the best of several copies is the greatest, the revision of a record; 0 if it can't be read."""
    return revision_in(key, data) if table == RECORDS else can_be(table, key, data)


def copies_in(tables: Tables, table: str) -> Iterator[Item]:
    """Yield the items of a table, also former ones, wherever they stand in the store's files."""
    with tables.remains() or contextlib.nullcontext() as remains:
        for name, key, value in remains.items(*Standing) if remains else ():
            if name == table:
                yield key, value


def _check_format(contents: Contents, url: str) -> None:
    """Raise UnknownFormat if a later version of gc3session has written this."""
    try:
        version = msgpack.unpackb(contents.get(META, b"format") or b"")
    except (ValueError, msgpack.UnpackException):
        return
    if type(version) is int and version > FORMAT:
        raise UnknownFormat(
            f"the store {url} has the format version {version}; this version of gc3session knows version {FORMAT}"
            " only, and has repaired nothing: upgrade gc3session"
        )


def ignored(problem: str) -> None:
    """For reading damaged tables whose problems are known."""
