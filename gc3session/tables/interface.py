"""Tables of bytes: what a store is written over, and what a second kind of store must provide.

The tables, their keys and values (numbers are big-endian, `order` is the place of a task in
its session; see index/entries.py)::

    table         key                        value
    records       N (8)                      record (format/frame.py)
    schemas       schema number (4)          schema (format/schema.py)
    meta          name                       b'format', b'store', b'next ...' (store/reading.py)
    sessions      identity (16)              session row (index/entries.py)
    members *     session (4)                order (8), schema number (4; bit 31: late), line (8)
    states *      session (4), state UTF-8   order (8)
    late          order (8)                  N (8)
    late_members  N (8), session (4)         order (8)

A table with a star holds a sorted set of values for each key, all of one length; the others
hold one value for each key.  Both are sorted by bytes.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from ..errors import CommitUnknown, InvalidArgument
from ..system.number_set import Numbers
from ..system.signals import signal_safe

T = TypeVar("T")

RECORDS: Final = "records"
SCHEMAS: Final = "schemas"
META: Final = "meta"
SESSIONS: Final = "sessions"
MEMBERS: Final = "members"
STATES: Final = "states"
LATE: Final = "late"
LATE_MEMBERS: Final = "late_members"

PLAIN_TABLES: Final = (RECORDS, SCHEMAS, META, SESSIONS, LATE, LATE_MEMBERS)
SET_TABLES: Final = (MEMBERS, STATES)

Item = tuple[bytes, bytes]

_CHUNK = 1024
MALFORMED: Final = (struct.error, UnicodeDecodeError)
"""What reading keys and values raises that aren't as above; tables make CorruptStore of it at a transaction's end."""

OnProgress = Callable[[int, int], None]
"""Called now and then with how much has been done, and how much there is."""


def no_progress(done: int, total: int) -> None:
    """The `OnProgress` of whoever does not want to know."""


def with_progress(items: Iterable[T], total: int, progress: OnProgress) -> Iterator[T]:
    """Give *items*, which are *total* in all; call *progress* after each 512 of them, and at the end."""
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        if done % 512 == 0:
            progress(done, total)
    progress(done, total)


class Compacted(NamedTuple):
    """What compacting has done.

    Attributes:
        before: bytes of the store's file before it.
        after: bytes after it.
    """

    before: int
    after: int


class Figure(NamedTuple):
    """What a kind of store tells of itself.

    Attributes:
        name: 'file', 'reader slots' and the like.
        text: for people.
        values: for programs: name -> None, bool, int, float, str, or a list of such dicts.
    """

    name: str
    text: str
    values: dict[str, Any]


class Salvaged(NamedTuple):
    """What has been found in a damaged store.

    Attributes:
        message: what has been made of it, or would be.
        members: whether the table of members could be read whole.
        replaced: the name of the file that a new one replaces, '' if none does.
    """

    message: str
    members: bool
    replaced: str


class Contents(ABC):
    """One consistent state of the tables, from end to end; what is damaged is left out."""

    @abstractmethod
    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of *key*, or None."""

    @abstractmethod
    def entries(self, table: str) -> int:
        """Return how many items the table has, of a set table how many values in all."""

    @abstractmethod
    def walk(self, table: str) -> Iterator[Item]:
        """Give all items of a table that is no set table, in order."""

    @abstractmethod
    def keys(self, table: str) -> Iterator[bytes]:
        """Give all keys of a table, in order."""

    @abstractmethod
    def walk_values(self, table: str, key: bytes) -> Iterator[bytes]:
        """Give all values of *key* in a set table, in order."""


