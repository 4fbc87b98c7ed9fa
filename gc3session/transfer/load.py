"""From a dump (dump.py) to a session: the same records, IDs, schemas and order of adding."""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, Any, Final, NamedTuple

from ..directory import SessionDirectory
from ..errors import ClashError, CorruptRecord, InvalidArgument
from ..format.frame import RECORD_KEY, read_header, seal, unseal, values_of
from ..format.schema import PERSISTABLE, Schema
from ..index.index_writer import Joining, Ledger
from ..records.ids import parse_id
from ..records.json_values import FieldsDecoder
from ..records.sequence import NEXT_KEY
from ..session.base import SessionBase
from ..session.session import Session
from ..system.filesystem import sync_directory, touch, write_durably
from ..system.temporary import made_whole
from ..tables.interface import META, RECORDS, SCHEMAS, OnProgress, Writer
from .dump import DUMP_VERSION, timestamp_files
from .dump_files import broken_compression, opened_lines

_BATCH_BYTES: Final = 16 << 20
_RECORD_BYTES: Final = 400  # of memory that a record takes beside its bytes, with its entry
_SHOWN: Final = 3  # IDs in a message
_KEPT: Final = 1000  # IDs in an exception
_OFTEN: Final = 512  # records between two calls of `progress`
_NO_DUMP: Final = 'this is not a dump: the first line of one begins with {"dump":'
_ID: Final = re.compile(r'\{"id":("(?:[^"\\]|\\.)*")')
_key = RECORD_KEY.pack


class _Clash(Exception):
    """Raised in the transaction that finds one."""


class Loaded(NamedTuple):
    """What has been loaded from a dump.

    Attributes:
        records: how many records.
        members: how many of them are in the session.
        skipped: how many records were skipped, as their IDs had been given out before.
        gone: how many of those are not in the store any more.
        shift: what was added to each N; 0 unless they were renumbered.
    """

    records: int
    members: int
    skipped: int
    gone: int
    shift: int


def load_dump(
    target: SessionBase | str | os.PathLike[str],
    file: str | os.PathLike[str] | IO[bytes],
    *,
    on_clash: str = "fail",
    progress: OnProgress | None = None,
) -> Loaded:
    """Load all that `dump_session` has written to a file; return how much that is.

    Args:
        target: a session, or the path of one.  One that isn't there is made, whole or not at all.
        file: the dump: a path (compressed if it ends with `.gz` or `.zst`), or a binary file.
        on_clash: what to do with records of the dump whose N was given out in the session's
            store before, whether it is in use now or not: 'fail'; 'skip' them, and take the
            others; or 'renumber': add the same number to each N of the dump.
        progress: called with the number of records read, and of all.

    A session that had nothing is the same as the dumped one then, its times included.  The
    classes are not needed.  What is loaded into a session that is there is written 16 MiB at a
    time; if that fails, what was written stays.

    Raise ClashError, with nothing written, for IDs that clash; InvalidArgument, naming the
    line, if the file isn't a whole dump; StoreFull if there is no room.
    """
    if on_clash not in ("fail", "skip", "renumber"):
        raise InvalidArgument(f"on_clash must be 'fail', 'skip' or 'renumber', not {on_clash!r}")
    with opened_lines(file) as lines:
        if isinstance(target, SessionBase):
            return Loading(target, lines, on_clash, progress).run()
        directory = SessionDirectory(target)
        if directory.check(create=True):
            with Session(directory.path, create=False) as session:
                return Loading(session, lines, on_clash, progress).run()
        return _made(directory, lines, progress)


def _made(directory: SessionDirectory, lines: IO[bytes], progress: OnProgress | None) -> Loaded:
    """Make a session from a dump, under another name until it is complete."""
    os.makedirs(os.path.dirname(directory.path), exist_ok=True)
    with made_whole(directory.path) as temporary:
        session = Session(temporary)
        try:
            loaded = Loading(session, lines, "fail", progress).run()
            session.close()
        except BaseException:
            session.store.discard()
            raise
    return loaded


