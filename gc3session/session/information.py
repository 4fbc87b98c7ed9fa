"""What there is to know of a session and its store: in constant time, unless the records are scanned.

The index knows how many tasks there are, and how many are in which state; the store counts its
records, sessions and pages. Only the records know when the first and the last event were, and how
many of them belong to each schema: that takes a scan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs

from ..directory import SessionDirectory
from ..errors import CorruptRecord
from ..format.frame import FORMAT, RECORD_KEY, values_of
from ..format.schema import Schema, schema_or_bytes
from ..index.entries import Row
from ..index.mirror import Mirror
from ..snapshots.snapshot import snapshot
from ..store.commit import RECORDS_KEY
from ..store.index import Index
from ..tables.interface import META, RECORDS, SCHEMAS, SESSIONS, Figure, OnProgress, Reader


@attrs.frozen
class SchemaFigures:
    """A schema: a class's fields, as some records were written with them.

    Attributes:
        number: by which records refer to it.
        name: what the IDs of its objects begin with; 'Unreadable' if the schema is damaged.
        tag: the tag of the class.
        fields: how many fields it has.
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
        id: the task's ID.
        time: when it was, in seconds since 1970.
        state: the state that the task came into.
    """

    id: str
    time: float
    state: str


@attrs.frozen
class Information:
    """What there is to know of a session.

    Attributes:
        name, path: those of the session.
        identity: that of the session, in hexadecimal digits.
        store: the URL of the store.
        inside: whether the store is inside the session's directory.
        format: the version of the store's format; None before the first write.
        created, finished: when it was, in seconds since 1970; None if that isn't known.
        command: the command line that made the session; None if that isn't known.
        tasks: how many tasks the session has.
        states: how many of them are in which state; persistables that aren't tasks have none.
        waiting: how many records are in this program's batch, not on disk yet.
        first_event, last_event: with a scan the first and the last of all events; without one the
            first event of the task that was added first, and the last one of the task added last.
        scanned: how many records were read; None without a scan.
        unreadable: how many of those can't be read.
        last_write: when the store was last written, in seconds since 1970; None if it doesn't know that.
        per_minute: tasks a minute from `created` to `finished`, or else to `last_write`, or else to
            `last_event`; None if these times aren't known.
        records: how many records are in the store.
        other_sessions: how many other sessions the store has.
        schemas: those of the store; with a scan those of the session, with their numbers of records.
        mirror: whether `session_ids.txt` is as the index says; what is in the batch isn't in it.
        figures: what this kind of store knows of itself.
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
        values = attrs.asdict(self, filter=lambda attribute, _: attribute.name != "figures")
        return values | {"figures": {figure.name: figure.values for figure in self.figures}}


def information_of(
    index: Index, directory: SessionDirectory, mirror: Mirror, scan: bool, progress: OnProgress
) -> Information:
    """Return what there is to know of a session; with *scan* its records are read."""
    store = index.store
    known = _scanned(index, progress) if scan else None
    figures = store.tables.figures()
    with store.lock, store.reading() as reader:
        row = Row.read(reader, index.identity)
        tasks, states = index.count(reader), index.counts(reader)
        sessions = sum(1 for _ in reader.walk(SESSIONS))
        records = int.from_bytes(reader.get(META, RECORDS_KEY) or b"", "big")
        known = known or _unscanned(index, reader)
        intact = mirror.intact(row)
    created, finished = directory.timestamp("start"), directory.timestamp("end")
    command, last = directory.command(), known["last_event"]
    written = next((figure.values["time"] for figure in figures if figure.name == "last write"), None)
    ends = (finished, written, None if last is None else last.time)
    span = next((time for time in ends if time is not None), 0) - (created or 0)
    return Information(
        name=directory.name,
        path=directory.path,
        identity=index.identity.hex(),
        store=store.url,
        inside=directory.holds(store.url),
        format=FORMAT if store.identity is not None else None,
        created=created,
        finished=finished,
        command=None if command is None else command.strip(),
        tasks=tasks,
        states=states,
        waiting=len(store.batch.records),
        last_write=written,
        per_minute=None if created is None or span <= 0 else 60 * tasks / span,
        records=records,
        other_sessions=sessions - (row is not None),
        mirror=intact,
        figures=figures,
        **known,
    )


def _schema(number: int, schema: Schema | bytes, records: int | None) -> SchemaFigures:
    if isinstance(schema, bytes):
        return SchemaFigures(number, "Unreadable", "", 0, records)
    return SchemaFigures(number, schema.name, schema.tag, len(schema.fields), records)


def _unscanned(index: Index, reader: Reader) -> dict[str, Any]:
    """Return what is known without a scan: the first event of the task that was added first, and so on."""
    first = index.chunk(reader, 0, 1)
    schemas = ((int.from_bytes(key, "big"), data) for key, data in reader.scan(SCHEMAS, b""))
    return {
        "first_event": _event(index, reader, first[0][0], 0) if first else None,
        "last_event": _event(index, reader, index.last(reader), -1) if first else None,
        "schemas": [_schema(number, schema_or_bytes(number, data), None) for number, data in schemas],
        "scanned": None,
        "unreadable": None,
    }


def _scanned(index: Index, progress: OnProgress) -> dict[str, Any]:
    """Return what only the records know: those of the session, and those that they refer to."""
    counts: Counter[int] = Counter()  # of each schema; at 0 of those that can't be read
    first: EventFigures | None = None
    last: EventFigures | None = None
    with snapshot(index, progress) as (state, records):
        for record in records:
            schema = state.schemas.get(record.schema)
            if not record.is_readable or not isinstance(schema, Schema):
                counts[0] += 1
                continue
            counts[record.schema] += 1
            for event in _events(schema, record.number, values_of(record.number, record.data)[2]):
                first = event if first is None or event.time < first.time else first
                last = event if last is None or event.time > last.time else last
        schemas = [_schema(number, schema, counts[number]) for number, schema in state.schemas.items()]
    return {
        "first_event": first,
        "last_event": last,
        "schemas": schemas,
        "scanned": counts.total(),
        "unreadable": counts[0],
    }


def _event(index: Index, reader: Reader, number: int, place: int) -> EventFigures | None:
    """Return the first (*place* 0) or last (-1) event of record N."""
    record = reader.get(RECORDS, RECORD_KEY.pack(number)) or b""
    try:
        schema_number, _, values = values_of(number, record)
        events = list(_events(index.store.schemas.get(schema_number, reader), number, values))
    except CorruptRecord:
        return None
    return events[place] if events else None


def _events(schema: Schema, number: int, values: list[Any]) -> Iterator[EventFigures]:
    """Give the events in the history of a record, without what isn't one."""
    history = dict(zip(schema.fields, values, strict=False)).get("history")
    for event in history if isinstance(history, list) else ():
        match event:
            case [int() | float() as time, str() as state]:
                yield EventFigures(f"{schema.name}.{number}", time, state)