class Reader(Contents):
    """One consistent state of the tables: the newest committed one when it was begun."""

    serial: int
    """A number of the committed state: another one once anybody has committed."""

    @abstractmethod
    def newest(self) -> int:
        """Return the `serial` that a reader would have that is begun now."""

    @abstractmethod
    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        """Return the items of those *keys* that are there, in the order of *keys*."""

    @abstractmethod
    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        """Return at most *limit* items whose keys are at least *start* and begin with *prefix*, in order."""

    def walk(self, table: str) -> Iterator[Item]:
        start = b""
        while items := self.scan(table, start, _CHUNK):
            yield from items
            start = items[-1][0] + b"\0"

    def keys(self, table: str) -> Iterator[bytes]:
        if table in SET_TABLES:
            return (key for key, _ in self.counts(table, b""))
        return (key for key, _ in self.walk(table))

    def walk_values(self, table: str, key: bytes) -> Iterator[bytes]:
        start = b""
        while values := self.values(table, key, start, _CHUNK):
            yield from values
            after = int.from_bytes(values[-1], "big") + 1  # all of one length
            if after >> 8 * len(values[-1]):
                return
            start = after.to_bytes(len(values[-1]), "big")

    def expect(self, table: str, keys: Iterable[bytes]) -> None:
        """Hear which keys `get` will be asked for one by one: a distant store reads them all at once."""

    def expect_values(self, table: str, key: bytes, starts: Iterable[bytes]) -> None:
        """Hear which single values of *key* `values` will be asked for: each the first from one of *starts* on."""

    @abstractmethod
    def values(self, table: str, key: bytes, start: bytes, limit: int) -> list[bytes]:
        """Return at most *limit* values of *key* that are at least *start*, in order."""

    @abstractmethod
    def first_values(self, table: str, key: bytes, starts: Iterable[bytes]) -> list[bytes | None]:
        """Return for each of *starts* the first value of *key* that is at least that, or None."""

    @abstractmethod
    def last_value(self, table: str, key: bytes) -> bytes | None:
        """Return the greatest value of *key*, or None if it has none."""

    @abstractmethod
    def count(self, table: str, key: bytes) -> int:
        """Return how many values *key* has."""

    @abstractmethod
    def counts(self, table: str, prefix: bytes) -> list[tuple[bytes, int]]:
        """Return each key that begins with *prefix*, and how many values it has."""

    def relax(self) -> None:
        """Let go of memory that reading has taken; for those who read very much in one transaction."""


class NoTables(Reader):
    """The state of tables that have not been made yet."""

    serial = 0

    def newest(self) -> int:
        return 0

    def get(self, table: str, key: bytes) -> bytes | None:
        return None

    def get_many(self, table: str, keys: Sequence[bytes]) -> list[Item]:
        return []

    def scan(self, table: str, start: bytes, limit: int | None = None, prefix: bytes = b"") -> list[Item]:
        return []

    def entries(self, table: str) -> int:
        return 0

    def values(self, table: str, key: bytes, start: bytes, limit: int) -> list[bytes]:
        return []

    def first_values(self, table: str, key: bytes, starts: Iterable[bytes]) -> list[bytes | None]:
        return [None for _ in starts]

    def last_value(self, table: str, key: bytes) -> bytes | None:
        return None

    def count(self, table: str, key: bytes) -> int:
        return 0

    def counts(self, table: str, prefix: bytes) -> list[tuple[bytes, int]]:
        return []


class Writer(Reader):
    """A transaction: what it changes is seen by itself at once, by others after the commit."""

    @abstractmethod
    def put(self, table: str, items: Sequence[Item]) -> None:
        """Set the values of some keys."""

    def add(self, table: str, items: Sequence[Item]) -> None:
        """Set the values of some keys (sorted) that have none yet."""
        if items:
            self.put(table, items)

    @abstractmethod
    def delete(self, table: str, keys: Iterable[bytes]) -> None:
        """Delete some keys; those that aren't there are passed over."""

    @abstractmethod
    def put_values(self, table: str, key: bytes, values: Sequence[bytes]) -> None:
        """Add values (sorted), which are not there yet, to the set of *key*."""

    @abstractmethod
    def delete_values(self, table: str, key: bytes, values: Iterable[bytes]) -> None:
        """Take values out of the set of *key*; those that aren't there are passed over."""


class Ahead(ABC):
    """A write that has begun, and parts of which are sent before the rest is known."""

    @abstractmethod
    def send(self, part: Callable[[Writer], bool]) -> bool:
        """Do a part of the write, which adds new items only.

        Return False if *part* does or if it fails: then none of what has been sent so far is written.
        """

    @abstractmethod
    def go_on(self) -> None:
        """Send what the way to the server has room for; never waits for it."""

    @abstractmethod
    def write(
        self,
        rest: Callable[[Writer], T],
        unit: Callable[[Writer], T],
        committed: Callable[[T], None],
        aborted: Callable[[], object],
    ) -> T:
        """Complete the write with *rest*, and commit; to be called once.

        If that can't be done, do what `Tables.write` does with *unit*, which is all of it.
        """

    @abstractmethod
    def drop(self) -> None:
        """Give up what was sent.  Does nothing after `write`."""

    @abstractmethod
    def forked(self) -> None:
        """Called in a forked child, which uses it no more."""


