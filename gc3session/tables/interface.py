"""Tables of bytes: what a store is built on, and what a new kind of store has to provide.

FORMAT.md says which keys and values each table has. A key has one value; the items of a table are sorted by the
bytes of their keys.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from ..errors import CommitUnknown, CorruptStore, InvalidArgument
from ..format.frame import RECORD_KEY

T = TypeVar("T")

RECORDS: Final = "records"
SCHEMAS: Final = "schemas"
META: Final = "meta"
SESSIONS: Final = "sessions"
STATES: Final = "states"
COUNTS: Final = "counts"
INDEX: Final = "index"
HOLDERS: Final = "holders"
UNIQUE: Final = "unique"
METADATA: Final = "metadata"
LEASES: Final = "leases"

TABLES: Final = (META, SCHEMAS, STATES, SESSIONS, COUNTS, INDEX, HOLDERS, UNIQUE, METADATA, LEASES, RECORDS)
"""All tables; the records are the last, as these are what grows."""

NUMBERING: Final = b"store"
"""The key of an item of `meta` that is locked while a session, a schema or a state gets its number."""

Item = tuple[bytes, bytes]

_CHUNK = 1024  # items that a walk through a table reads at a time
MALFORMED: Final = (struct.error, UnicodeDecodeError)
"""What reading a malformed key or value raises; LMDB's transactions end with CorruptStore instead."""

MISCOUNTED: Final = "the index has fewer tasks than it counts: 'gc3session repair' rebuilds it"

OnProgress = Callable[[int, int], None]
"""Called now and then with how much has been done, and how much there is in all."""


def no_progress(done: int, total: int) -> None:
    """The `OnProgress` that ignores the figures."""


def with_progress(items: Iterable[T], total: int, progress: OnProgress) -> Iterator[T]:
    """Give *items*, which are *total* in all; call *progress* after each 512 of them, and at the end."""
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        if done % 512 == 0:
            progress(done, total)
    progress(done, total)


class Compacted(NamedTuple):
    """The size of a store's file before and after it was compacted.

    Attributes:
        before: in bytes.
        after: in bytes.
    """

    before: int
    after: int


class Figure(NamedTuple):
    """One line of what a store reports about itself.

    Attributes:
        name: 'file', 'reader slots' and the like.
        text: the line as people read it.
        values: the same for programs: name -> None, bool, int, float, str, or a list of such dicts.
    """

    name: str
    text: str
    values: dict[str, Any]


class Standing(Enum):
    """What is known of where an item stands in a store's files."""

    REACHED = "something leads to it"
    LOST = "nothing leads to it, and it may be in use"
    FREE = "it is in no use"


