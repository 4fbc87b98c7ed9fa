"""The repair of the tables of a store, without loss, in one transaction.

The records count: an entry of the index without its record goes, and states, late tables, lines
of the mirror and counters are made what the records and the members say. A record or schema
that can't be read is moved to `damaged/`, and its entry is deleted.

What is read is the committed state, while the transaction that writes is open: LMDB leaves its
pages as they are. So memory stays flat here, too.
"""

from __future__ import annotations

import secrets

import msgpack

from ..errors import CorruptRecord
from ..format.frame import FORMAT, RECORD_KEY
from ..index.entries import SESSION_KEY, Row
from ..tables.interface import MEMBERS, META, SESSIONS, STATES
from .repair_index import IndexRepair
from .repair_records import Changes, Known, RecordsRepair


class TablesRepair:
    """One repair of the tables; *known* is what is known beside them."""

    def __init__(self, changes: Changes, known: Known) -> None:
        self._changes = changes
        self._contents = changes.contents
        self._report = changes.report
        self._known = known
        self._new: set[bytes] = set()  # identities of sessions whose rows are made again

    def run(self) -> None:
        """Repair all tables."""
        records = RecordsRepair(self._changes)
        records.run(self._known.schemas)
        rows = self._repair_rows()
        index = IndexRepair(self._changes, records, self._known)
        for identity, row in rows.items():
            index.repair_session(identity, row, is_new=identity in self._new)
        index.repair_late()
        self._repair_meta(records.greatest, max((row.number for row in rows.values()), default=0))

    def _repair_rows(self) -> dict[bytes, Row]:
        """Return the rows of all sessions, by their identities; those that are missing or damaged are made again."""
        rows: dict[bytes, Row] = {}
        damaged: list[bytes] = []
        numbers: set[int] = set()
        for key, data in self._contents.walk(SESSIONS):
            try:
                row = Row.parsed(key, data)
            except CorruptRecord:
                damaged.append(key)
                continue
            if row.number in numbers:
                damaged.append(key)
            else:
                numbers.add(row.number)
                rows[key] = row
        without = sorted(
            {int.from_bytes(key[:4], "big") for table in (MEMBERS, STATES) for key in self._contents.keys(table)}
            - numbers
        )
        own = self._known.identity
        waiting = [key for key in damaged if key != own and len(key) == 16]
        if own is not None and own not in rows:
            waiting.insert(0, own)  # if a single index has no row, it is that of this session
        for number in filter(None, without):
            identity = waiting.pop(0) if waiting else secrets.token_bytes(16)
            rows[identity] = Row(number, 0, 0, None)
            self._new.add(identity)
            self._report(f"session number {number}: its row is made again, for the session {identity.hex()}")
        for number, identity in enumerate(waiting, max(*numbers, *without, 0, 0) + 1):
            rows[identity] = Row(number, 0, 0, None)
            self._new.add(identity)
            if identity in damaged:
                self._report(f"session {identity.hex()}: its row is made again")
        for key in damaged:
            if key not in rows:
                self._report(f"session {key.hex()}: its row has no identity; deleted")
                self._changes.delete(SESSIONS, key)
        return rows

    def _repair_meta(self, greatest: int, session: int) -> None:
        """Correct the table `meta`, for the greatest number and the greatest session number in use."""

        def correct(name: bytes, value: bytes) -> None:
            self._report(f"meta: {name.decode()!r} is corrected")
            self._changes.put(META, name, value)

        version = msgpack.packb(FORMAT)
        if self._contents.get(META, b"format") != version:
            correct(b"format", version)
        if len(self._contents.get(META, b"store") or b"") != 16:
            correct(b"store", secrets.token_bytes(16))
        following = self._contents.get(META, b"next N") or b""
        if len(following) != 8 or not greatest < int.from_bytes(following, "big") < 1 << 63:
            correct(b"next N", RECORD_KEY.pack(greatest + 1))
        following = self._contents.get(META, b"next session") or SESSION_KEY.pack(1)
        if len(following) != 4 or int.from_bytes(following, "big") <= session:
            correct(b"next session", SESSION_KEY.pack(session + 1))