class Tables(ABC):
    """The tables of one store.  Threads may share it; the transactions are theirs."""

    url: str
    """Where it is, as `make_store` takes it."""

    read_only: bool

    side_by_side: ClassVar[bool] = False
    """Whether writers don't wait for each other: their transactions may have to run again.

    Then no lock may be waited for inside a transaction: who holds it may wait for a row that this
    one has changed, and nobody would see that they wait for each other.
    """

    on_create: Callable[[Writer], None] | None = None
    """Called with the first transaction of tables that are being made."""

    doubt: CommitUnknown | None = None
    """Set when `write` has raised, if it is not known whether its transaction was committed."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the tables have been made; the first `write` makes them."""

    @abstractmethod
    def read(self) -> AbstractContextManager[Reader]:
        """Return the newest committed state.  No user code may run while it is open."""

    def contents(
        self,
        problem: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda done, total: None,
        held: Callable[[], None] = lambda: None,
        *,
        alone: Writer | None = None,
    ) -> AbstractContextManager[Contents]:
        """Return the newest committed state for a check or a repair; what is damaged is left out.

        Args:
            problem: called with each fault in the structure below the tables.
            progress: called with how far the search for those has come, and of what.
            held: called once the state is held, before the search.
            alone: that of the unit of `write` which asks, and has done nothing yet: nobody else can commit meanwhile.

        Here there is nothing below the tables that could be looked at.
        """
        return _held(self.read(), held)

    def copies(self) -> Iterator[Item]:
        """Give items of the table `schemas`, also old ones, that stand anywhere in the store; here none."""
        return iter(())

    def alone(self) -> AbstractContextManager[None]:
        """Return what keeps others from the store's files: within `with`, nobody has them open.

        Raise StoreInUse if somebody has; here there are no files.
        """
        return nullcontext()

    def rebuild(
        self,
        keep: Callable[[str], None],
        listed: Numbers,
        finish: Callable[[Tables, Salvaged], None],
        *,
        dry_run: bool,
    ) -> Salvaged | None:
        """Make the store anew from what can be read of it, where its structure is damaged.

        Args:
            keep: called with the path of a file that is about to be replaced; it makes sure that it stays.
            listed: the Ns that the session is known to have.
            finish: called with the new tables before they take the place of the old ones: what it
                does to them is there with them or not at all.
            dry_run: only tell what is there.

        Return None if that can't be done, as here: such a store has no structure that could be read.
        Raise StoreInUse if another process has the store open.
        """
        return None

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the newest committed value of *key*, or None."""
        with self.read() as reader:
            return reader.get(table, key)

    @abstractmethod
    def write(
        self,
        unit: Callable[[Writer], T],
        committed: Callable[[T], None] = lambda result: None,
        aborted: Callable[[], object] = lambda: None,
    ) -> T:
        """Run *unit* in a transaction, commit, and return its result.

        The unit runs again from the start if the first attempt found no room, or came between
        other transactions, so what it does outside the transaction must bear that.  If it raises, nothing is written.
        Before it runs again *aborted* is called, which gives back every lock that the unit took:
        who has the right to write meanwhile may wait for that one.  (Where writers work side by side
        the locks were taken before, and are kept.)
        After the commit *committed* is called with the result, before any fork, and even if the
        handler of a signal raises just then: it must bear being called once more from the start.
        """

    def ahead(self) -> Ahead | None:
        """Begin a write of very many new items; None where it is of no use to send them early."""
        return None

    @abstractmethod
    def after_write(self) -> None:
        """Do what is left to do after a write, once nobody waits for it."""

    def figures(self) -> list[Figure]:
        """Return what this kind of store tells of itself: its size, its settings; in constant time."""
        return []

    def copy_to(self, path: str, progress: OnProgress = no_progress) -> None:
        """Write the newest committed state to a new directory *path*, durably: tables of the same kind.

        Raise InvalidArgument if the tables aren't kept in a directory.
        """
        raise InvalidArgument(f"{self.url}: a store of this kind can't be copied file by file")

    def compact(self, progress: OnProgress = no_progress) -> Compacted:
        """Give the room of what was deleted back to the system.

        Raise InvalidArgument if a store of this kind does that by itself.
        """
        raise InvalidArgument(f"{self.url}: a store of this kind isn't compacted from here; its server does that")

    @abstractmethod
    def suspend(self) -> None:
        """Close the files once no transaction is open; the next one opens them again."""

    @abstractmethod
    def close(self) -> None:
        """Give the tables back.  Closing twice does nothing."""

    @abstractmethod
    def discard(self) -> None:
        """Close the tables for all that use them in this process: they are about to be deleted."""


@signal_safe
def _held(reading: AbstractContextManager[Reader], held: Callable[[], None]) -> Iterator[Contents]:
    with reading as reader:
        held()
        yield reader
