"""What there is to know of a session and its store, told in constant time unless it says otherwise.

The index knows how many tasks are in which state, and how many there are; LMDB knows how many
records, sessions and pages.  When the first and the last of all events were, and how many records
each schema has, only the records know: that takes a scan.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from ..directory import SessionDirectory
from ..errors import CorruptRecord
from ..format.frame import FORMAT, RECORD_KEY, values_of
from ..format.schema import Schema
from ..index.entries import MEMBER, SESSION_KEY, Row, entry_at
from ..snapshots.snapshot import snapshot
from ..system.filesystem import opened_regular
from ..tables.interface import MEMBERS, RECORDS, SCHEMAS, SESSIONS, Figure, OnProgress, Reader

if TYPE_CHECKING:
    from .session import Session

_OFTEN = 512  # records between two calls of the progress


@attrs.frozen
class SchemaFigures:
    """A schema: a class's fields, as some records were written with them.

    Attributes:
        number: by which records refer to it.
        name: what the IDs of its objects begin with; 'Unreadable' if it is damaged.
        tag: the class.
        fields: how many fields.
        records: how many records were written with it; None without a scan.
    """

    number: int
    name: str
    tag: str
    fields: int
    records: int | None


@attrs.frozen
class EventFigures:
    """An event in a task's history.

    Attributes:
        id: of the task.
        time: in seconds since 1970.
        state: that the task came into.
    """

    id: str
    time: float
    state: str


@attrs.frozen
class Information:
    """What there is to know of a session.

    Attributes:
        name, path, identity: of the session; the identity in hexadecimal digits.
        store: the URL of the store.
        inside: whether the store is inside the session's directory.
        format: the version of the store's format; None before the first write.
        created, finished: in seconds since 1970; None if that isn't known.
        command: the command line that made the session, or None.
        tasks: how many entries the session has.
        states: how many of them are in which state; persistables that are no tasks have none.
        waiting: how many records are in this program's batch, not on disk yet.
        first_event, last_event: without a scan those of the task that was added first and of that
            added last; with it the first and the last of all that were read.
        scanned: how many records were read; None without a scan.
        unreadable: how many of those can't be read.
        last_write: when the store was last written, in seconds since 1970; None if its kind doesn't tell.
        per_minute: tasks a minute, from when the session was created to when it was finished, or
            else to the last write, or else to the `last_event`; None if there is no such time.
        records: how many records are in the store.
        other_sessions: how many other sessions the store has.
        schemas: of the store; with a scan those of the session with how many records they have.
        mirror: whether `session_ids.txt` is as the index says; what is in the batch isn't in it.
        figures: what this kind of store tells of itself.
    """

    name: str
    path: str
    identity: str
    store: str
    inside: bool
    format: int | None
    created: float | None
    finished: float | None
    command: str | None
    tasks: int
    states: dict[str, int]
    waiting: int
    first_event: EventFigures | None
    last_event: EventFigures | None
    scanned: int | None
    unreadable: int | None
    last_write: float | None
    per_minute: float | None
    records: int
    other_sessions: int
    schemas: list[SchemaFigures]
    mirror: bool
    figures: list[Figure]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON has."""
        told = attrs.asdict(self, filter=lambda attribute, _: attribute.name != "figures")
        return told | {"figures": {figure.name: figure.values for figure in self.figures}}


def information_of(session: Session, scan: bool, progress: OnProgress) -> Information:
    """Return what there is to know of a session; with *scan* its records are read."""
    store, directory = session.store, SessionDirectory(session.path)
    scanned = _Scan(session, progress) if scan and store.tables.exists() else None
    figures = store.tables.figures()
    with store.lock, store.reading() as reader:
        row = Row.read(reader, session._index.identity)
        tasks, states = session._index.count(reader), session._index.counts(reader)
        first, last = (scanned.first, scanned.last) if scanned else _ends(session, reader, row)
        rows = reader.entries(SESSIONS)
        records = reader.entries(RECORDS)
        schemas = [] if scanned else _schemas(reader)
        mirror = session._mirror.intact(row)
    created, finished = session.created, session.finished
    written = next((figure.values["time"] for figure in figures if figure.name == "last write"), None)
    ends = (finished, written, None if last is None else last.time)
    end = next((time for time in ends if time is not None), None)
    return Information(
        name=session.name,
        path=session.path,
        identity=session._index.identity.hex(),
        store=store.url,
        inside=directory.holds(store.url),
        format=FORMAT if store.identity is not None else None,
        created=created,
        finished=finished,
        command=_command(directory),
        tasks=tasks,
        states=states,
        waiting=len(store.batch.records),
        first_event=first,
        last_event=last,
        scanned=scanned.records if scanned else 0 if scan else None,
        unreadable=scanned.unreadable if scanned else 0 if scan else None,
        last_write=written,
        per_minute=60 * tasks / (end - created)
        if end is not None and created is not None and end > created
        else None,
        records=records,
        other_sessions=rows - (row is not None),
        schemas=scanned.schemas if scanned else schemas,
        mirror=mirror,
        figures=figures,
    )