class Loading:
    """The loading of one dump into one session.

    Args:
        session, on_clash, progress: as in `load_dump`.
        lines: of the dump.
        own: the Ns that a loading of this session took which was interrupted: these don't clash.
        reserve: called, in the transaction that takes the numbers of the dump, with the first and the next.
    """

    def __init__(
        self,
        session: SessionBase,
        lines: Iterable[bytes],
        on_clash: str,
        progress: OnProgress | None,
        *,
        own: range = range(0),
        reserve: Callable[[Writer, range], None] = lambda writer, numbers: None,
    ) -> None:
        self._session = session
        self._store = session.store
        self._lines = lines
        self._name = getattr(lines, "name", None)
        self._on_clash = on_clash
        self._progress = progress
        self._own = own
        self._reserve = reserve
        self._line = 0
        self._decoder = FieldsDecoder()
        self._decoder.moved = self._moved
        self._shift = 0
        self._as_is = False  # records can be taken over as they are
        self._before = 0  # Ns below this clash
        self._position = 0
        self._schemas: dict[int, Schema | bytes] = {}
        self._numbers: dict[int, int] = {}  # of schemas: in the dump -> here
        self._records: list[tuple[bytes, bytes]] = []
        self._joining = Joining([], [], [], [])
        self._bytes = 0
        self._read = self._members_read = 0
        self._loaded = self._members = self._skipped = self._gone = 0

    def run(self) -> Loaded:
        """Load all of it."""
        self._store.ensure_writable()
        self._session.flush()
        self._give_back()
        try:
            self._run()
        except ValueError as error:
            raise self._broken(error) from error
        except broken_compression() as error:
            raise self._broken(f"it is cut or damaged ({error})") from error
        self._give_back()
        return Loaded(self._loaded, self._members, self._skipped, self._gone, self._shift)

    def _give_back(self) -> None:
        """Return what this program has taken of the sequence: what is handed out would clash."""
        with self._store.lock:
            if self._store.tables.exists() and self._store.batch.journal is None:
                self._store.sequence.give_back()

    def _broken(self, what: object) -> InvalidArgument:
        where = f"{self._name if isinstance(self._name, str) else 'the dump'}, line {self._line}"
        kept = f"; {self._loaded} records before it are loaded" if self._loaded else ""
        return InvalidArgument(f"{where}: {what}{kept}")

    def _run(self) -> None:
        texts = self._texts()
        try:
            header = self._decoded(next(texts, ""))
        except ValueError as error:
            raise ValueError(_NO_DUMP) from error
        if "dump" not in header:
            raise ValueError(_NO_DUMP)
        if header["dump"] != DUMP_VERSION:
            raise ValueError(f"the version of this dump is {header['dump']!r}; only {DUMP_VERSION} is known here")
        self._header = header
        first, next_, count = (_number(header, name) for name in ("first", "next", "records"))
        text = next(texts, "")
        while text.startswith('{"schema":'):
            line = self._decoded(text)
            self._schemas[_number(line, "schema")] = _schema(line)
            text = next(texts, "")
        fresh = self._begin(first, next_, text)  # before any reference is decoded, as it may move them
        while text and "id" in (line := self._decoded(text)):
            self._take(line)
            if self._bytes >= _BATCH_BYTES:
                self._write()
            if self._progress is not None and self._read % _OFTEN == 0:
                self._progress(self._read, count)
            text = next(texts, "")
        if not text:
            raise ValueError("the dump is cut: its last line is missing")
        if line.get("end") != {"records": self._read, "members": self._members_read} or self._read != count:
            raise ValueError("lines were taken out of this dump, or put into it")
        if next(texts, ""):
            raise ValueError("there is more after the end of the dump")
        self._write()
        if fresh:
            self._set_times()
        if self._progress is not None:
            self._progress(self._read, count)

    def _texts(self) -> Iterator[str]:
        for line in self._lines:
            self._line += 1
            if not line.endswith(b"\n"):
                raise ValueError("the dump is cut: this line has no end")
            if not line.isascii():
                raise ValueError("it has other characters than ASCII")
            yield line.decode("ascii")

    def _decoded(self, text: str) -> dict[str, Any]:
        line = self._decoder.decode(text)
        if type(line) is not dict:
            raise ValueError("it is not a line of a dump")
        return line

    # -- the beginning

    def _begin(self, first: int, next_: int, text: str) -> bool:
        """Take the numbers of the dump and store its schemas; return whether the store was new.

        *text* is the line that has been read last.
        """
        if not 0 < first <= next_ < 1 << 63:
            raise ValueError("its first line has impossible numbers")
        here, stored = 1, False

        def unit(ledger: Ledger, writer: Writer) -> None:
            nonlocal here, stored
            here = RECORD_KEY.unpack(writer.get(META, NEXT_KEY) or _key(1))[0]
            mine = first >= self._own.start and min(here, next_) <= self._own.stop
            if first < here and self._on_clash == "fail" and not mine:
                raise _Clash
            self._reserve(writer, range(first, next_))
            shift = here - first if first < here and self._on_clash == "renumber" else 0
            writer.put(META, [(NEXT_KEY, _key(max(here, next_ + shift)))])
            ledger.mend(self._session._index.identity)
            stored = writer.entries(SCHEMAS) == 0
            if stored:
                rows = [(n.to_bytes(4, "big"), _bytes(schema)) for n, schema in self._schemas.items()]
                writer.put(SCHEMAS, rows)

        try:
            with self._store.lock:
                self._store.write(unit, numbers=False)
        except _Clash:
            raise self._clash(here, text) from None
        if first < here:
            self._shift = here - first if self._on_clash == "renumber" else 0
            self._before = here if self._on_clash == "skip" else 0
        self._as_is = stored and not self._shift
        for number, schema in self._schemas.items():
            if stored:
                self._numbers[number] = number
            elif isinstance(schema, Schema):
                self._numbers[number] = self._store.schemas.stored(schema).number
        return here == 1

    def _clash(self, here: int, text: str) -> ClashError:
        """Return the exception that says what clashes; the rest of the dump, from *text*, is read for it."""
        ids: list[str] = []
        count = 0
        for id_ in self._ids(text):
            parsed = parse_id(id_)
            if parsed is not None and parsed[1] < here:
                count += 1
                if count <= _KEPT:
                    ids.append(id_)
        more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
        return ClashError(
            f"{self._store.url} has given out {', '.join(ids[:_SHOWN])}{more} before; nothing was loaded. Load into"
            " a new session, or pass on_clash='renumber' to give all of the dump new IDs, or on_clash='skip' to"
            " take only those whose IDs are new",
            tuple(ids),
        )

    def _ids(self, text: str) -> Iterator[str]:
        """Give the IDs of a line of the dump and of those after it."""
        for line in chain([text], self._texts()):
            match = _ID.match(line)
            if match:
                yield str(self._decoder.decode(match[1]))

    # -- records

    def _moved(self, number: int) -> int:
        return number + self._shift

    def _take(self, line: dict[str, Any]) -> None:
        """Put the record of a line into the batch."""
        parsed = parse_id(line["id"])
        order = line.get("order")
        if parsed is None or not (order is None or type(order) is int):
            raise ValueError(f"{line['id']!r} is not an ID, or its order is not a number")
        name, number = parsed
        position = number if order is None else order
        if not (self._position < position and number <= position < self._header["next"]):
            raise ValueError(f"{line['id']} is not in its place: the lines of a dump are sorted by order")
        if number < self._header["first"]:
            raise ValueError(f"{line['id']} is less than the first N of the dump")
        self._position = position
        self._read += 1
        self._members_read += order is not None
        if number < self._before:
            self._skip(number)
            return
        schema, state, record = self._record(line, name, number)
        self._records.append((_key(number + self._shift), record))
        self._bytes += _RECORD_BYTES + len(record)
        if order is not None:
            self._joining.orders.append(order + self._shift)
            self._joining.numbers.append(number + self._shift)
            self._joining.schemas.append(schema)
            self._joining.states.append(state)

    def _skip(self, number: int) -> None:
        self._skipped += 1
        if self._store.tables.get(RECORDS, _key(number)) is None:
            self._gone += 1

    def _record(self, line: dict[str, Any], name: str, number: int) -> tuple[int, str, bytes]:
        """Return the schema number here, the state, and the record of a line."""
        if "record" in line:
            return self._raw(line, name, number)
        told = line.get("schema")
        schema = self._schemas.get(told) if type(told) is int else None
        fields = line.get("fields")
        if not isinstance(schema, Schema) or type(fields) is not dict or schema.name != name:
            raise ValueError(f"{line['id']} has no fields, or its schema {told!r} is not in the dump")
        if len(fields) != len(schema.fields):
            raise ValueError(f"the fields of {line['id']} are not those of its schema")
        try:
            values = [fields[field] for field in schema.fields]
        except KeyError as error:
            raise ValueError(f"{line['id']} lacks the field {error}") from error
        revision = _number(line, "revision")
        here = self._numbers[schema.number]
        body = self._decoder.pack([here, revision, values])
        state = "" if schema.kind == PERSISTABLE else str(fields.get("state", ""))
        return here, state, seal(number + self._shift, body)

    def _raw(self, line: dict[str, Any], name: str, number: int) -> tuple[int, str, bytes]:
        """Return the same of a line that has the bytes of the record."""
        record = b64decode(line["record"], validate=True)
        named = [n for n, s in self._schemas.items() if isinstance(s, Schema) and s.name == name]
        here = self._numbers[named[0]] if named else 0
        if "state" in line:  # it can't be read
            sound = seal(number, record[4:]) == record
            if sound and not self._as_is:
                raise ValueError(f"{line['id']} has a damaged schema: it can be loaded into a new session only")
            return here, str(line["state"]), record
        try:
            written, revision, values = values_of(number, record)
            _, _, start = read_header(record)
        except CorruptRecord as error:
            raise ValueError(f"the bytes of {line['id']} are damaged: {error}") from error
        schema = self._schemas.get(written)
        if not isinstance(schema, Schema):
            raise ValueError(f"the schema of {line['id']} is damaged")  # noqa: TRY004
        if self._shift:
            raise ValueError(f"{line['id']} is nested too deep to be renumbered")
        here = self._numbers[written]
        body = unseal(number, record)
        if here != written:
            body = b"\x93" + self._decoder.pack(here) + self._decoder.pack(revision) + record[start:]
        state = "" if schema.kind == PERSISTABLE else str(values[schema.fields.index("state")])
        return here, state, seal(number, body)

    def _write(self) -> None:
        """Write the batch."""
        records, joining = sorted(self._records), self._joining
        if joining.orders == joining.numbers:
            joining = joining._replace(numbers=joining.orders)

        def unit(ledger: Ledger, writer: Writer) -> None:
            writer.put(RECORDS, records)
            if joining.orders:
                ledger.join(self._session._index.identity, joining)

        if records:
            with self._store.lock:
                self._store.write(unit, numbers=False)
        self._loaded += len(records)
        self._members += len(joining.orders)
        self._records, self._joining, self._bytes = [], Joining([], [], [], []), 0

    # -- the end

    def _set_times(self) -> None:
        """Give the session the times of the dumped one."""
        path: str | None = getattr(self._session, "path", None)
        if path is None or self._header.get("created") is None:
            return
        created, finished = timestamp_files(path)
        command = str(self._header.get("command") or "")
        write_durably(str(created), command.encode("utf-8", "surrogateescape"))
        for file, told in ((created, "created"), (finished, "finished")):
            if self._header.get(told) is not None:
                time = self._header[told]
                if type(time) is not int:
                    raise ValueError(f"its {told!r} is not a time in ns")
                try:
                    touch(file, time)
                except OverflowError as error:
                    raise ValueError(f"its {told!r} is not a time in ns") from error
        sync_directory(path)


def _number(line: dict[str, Any], name: str) -> int:
    """Return a number of a line.  Raise ValueError if it isn't one."""
    value = line.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"its {name!r} is not a number")
    return value


def _schema(line: dict[str, Any]) -> Schema | bytes:
    """Return the schema of a line, or the bytes of a damaged one."""
    number = _number(line, "schema")
    if "bytes" in line:
        return b64decode(line["bytes"], validate=True)
    tag, name, kind, fields = (line.get(key) for key in ("tag", "name", "kind", "fields"))
    if not (
        0 < number < 1 << 31
        and isinstance(tag, str)
        and isinstance(name, str)
        and kind in (0, 1, 2)
        and isinstance(fields, list)
        and all(isinstance(field, str) for field in fields)
    ):
        raise ValueError("it is not a schema")
    return Schema(number, tag, name, kind, tuple(fields))


def _bytes(schema: Schema | bytes) -> bytes:
    return schema.to_bytes() if isinstance(schema, Schema) else schema
