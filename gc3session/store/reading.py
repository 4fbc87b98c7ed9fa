"""What a store reads: records and objects, the committed ones and over them those of the batch."""

from __future__ import annotations

import threading
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgpack

from ..errors import ClosedError, CorruptRecord, InvalidArgument, LoadError, NotFound, UnknownFormat
from ..format.frame import FORMAT, RECORD_KEY, schema_number_or_0, values_of
from ..format.schema import PERSISTABLE
from ..index.entries import moved_key
from ..index.membership import Membership
from ..records.batch import Batch, Journal
from ..records.ids import parse_id
from ..records.schemas import Schemas
from ..records.sequence import NEXT_KEY
from ..tables.interface import META, RECORDS, Reader, Tables, Writer
from ..tasks import Origin, Persistable, get_stamp, mark_of, set_stamp
from .changes import Changes
from .loader import Loader

if TYPE_CHECKING:
    from ..index.entries import Entry

_FORMAT_KEY, _STORE_KEY = b"format", b"store"
_key = RECORD_KEY.pack


class PendingCommit(NamedTuple):
    """A commit of which it is not known yet whether it went through.

    Attributes:
        went_through: returns whether it did; raises StoreUnreachable while the server isn't there.
        committed: to be called if it did.
        journal: what undoes the call that made it, if it did not; empty if the batch is kept.
    """

    went_through: Callable[[], bool]
    committed: Callable[[None], object]
    journal: Journal = []  # noqa: RUF012 (it is never changed)


