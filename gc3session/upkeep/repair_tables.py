"""The repair of the tables of a store, without loss, in one transaction.

A record or schema that can't be read is moved to `damaged/`, and its entry is deleted. Index, counts and rows
are made what the records say, `holders`, and those entries that can be read.

What is read is the committed state, while the transaction that writes is open: LMDB leaves its
pages as they are. So memory stays flat here, too.
"""

from __future__ import annotations

import secrets

import msgpack

from ..errors import CorruptRecord
from ..format.frame import FORMAT, RECORD_KEY, unseal
from ..index.entries import SESSION_KEY
from ..tables.interface import META, METADATA, UNIQUE
from .changes import Changes
from .record_reader import RecordReader
from .repair_index import IndexRepair
from .repair_names import Copies, RowsRepair, StatesRepair, repair_schemas, restored_records, used_numbers


def repair_tables(changes: Changes, identity: bytes | None, copies: Copies) -> None:
    """Repair all tables.

    Args:
        changes: where the repair is written.
        identity: that of the session; None if it isn't known.
        copies: gives items of a table that stand elsewhere in the store.
    """
    reader = RecordReader()
    used = used_numbers(changes.contents)
    restored = restored_records(changes, used, copies)
    repair_schemas(changes, reader, used.schemas, copies)
    states = StatesRepair(changes, reader)
    states.run()
    rows = RowsRepair(changes, identity)
    rows.run(used.sessions)
    index = IndexRepair(changes, reader, states, restored)
    index.run()
    index.repair_counts()
    for number, (owner, row) in rows.rows.items():
        index.repair_row(owner, row, is_new=number in rows.new)
    _repair_keys(changes, index)
    _repair_metadata(changes, reader)
    _repair_meta(changes, index, max(rows.rows, default=0))


def _repair_keys(changes: Changes, index: IndexRepair) -> None:
    """Delete unique keys that lead to no record of their session."""
    for key, value in changes.contents.walk(UNIQUE):
        session = int.from_bytes(key[:4], "big")
        if len(value) != RECORD_KEY.size or not index.has(session, int.from_bytes(value, "big")):
            changes.report(f"key {key[4:]!r} of session {session}: it leads to no record of the session; deleted")
            changes.delete(UNIQUE, key)


def _repair_metadata(changes: Changes, reader: RecordReader) -> None:
    for key, value in changes.contents.walk(METADATA):
        try:
            reader.value(unseal(0, value))
        except CorruptRecord as error:
            changes.take_out(METADATA, key, error)


def _repair_meta(changes: Changes, index: IndexRepair, session: int) -> None:
    """Correct the table `meta`; *session* is the greatest session number in use."""
    contents = changes.contents

    def correct(name: bytes, value: bytes) -> None:
        changes.report(f"meta: {name.decode()!r} is corrected")
        changes.put(META, name, value)

    version = msgpack.packb(FORMAT)
    if contents.get(META, b"format") != version:
        correct(b"format", version)
    if len(contents.get(META, b"store") or b"") != 16:
        correct(b"store", secrets.token_bytes(16))
    following = contents.get(META, b"next N") or b""
    if len(following) != 8 or not index.greatest < int.from_bytes(following, "big") < 1 << 63:
        correct(b"next N", RECORD_KEY.pack(index.greatest + 1))
    following = contents.get(META, b"next session") or SESSION_KEY.pack(1)
    if len(following) != 4 or int.from_bytes(following, "big") <= session:
        correct(b"next session", SESSION_KEY.pack(session + 1))
    if int.from_bytes(contents.get(META, b"records") or b"", "big") != index.records:
        correct(b"records", RECORD_KEY.pack(index.records))