class Remains(ABC):
    """All that stands in the files of a store, which may be damaged.

    Attributes:
        path: the file.
        is_newest: whether what is `REACHED` is of the newest committed state, and not of an earlier one.
        knows_free: whether all that is `FREE` is known to be.
        is_led_to: whether anything is `REACHED`.
    """

    path: str
    is_newest: bool
    knows_free: bool
    is_led_to: bool

    @abstractmethod
    def items(self, *standing: Standing) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield table, key and value of all items that stand so, in no order; some may stand there twice."""


class Contents(ABC):
    """One consistent state of the tables, to be read from end to end; damaged parts are left out."""

    @abstractmethod
    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of *key*, or None."""

    @abstractmethod
    def walk(self, table: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[Item]:
        """Yield the items of a table whose keys are at least *start* and begin with *prefix*, in order."""


class Reader(Contents):
    """A read transaction: the state of the tables that was the newest committed one when it began."""

    serial: int
    """A number that identifies the committed state: it is different after each commit of any process."""

    @abstractmethod
    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        """Return the items of those *keys* that are there, in the order of *keys*."""

    @abstractmethod
    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        """Return at most *limit* items whose keys are at least *start* and begin with *prefix*, in order."""

    def records(self, numbers: Sequence[int]) -> list[bytes | None]:
        """Return the records of some Ns, None for each that there isn't."""
        found = dict(self.get_many(RECORDS, [RECORD_KEY.pack(number) for number in numbers]))
        return [found.get(RECORD_KEY.pack(number)) for number in numbers]

    def scan_many(self, table: str, prefixes: Sequence[bytes]) -> list[Item]:
        """Return the items whose keys begin with one of some *prefixes*, which are sorted, in order."""
        return [item for prefix in prefixes for item in self.scan(table, prefix, None, prefix)]

    def walk(self, table: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[Item]:
        start = max(start, prefix)
        while items := self.scan(table, start, _CHUNK, prefix):
            yield from items
            start = items[-1][0] + b"\0"

    def release_memory(self) -> None:
        """Release memory that reading has taken; to be called now and then by what reads very many records."""


class ReadBytes:
    """Counts the bytes of what is read, and has a reader release memory after each 16 MB of them."""

    _LIMIT: Final = 16 << 20

    def __init__(self) -> None:
        self._count = 0

    def add(self, reader: Reader, count: int) -> None:
        """Count the bytes that *reader* has just read."""
        self._count += count
        if self._count > self._LIMIT:
            reader.release_memory()
            self._count = 0


class NoTables(Reader):
    """The state of tables that have not been made yet."""

    serial = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        return None

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        return []

    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        return []


class Writer(Reader):
    """A write transaction: it sees its own changes at once, others see them after the commit."""

    @abstractmethod
    def put(self, table: str, items: Sequence[Item]) -> None:
        """Set the values of some keys."""

    def add(self, table: str, items: Sequence[Item]) -> None:
        """Set the values of some keys, which are sorted and have none yet."""
        if items:
            self.put(table, items)

    @abstractmethod
    def delete(self, table: str, keys: Iterable[bytes]) -> None:
        """Delete some keys; those that aren't there are ignored."""

    def count(self, table: str, key: bytes, change: int) -> None:
        """Add to the number, of 8 bytes, under a key; there is none where it is 0.

        Raise CorruptStore, now or at the commit, if a number of the table `counts` would be less than 0, or one
        greater than it can be.
        """
        value = self.get(table, key)
        count = change + int.from_bytes(value or b"", "big")
        if (count < 0 and table == COUNTS) or count >> 63 > 0:
            raise CorruptStore(MISCOUNTED)
        if count > 0:
            self.put(table, [(key, count.to_bytes(8, "big"))])
        elif value is not None:
            self.delete(table, [key])

    def lock(self, table: str, keys: Iterable[bytes]) -> None:
        """Keep others from changing some items, those that are there, until the transaction ends.

        Where several write transactions run at once, what a change depends on is locked before it is
        read: first all session rows, then records by their Ns, then an item of `meta` for new numbers.
        """


class Tables(ABC):
    """The tables of one store. Threads may share them; each transaction belongs to one thread."""

    url: str
    """Where the store is, as `make_store` takes it."""

    read_only: bool

    concurrent_writers: ClassVar[bool] = False
    """Whether several write transactions run at once, so that one may have to run again because of another.

    If they do, a transaction must not wait for a lock of the program: the thread that holds it may be
    waiting for a row that this transaction has changed, and the server couldn't see that deadlock.
    """

    on_create: Callable[[Writer], None] | None = None
    """Called with the first transaction after the tables were created."""

    before_create: Callable[[], None] | None = None
    """Called before the tables are created; whatever it raises keeps them from being made."""

    pending_commit: CommitUnknown | None = None
    """Set when `write` raises without knowing whether its transaction was committed."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the tables were created; the first `write` creates them."""

    @abstractmethod
    def read(self) -> AbstractContextManager[Reader]:
        """Return the newest committed state, for `with`. No user code may run while it is open."""

    def contents(
        self,
        problem: Callable[[str], None],
        held: Callable[[], None] = lambda: None,
        *,
        writer: Writer | None = None,
    ) -> AbstractContextManager[Contents]:
        """Return the newest committed state for a check or a repair; damaged parts are left out.

        Args:
            problem: called with each fault in the structure below the tables.
            held: called once the state is fixed, before the search; again if the state had to be given up.
            writer: the writer of a transaction that has done nothing yet; nobody else can commit until it ends.

        This default searches nothing: it knows of no structure below the tables.
        """
        return _held(self.read(), held)

    def remains(self) -> AbstractContextManager[Remains] | None:
        """Return what stands in the store's files, for `with`; None for a store that has none, as by default."""
        return None

    def exclusive(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps other processes from opening the store's files.

        Raise StoreInUse if one has them open. By default there are no files.
        """
        return nullcontext()

    def rebuild(self, keep: Callable[[str], None], fill: Callable[[Tables], None]) -> None:
        """Replace the files of a store that has some, and is damaged.

        Args:
            keep: called with the path of a file before it is replaced, to keep a copy of it.
            fill: called with the new tables before they replace the old ones; its changes
                arrive together with the new tables, or not at all.

        Raise StoreInUse if another process has the store open.
        """
        raise InvalidArgument(f"{self.url}: a store of this kind has no files to be replaced")

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the newest committed value of *key*, or None."""
        with self.read() as reader:
            return reader.get(table, key)

    def is_busy(self) -> bool:
        """Return whether another process writes at the moment, so that `write` would wait for it."""
        return False

    @abstractmethod
    def write(
        self,
        unit: Callable[[Writer], T],
        committed: Callable[[T], None] = lambda result: None,
        aborted: Callable[[], object] = lambda: None,
    ) -> T:
        """Run *unit* in a transaction, commit, and return its result.

        If the unit raises, nothing is written. It runs again from the start if there was no room,
        or if another transaction came in between, so its effects outside the transaction must allow
        for that. Before it begins again *aborted* is called, so that what the unit has planned outside is given
        up while others may write; with `concurrent_writers` it isn't, as nothing is planned there.

        After the commit *committed* is called with the result, before any fork; once more if Ctrl-C
        interrupts the commit or it, so calling it a second time must do no harm.
        """

    def figures(self) -> list[Figure]:
        """Return what the store reports about itself, such as size and settings, in constant time."""
        return []

    def copy_to(self, path: str, progress: OnProgress = no_progress) -> None:
        """Write the newest committed state durably to a new directory *path*, as tables of the same kind.

        Raise InvalidArgument if the tables aren't kept in a directory.
        """
        raise InvalidArgument(f"{self.url}: a store of this kind can't be copied file by file")

    def compact(self, progress: OnProgress = no_progress) -> Compacted:
        """Give the space of what was deleted back to the system.

        Raise InvalidArgument if a store of this kind does that by itself.
        """
        raise InvalidArgument(f"{self.url}: a store of this kind isn't compacted from here; its server does that")

    @abstractmethod
    def suspend(self) -> None:
        """Close files and connections once no transaction is open; the next transaction opens them again."""

    @abstractmethod
    def close(self) -> None:
        """Release the tables. Closing twice does nothing."""

    @abstractmethod
    def discard(self) -> None:
        """Close the tables for everybody in this process: they are about to be deleted."""


@contextmanager
def _held(reading: AbstractContextManager[Reader], held: Callable[[], None]) -> Iterator[Contents]:
    with reading as reader:
        _ = reader.serial  # on a server the state is that of the first answer
        held()
        yield reader