class StoreReading:
    """The reading half of a store.

    Attributes:
        tables: where all is kept.
        schemas, loader: what has been read from them.
        batch: what is not written yet.
        changes: of objects that are not saved yet.
        indexes: of the sessions that use the store here.
        lock: held for each operation; threads may share a store.
    """

    tables: Tables
    schemas: Schemas
    loader: Loader
    batch: Batch
    changes: Changes
    indexes: list[Membership]
    lock: threading.RLock
    _identity: bytes | None
    _pending_commit: PendingCommit | None
    """A commit of which it is not known yet whether it went through."""
    _closed: bool

    @property
    def url(self) -> str:
        """Where the store is, as `make_store` takes it."""
        return self.tables.url

    @property
    def read_only(self) -> bool:
        """Whether the store was opened so that it is never written."""
        return self.tables.read_only

    @property
    def identity(self) -> bytes | None:
        """16 bytes that were drawn when the store was made; None before that."""
        if self._identity is None and not self._closed:
            with self.reading():
                pass
        return self._identity

    def is_same(self, other: object) -> bool:
        """Return whether *other* is at the same place: a copy of a store has its identity, too."""
        return self is other or (
            isinstance(other, StoreReading)
            and self.url == other.url
            and self.identity == other.identity
            and self.identity is not None
        )

    @abstractmethod
    def _resolve_commit(self) -> None:
        """Find out what became of the pending commit.  Raise StoreUnreachable if that can't be known yet."""

    # -- reading

    def reading(self) -> Any:
        """Return the newest committed state, for `with`.  Raise UnknownFormat if it isn't ours."""
        if self._closed:
            raise ClosedError(f"the store {self.url} is closed; open it again")
        if self._pending_commit is not None:
            self._resolve_commit()
        if self._identity is None and self.tables.exists():
            with self.tables.read() as reader:
                self._check_format(reader)
        return self.tables.read()

    def _check_format(self, reader: Reader) -> None:
        data = reader.get(META, _FORMAT_KEY)
        if data != msgpack.packb(FORMAT):
            raise UnknownFormat(
                f"the store {self.url} has the format version {_shown(data)}; this version of gc3session"
                f" knows version {FORMAT} only: upgrade gc3session"
            )
        self._identity = reader.get(META, _STORE_KEY)

    def _on_create(self, writer: Writer) -> None:
        items = [(_FORMAT_KEY, msgpack.packb(FORMAT)), (_STORE_KEY, uuid.uuid4().bytes), (NEXT_KEY, _key(1))]
        writer.put(META, items)

    def record(self, reader: Reader, number: int) -> bytes | None:
        """Return the record of N as this program sees it, or None."""
        record = self.batch.records.get(number)
        return reader.get(RECORDS, _key(number)) if record is None else record or None

    def records_by_number(self, reader: Reader, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return the records of some Ns as this program sees them, but for those that there aren't."""
        entries = [(number, 0) for number in sorted({*numbers})]
        records = zip(entries, self.records(reader, entries), strict=True)
        return {number: record for (number, _), record in records if record is not None}

    def name_of(self, reader: Reader, number: int) -> str:
        """Return what the ID of record N begins with."""
        record = self.record(reader, number)
        return "" if record is None else self.schemas.name(schema_number_or_0(record), reader)

    def names_of(self, reader: Reader, numbers: Iterable[int]) -> dict[int, str]:
        """Return what `name_of` does for those of some Ns that have records."""
        records = self.records_by_number(reader, numbers)
        return {n: self.schemas.name(schema_number_or_0(record), reader) for n, record in records.items()}

    def schema_number_of(self, reader: Reader, number: int) -> int:
        """Return the schema number of record N; 0 if it can't be told."""
        record = self.batch.records.get(number) or reader.get(RECORDS, _key(number))
        return 0 if record is None else schema_number_or_0(record)

    def state_of(self, reader: Reader, number: int) -> str | None:
        """Return the state of record N as this program sees it; None if it can't be told."""
        state = self.batch.states.get(number)
        return self.committed_state(reader, number) if state is None else state

    def committed_state(self, reader: Reader, number: int) -> str | None:
        """Return the state in the committed record N; None if it can't be told."""
        record = reader.get(RECORDS, _key(number))
        if record is None:
            return None
        try:
            schema_number_, _, values = values_of(number, record)
            schema = self.schemas.get(schema_number_, reader)
            return "" if schema.kind == PERSISTABLE else str(values[schema.fields.index("state")])
        except (CorruptRecord, LookupError, ValueError):
            return None

    def records(self, reader: Reader, entries: list[Entry]) -> list[bytes | None]:
        """Return the records of some entries, None for each that is gone."""
        found = reader.records([number for number, _ in entries])
        if self.batch.records:
            staged = [self.batch.records.get(number) for number, _ in entries]
            found = [a if b is None else b or None for a, b in zip(found, staged, strict=True)]
        return found

    def objects(
        self, entries: list[Entry], records: list[bytes | None]
    ) -> tuple[list[Persistable | LoadError], list[Persistable]]:
        """Return the objects of some entries, in their order, and all objects that were made with them.

        A LoadError stands in the place of one that can't be loaded; one whose record is gone is
        left out.  No transaction may be open: a class's `upgrade_record` is the user's code.
        """
        loaded: list[Persistable | LoadError] = []
        self.loader.notice_classes()
        numbers, let_go = [number for number, _ in entries], self.changes.records
        try:
            together = self.loader.together(numbers, records) if let_go.keys().isdisjoint(numbers) else None
            if together is not None:
                loaded += together
            else:
                for (number, schema), record in zip(entries, records, strict=True):
                    if record is not None:
                        loaded.append(self._object(number, schema, record))
        finally:
            built, self.loader.built = self.loader.built, []
        return loaded, [] if self.read_only else built

    def remember(self, objs: list[Persistable]) -> None:
        """Hold objects that were given and may be changed after that, and look at them later."""
        if not self.read_only and not self._closed:
            with self.lock:
                self.changes.remember(objs)
                self.changes.let_go()

    def loaded(self, number: int, record: bytes) -> Persistable:
        """Return the object of a record, or of what it was changed to and not saved; see `Loader.load`."""
        changed = self.changes.records.get(number)
        if changed is None or self.loader.living(number) is not None:
            return self.loader.load(number, record)
        obj = self.loader.load(number, changed.record)
        stamp = get_stamp(obj)
        set_stamp(obj, stamp._replace(revision=changed.revision, state=changed.former_state))
        self.changes.note(obj, number)
        return obj

    def _object(self, number: int, schema: int, record: bytes) -> Persistable | LoadError:
        try:
            return self.loaded(number, record)
        except LoadError as error:
            with self.reading() as reader:
                id_ = f"{self.schemas.name(schema, reader)}.{number}"
            failure = type(error)(f"{id_} in {self.url}: {error}", id_)
            failure.__cause__ = error
            return failure

    def moved_to(self, identity: bytes) -> str | None:
        """Return where a session is that has left this store, as `store.url` says it; None if it hasn't."""
        with self.reading() as reader:
            moved = reader.get(META, moved_key(identity))
        return None if moved is None else moved.decode("ascii", "replace")

    # -- IDs

    @staticmethod
    def number_of(id_: str) -> int:
        """Return the N of an ID.  Raise NotFound if it can't be one."""
        return (parse_id(id_) or StoreReading._no_id(id_))[1]

    @staticmethod
    def _no_id(id_: object) -> NoReturn:
        raise NotFound(f"{id_!r} is not an ID: they are of the form ClassName.N")

    def _not_found(self, id_: str) -> NotFound:
        return NotFound(f"there is no object {id_} in {self.url}; Store.list() gives the IDs of all", id_)

    def own_number(self, obj: Persistable) -> int | None:
        """Return the N of *obj* in this store, or None if it has no ID yet.

        Raise InvalidArgument if it isn't a persistable, or belongs to another store.
        """
        if not isinstance(obj, Persistable):
            raise InvalidArgument(
                f"only objects of attrs classes derived from Persistable or Task can be stored, not {obj!r}"
            )
        stamp = mark_of(obj)
        if stamp is None:
            return None
        if isinstance(stamp, Origin):
            return stamp.number if stamp.identity == self.identity else None
        if not self.is_same(stamp.store):
            which = f"the store {stamp.store.url}"
            if stamp.store.url == self.url:
                which = f"an earlier store at {self.url}, which was destroyed or replaced"
            raise InvalidArgument(f"{obj!r} belongs to {which}; store a copy of it here (copy.copy)")
        return stamp.number


def _shown(version: bytes | None) -> str:
    try:
        return str(msgpack.unpackb(version or b""))
    except (ValueError, msgpack.UnpackException):
        return repr(version)