_LONGEST_COMMAND = 1 << 24  # bytes of `created`; Linux runs no longer command line


def _command(directory: SessionDirectory) -> str | None:
    try:
        with opened_regular(os.path.join(directory.path, directory.TIMESTAMP_FILES["start"])) as file:
            data = file.read(_LONGEST_COMMAND)
    except OSError:
        return None
    return data.decode("utf-8", "surrogateescape").strip()


def _schemas(reader: Reader) -> list[SchemaFigures]:
    found = []
    for key, data in reader.scan(SCHEMAS, b""):
        number = int.from_bytes(key, "big")
        try:
            schema: Schema | bytes = Schema.from_bytes(number, data)
        except CorruptRecord:
            schema = data
        found.append(_schema(number, schema, None))
    return found


def _schema(number: int, schema: Schema | bytes, records: int | None) -> SchemaFigures:
    if isinstance(schema, bytes):
        return SchemaFigures(number, "Unreadable", "", 0, records)
    return SchemaFigures(number, schema.name, schema.tag, len(schema.fields), records)


# -- events


def _ends(session: Session, reader: Reader, row: Row | None) -> tuple[EventFigures | None, EventFigures | None]:
    """Return the first event of the task that was added first, and the last one of that added last."""
    if row is None:
        return None, None
    key = SESSION_KEY.pack(row.number)
    first, last = reader.values(MEMBERS, key, MEMBER.pack(0, 0, 0), 1), reader.last_value(MEMBERS, key)
    if not first or last is None:
        return None, None
    return _event(session, reader, first[0], 0), _event(session, reader, last, -1)


def _event(session: Session, reader: Reader, value: bytes, place: int) -> EventFigures | None:
    order, schema, _ = MEMBER.unpack(value)
    _, number, _ = entry_at(reader, order, schema)
    record = reader.get(RECORDS, RECORD_KEY.pack(number))
    if record is None:
        return None
    try:
        schema_number, _, values = values_of(number, record)
        events = list(_events(session.store.schemas.get(schema_number, reader), number, values))
    except CorruptRecord:
        return None
    return events[place] if events else None


def _events(schema: Schema, number: int, values: list[Any]) -> Iterator[EventFigures]:
    """Give the events in the history of a record; what isn't one is passed over."""
    history = dict(zip(schema.fields, values, strict=False)).get("history")
    for event in history if isinstance(history, list) else ():
        match event:
            case [int() | float() as time, str() as state]:
                yield EventFigures(f"{schema.name}.{number}", time, state)


class _Scan:
    """What only the records know: those of the session, and what these refer to.

    Attributes:
        records, unreadable: how many were read, how many of them can't be.
        first, last: of all events.
        schemas: with how many records they have.
    """

    def __init__(self, session: Session, progress: OnProgress) -> None:
        self.records = self.unreadable = 0
        self.first: EventFigures | None = None
        self.last: EventFigures | None = None
        counts: Counter[int] = Counter()
        with snapshot(session) as (state, kept):
            for number, _, schema_number, unread, record in kept:
                self.records += 1
                if self.records % _OFTEN == 0:
                    progress(self.records, state.count)
                schema = state.schemas.get(schema_number)
                if unread is not None or not isinstance(schema, Schema):
                    self.unreadable += 1
                    continue
                counts[schema_number] += 1
                self._note(schema, number, values_of(number, record)[2])
            progress(self.records, state.count)
            self.schemas = [_schema(number, schema, counts[number]) for number, schema in state.schemas.items()]

    def _note(self, schema: Schema, number: int, values: list[Any]) -> None:
        for event in _events(schema, number, values):
            if self.first is None or event.time < self.first.time:
                self.first = event
            if self.last is None or event.time > self.last.time:
                self.last = event
