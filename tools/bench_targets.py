"""What `tools/bench.py` measures: gc3session, and other ways of keeping the same tasks.

The tasks have 11 fields.  gc3session keeps each as a `Job`; for the others it is a `PlainJob`, an ordinary attrs
class with the same fields.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice, starmap
from operator import attrgetter
from struct import Struct
from typing import Any, ClassVar, Final, Protocol

import attrs
import msgpack

import lmdb
from gc3session import Session, Task

BATCH: Final = 100_000  # tasks that are recorded, or changed, in one transaction
MAP: Final = 1 << 35  # bytes of address space; valgrind doesn't give as much as usual
STATES: Final = ("NEW", "SUBMITTED", "RUNNING", "TERMINATED")


@attrs.define
class Job(Task):
    """The task that gc3session keeps: the 5 fields of Task, and 6 more."""

    command: str = ""
    mesh: str = ""
    cores: int = 1
    tolerance: float = 0.0
    inputs: list[str] = attrs.Factory(list)
    limits: dict[str, int] = attrs.Factory(dict)


FIELDS: Final = tuple(field.name for field in attrs.fields(Job))
PlainJob: Final[Any] = attrs.make_class("PlainJob", FIELDS, eq=False, slots=True)
AnyJob = Any  # a Job or a PlainJob
fields_of: Final = attrgetter(*FIELDS)
pack: Final[Any] = msgpack.Packer().pack
unpack: Final[Any] = msgpack.unpackb


def build(job: type[Any], number: int, first: int = 0) -> list[AnyJob]:
    """Return that many tasks of a class, all different; the n-th has the same values in both classes."""
    return [
        job(
            jobname=f"job-{i:07d}",
            state=STATES[i % 4],
            returncode=0 if i % 4 == 3 else None,
            history=[[1.7e9 + i / 7, STATES[i % 4]]],
            extra={},
            command=f"simulate --case {i}",
            mesh="coarse",
            cores=i % 64,
            tolerance=1e-6 * i,
            inputs=[f"in-{i}.dat"],
            limits={"hours": i % 24},
        )
        for i in range(first, first + number)
    ]


def change_state(task: AnyJob, state: str) -> None:
    """Set the state of a PlainJob and note the time, which a Job does by itself."""
    task.state = state
    task.history.append([time.time(), state])


class Target(Protocol):
    """One way of keeping tasks, in a store that is made with it.

    Args:
        directory: where the store is to be; it does not exist yet.
        url: the PostgreSQL server, for the targets that need one.
    """

    directory: str
    url: str
    name: ClassVar[str]
    job: ClassVar[type[Any]] = PlainJob
    is_for_all_threads: ClassVar[bool] = True  # or each needs one of its own, on the same directory
    read_only: bool = False  # whether a session is opened that can't write; the others can always
    rewrites: int = 0  # how often all tasks have been changed

    def __init__(self, directory: str, url: str) -> None:
        self.directory = directory
        self.url = url
        self.open()

    def open(self) -> None:
        """Open the store; make it if it is not there."""

    def close(self) -> None:
        """Close the store."""

    def reopen(self, *, read_only: bool) -> None:
        """Have it open, as one that can only read or as one that can write."""
        if read_only != self.read_only:
            self.close()
            self.read_only = read_only
            self.open()

    def delete(self) -> None:
        """Delete the store, which is closed."""
        shutil.rmtree(self.directory)

    def prepare(self, tasks: list[AnyJob]) -> list[Any]:
        """Return what is recorded for some tasks; the time that this takes is not measured."""
        return tasks

    def record(self, tasks: list[Any]) -> None:
        """Record tasks, with a call for each; they need not be on disk before `commit`."""
        self.record_many(tasks)

    def record_many(self, tasks: list[Any]) -> None:
        """Record tasks in as few calls as possible; they need not be on disk before `commit`."""

    def commit(self) -> None:
        """Write what was recorded to the disk."""

    def add(self, task: AnyJob) -> None:
        """Record one task, which is on disk afterwards."""

    def remove(self, key: Any) -> None:
        """Remove one task, also from the disk."""

    def keys(self) -> Iterable[Any]:
        """Give what `load` and `remove` find each task by."""

    def load(self, keys: list[Any]) -> None:
        """Load tasks as objects, each by itself."""

    def iterate(self) -> Iterator[AnyJob]:
        """Give all tasks as objects."""

    def iterate_stored(self) -> Iterator[Any]:
        """Give what is stored of all tasks, and make no objects."""

    def change_all(self, state: str) -> None:
        """Load every task, change its state, and record it; all are on disk afterwards."""

    def stats(self) -> dict[str, int]:
        """Return the number of tasks in each state."""
        return Counter(task.state for task in self.iterate())

    def count(self) -> int:
        """Return the number of tasks."""


class Gc3session(Target):
    """gc3session on LMDB."""

    name = "gc3session"
    job = Job

    def open(self) -> None:
        self.session = Session(self.directory, read_only=self.read_only, map_size=MAP)

    def close(self) -> None:
        self.session.close()

    def record(self, tasks: list[AnyJob]) -> None:
        add = self.session.add
        for task in tasks:
            add(task, flush=False)

    def record_many(self, tasks: list[AnyJob]) -> None:
        self.session.add_many(tasks, flush=False)

    def commit(self) -> None:
        self.session.flush()

    def add(self, task: AnyJob) -> None:
        self.session.add(task)

    def remove(self, key: str) -> None:
        self.session.remove(key)

    def keys(self) -> Iterable[str]:
        return self.session.ids()

    def load(self, keys: list[str]) -> None:
        load = self.session.load
        for key in keys:
            load(key)

    def iterate(self) -> Iterator[AnyJob]:
        return iter(self.session)

    def iterate_stored(self) -> Iterator[Any]:
        return self.session.select().stored()

    def change_all(self, state: str) -> None:
        for task in self.session:
            task.state = state
        self.session.save_all()

    def stats(self) -> dict[str, int]:
        return self.session.stats()

    def count(self) -> int:
        return len(self.session)


class RawLimit(Target):
    """py-lmdb and msgpack by hand: two tables, no checks, nothing that a program could do without.

    records: N (8 bytes, big-endian) -> msgpack array of the fields; members: N -> nothing.
    """

    name = "raw limit"

    _key = Struct(">Q").pack

    def open(self) -> None:
        self._env = lmdb.open(self.directory, map_size=MAP, max_dbs=2, lib_version=0)
        self._records: Any = self._env.open_db(b"records")
        self._members: Any = self._env.open_db(b"members")
        self._next = self.count() + 1
        self._txn: Any = None

    def close(self) -> None:
        self._env.close()

    def record_many(self, tasks: list[AnyJob]) -> None:
        key = self._key
        items = [(key(n), pack(fields_of(task))) for n, task in enumerate(tasks, self._next)]
        self._next += len(items)
        self._txn = self._txn or self._env.begin(write=True)
        self._txn.cursor(self._records).putmulti(items)
        self._txn.cursor(self._members).putmulti([(n, b"") for n, _ in items])

    def commit(self) -> None:
        self._txn.commit()
        self._txn = None

    def add(self, task: AnyJob) -> None:
        key = self._key(self._next)
        self._next += 1
        with self._env.begin(write=True) as txn:
            txn.put(key, pack(fields_of(task)), db=self._records)
            txn.put(key, b"", db=self._members)

    def remove(self, key: bytes) -> None:
        with self._env.begin(write=True) as txn:
            txn.delete(key, db=self._records)
            txn.delete(key, db=self._members)

    def keys(self) -> Iterable[bytes]:
        return self._env.begin(db=self._members).cursor().iternext(values=False)

    def load(self, keys: list[bytes]) -> None:
        begin, records = self._env.begin, self._records
        for key in keys:
            with begin(db=records) as txn:  # one for each, so that every load sees the newest state
                PlainJob(*unpack(txn.get(key)))

    def iterate(self) -> Iterator[AnyJob]:
        return starmap(PlainJob, self.iterate_stored())

    def iterate_stored(self) -> Iterator[Any]:
        return map(unpack, self._env.begin(db=self._records).cursor().iternext(keys=False))

    def change_all(self, state: str) -> None:
        def changed(items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
            for key, record in items:
                task = PlainJob(*unpack(record))
                change_state(task, state)
                yield key, pack(fields_of(task))

        items = self._env.begin(db=self._records).cursor().iternext()
        for _ in range(0, self.count(), BATCH):
            with self._env.begin(write=True, db=self._records) as txn:
                txn.cursor().putmulti(changed(islice(items, BATCH)))

    def count(self) -> int:
        with self._env.begin() as txn:
            return int(txn.stat(self._members)["entries"])


class Sqlite(Target):
    """sqlite3, as a user writes it in 20 lines: a row a task, with its state and a msgpack array of its fields."""

    name = "sqlite3"
    is_for_all_threads = False

    _insert = "INSERT INTO tasks (state, task) VALUES (?, ?)"

    def open(self) -> None:
        os.makedirs(self.directory, exist_ok=True)
        self._db = sqlite3.connect(os.path.join(self.directory, "tasks.db"), timeout=60, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS tasks (id INTEGER PRIMARY KEY, state TEXT NOT NULL, task NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_state ON tasks (state)")

    def close(self) -> None:
        self._db.close()

    def _row(self, task: AnyJob) -> tuple[str, bytes]:
        return task.state, pack(fields_of(task))

    def record_many(self, tasks: list[AnyJob]) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        self._db.executemany(self._insert, map(self._row, tasks))

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def add(self, task: AnyJob) -> None:
        self._db.execute(self._insert, self._row(task))

    def remove(self, key: int) -> None:
        self._db.execute("DELETE FROM tasks WHERE id = ?", (key,))

    def keys(self) -> Iterable[int]:
        return chain.from_iterable(self._db.execute("SELECT id FROM tasks"))

    def load(self, keys: list[int]) -> None:
        for key in keys:
            PlainJob(*unpack(self._db.execute("SELECT task FROM tasks WHERE id = ?", (key,)).fetchone()[0]))

    def iterate(self) -> Iterator[AnyJob]:
        return starmap(PlainJob, self.iterate_stored())

    def iterate_stored(self) -> Iterator[Any]:
        return map(unpack, chain.from_iterable(self._db.execute("SELECT task FROM tasks ORDER BY id")))

    def change_all(self, state: str) -> None:
        def changed() -> Iterator[tuple[str, Any, int]]:
            for key, data in self._db.execute("SELECT id, task FROM tasks ORDER BY id").fetchall():
                task = PlainJob(*unpack(data))
                change_state(task, state)
                yield *self._row(task), key

        self._db.execute("BEGIN")
        self._db.executemany("UPDATE tasks SET state = ?, task = ? WHERE id = ?", changed())
        self._db.execute("COMMIT")

    def stats(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT state, count(*) FROM tasks GROUP BY state"))

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM tasks").fetchone()[0])


class OnPostgresql(Gc3session):
    """gc3session on PostgreSQL, in a schema of its own."""

    name = "gc3session on PostgreSQL"

    def open(self) -> None:
        self.schema = f"bench_{secrets.token_hex(6)}"
        url = f"{self.url}{'&' if '?' in self.url else '?'}schema={self.schema}"
        self.session = Session(self.directory, store_or_url=url)
        self.session.add(Task())  # the first write makes the tables

    def connect(self) -> Any:
        """Return a connection of psycopg, which is imported here because it is needed only where there is a server."""
        import psycopg

        return psycopg.connect(self.url, options=f"-csearch_path={self.schema}")

    def delete(self) -> None:
        super().delete()
        with self.connect() as connection:
            connection.execute(f"DROP SCHEMA {self.schema} CASCADE")


class Copy(OnPostgresql):
    """psycopg by hand: the very records that gc3session writes for the same tasks, with COPY.

    gc3session makes them in the measured time, with IDs, checksums and index; here they are made before.
    """

    name = "COPY"

    def open(self) -> None:
        super().open()
        self._connection = self.connect()
        self._cursor = self._connection.cursor(binary=True)
        self._cursor.execute("CREATE TABLE copied (LIKE records INCLUDING ALL)")
        self.commit()

    def close(self) -> None:
        self._connection.close()
        super().close()

    def prepare(self, tasks: list[AnyJob]) -> list[Any]:
        self.session.add_many(tasks)
        new = "SELECT key, value FROM records EXCEPT SELECT key, value FROM copied ORDER BY key, value"
        rows: list[Any] = self._cursor.execute(new).fetchall()
        return rows

    def record_many(self, tasks: list[Any]) -> None:
        with self._cursor.copy("COPY copied (key, value) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["bytea", "bytea"])
            for row in tasks:
                copy.write_row(row)

    def commit(self) -> None:
        self._connection.commit()


class ExecuteMany(Copy):
    """The same with executemany."""

    name = "executemany"

    def record_many(self, tasks: list[Any]) -> None:
        self._cursor.executemany("INSERT INTO copied (key, value) VALUES (%b, %b)", tasks)


ON_LMDB: Final = (Gc3session, RawLimit, Sqlite)
ON_POSTGRESQL: Final = (OnPostgresql, Copy, ExecuteMany, Gc3session)
