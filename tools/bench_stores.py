"""What tools/bench.py compares: gc3session, the raw limit, sqlite3, and one pickle file a task.

All of them keep the same tasks of 11 fields, and do with them what `Contender` lists.
"""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from struct import Struct
from typing import Any, ClassVar

import attrs
import lmdb
import msgpack

from gc3session import Session, Task

STATES = ("NEW", "SUBMITTED", "RUNNING", "TERMINATED")


@attrs.define
class Job(Task):
    """The task that is recorded: Task's 5 fields, and 6 more."""

    command: str = ""
    mesh: str = ""
    cores: int = 1
    tolerance: float = 0.0
    inputs: list[str] = attrs.Factory(list)
    limits: dict[str, int] = attrs.Factory(dict)


@attrs.define(eq=False)
class RawJob:
    """The same fields in a plain attrs class, as one would write it by hand."""

    jobname: str
    state: str
    returncode: int | None
    history: list[list[Any]]
    extra: dict[Any, Any]
    command: str
    mesh: str
    cores: int
    tolerance: float
    inputs: list[str]
    limits: dict[str, int]


FIELDS = tuple(field.name for field in attrs.fields(RawJob))
AnyJob = Any  # a Job or a RawJob


def build(cls: type[Any], count: int, first: int = 0) -> list[AnyJob]:
    """Return *count* tasks of a class, all different; those of both classes are the same."""
    return [
        cls(
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
        for i in range(first, first + count)
    ]


class Contender(ABC):
    """One way of keeping tasks in a directory, which must not be there yet or hold its data.

    Args:
        batch: about how many tasks a transaction takes; gc3session finds that by itself.
    """

    name: ClassVar[str]
    job: ClassVar[type[Any]] = RawJob

    def __init__(self, directory: str, batch: int) -> None:
        self.directory = directory
        self.batch = batch

    @abstractmethod
    def record(self, tasks: list[AnyJob]) -> None:
        """Record tasks that need not be durable before `finish`."""

    @abstractmethod
    def finish(self) -> None:
        """Make durable what was recorded."""

    @abstractmethod
    def add(self, task: AnyJob) -> Any:
        """Record one task, durably; return its key."""

    @abstractmethod
    def remove(self, key: Any) -> None:
        """Remove one task, durably."""

    @abstractmethod
    def keys(self) -> list[Any]:
        """Return the keys of all tasks."""

    @abstractmethod
    def load(self, keys: list[Any]) -> None:
        """Load tasks as objects, each by itself."""

    @abstractmethod
    def scan(self) -> Iterator[Any]:
        """Give all tasks as objects."""

    def advance(self, scan: Iterator[Any], count: int) -> None:
        """Go on with a `scan` by *count* tasks."""
        for _ in islice(scan, count):
            pass

    @abstractmethod
    def change_all(self, state: str) -> None:
        """Load every task, set its state, and record all of them, durably."""

    @abstractmethod
    def stats(self) -> dict[str, int]:
        """Return the number of tasks in each state."""

    @abstractmethod
    def count_anew(self) -> int:
        """Open the directory, count the tasks, and close it; to be called while it is closed."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""

    @abstractmethod
    def open(self) -> None:
        """Open it again."""


# -- gc3session ---------------------------------------------------------------


class Ours(Contender):
    """gc3session, with `add(flush=False)` in a loop."""

    name = "gc3session"
    job = Job

    def __init__(self, directory: str, batch: int) -> None:
        super().__init__(directory, batch)
        self.open()

    def open(self) -> None:
        self.session = Session(self.directory)

    def record(self, tasks: list[AnyJob]) -> None:
        add = self.session.add
        for task in tasks:
            add(task, flush=False)

    def finish(self) -> None:
        self.session.flush()

    def add(self, task: AnyJob) -> str:
        return self.session.add(task)

    def remove(self, key: Any) -> None:
        self.session.remove(key)

    def keys(self) -> list[Any]:
        return list(self.session.tasks)

    def load(self, keys: list[Any]) -> None:
        load = self.session.load
        for key in keys:
            load(key)

    def scan(self) -> Iterator[Any]:
        return iter(self.session)

    def change_all(self, state: str) -> None:
        for task in self.session:
            task.state = state
        self.session.save_all()

    def stats(self) -> dict[str, int]:
        return self.session.stats()

    def count_anew(self) -> int:
        with Session(self.directory) as session:
            return len(session)

    def close(self) -> None:
        self.session.close()


class OursMany(Ours):
    """gc3session, with `add_many`."""

    def record(self, tasks: list[AnyJob]) -> None:
        self.session.add_many(tasks, flush=False)


# -- the raw limit ------------------------------------------------------------


class Raw(Contender):
    """py-lmdb and msgpack by hand: two tables, no checks, nothing that a program could do without.

    records: N (8 bytes, big-endian) -> msgpack array of the fields; members: N -> nothing.
    """

    name = "raw limit"

    _key = Struct(">Q").pack
    _pack = staticmethod(msgpack.Packer().pack)
    _unpack = staticmethod(msgpack.unpackb)
    _get = attrgetter(*FIELDS)

    def __init__(self, directory: str, batch: int) -> None:
        super().__init__(directory, batch)
        self._next = 1
        self._txn: Any = None
        self._open(lib_version=0)

    def _open(self, **options: Any) -> None:
        self._env = lmdb.open(self.directory, map_size=1 << 40, max_dbs=2, sync=True, metasync=True, **options)
        self._records: Any = self._env.open_db(b"records")
        self._members: Any = self._env.open_db(b"members")

    def open(self) -> None:
        self._open()

    def record(self, tasks: list[AnyJob]) -> None:
        key, pack, get, first = self._key, self._pack, self._get, self._next
        items = [(key(n), pack(get(task))) for n, task in enumerate(tasks, first)]
        self._next = first + len(items)
        if self._txn is None:
            self._txn, self._begun = self._env.begin(write=True), first
        self._txn.cursor(self._records).putmulti(items)
        self._txn.cursor(self._members).putmulti([(n, b"") for n, _ in items])
        if self._next - self._begun >= self.batch:
            self.finish()

    def finish(self) -> None:
        if self._txn is not None:
            self._txn.commit()
            self._txn = None

    def add(self, task: AnyJob) -> bytes:
        key = self._key(self._next)
        self._next += 1
        with self._env.begin(write=True) as txn:
            txn.put(key, self._pack(self._get(task)), db=self._records)
            txn.put(key, b"", db=self._members)
        return key

    def remove(self, key: Any) -> None:
        with self._env.begin(write=True) as txn:
            txn.delete(key, db=self._records)
            txn.delete(key, db=self._members)

    def keys(self) -> list[Any]:
        with self._env.begin(db=self._members) as txn:
            return list(txn.cursor().iternext(values=False))

    def load(self, keys: list[Any]) -> None:
        begin, unpack, records = self._env.begin, self._unpack, self._records
        for key in keys:
            with begin(db=records) as txn:  # a load sees the newest state
                RawJob(*unpack(txn.get(key)))

    def scan(self) -> Iterator[bytes]:
        with self._env.begin(db=self._records) as txn:
            yield from txn.cursor().iternext(keys=False)

    def advance(self, scan: Iterator[Any], count: int) -> None:
        unpack = self._unpack
        for record in islice(scan, count):
            RawJob(*unpack(record))

    def change_all(self, state: str) -> None:
        unpack, pack, get = self._unpack, self._pack, self._get
        start, chunk, done = b"", 10_000, 0
        txn = self._env.begin(write=True)
        while True:
            cursor = txn.cursor(self._records)
            items = list(islice(cursor.iternext(), chunk)) if cursor.set_range(start) else []
            if not items:
                break
            changed = []
            for key, record in items:
                task = RawJob(*unpack(record))
                task.state = state
                task.history.append([time.time(), state])
                changed.append((key, pack(get(task))))
            cursor.putmulti(changed)
            start = items[-1][0] + b"\0"
            done += len(items)
            if done >= self.batch:
                txn.commit()
                txn, done = self._env.begin(write=True), 0
        txn.commit()

    def stats(self) -> dict[str, int]:
        with self._env.begin(db=self._records) as txn:
            return Counter(self._unpack(record)[1] for record in txn.cursor().iternext(keys=False))

    def count_anew(self) -> int:
        self._open()
        with self._env.begin() as txn:
            count: int = txn.stat(self._members)["entries"]
        self._env.close()
        return count

    def close(self) -> None:
        self._env.close()


# -- others -------------------------------------------------------------------


class Sqlite(Contender):
    """sqlite3: a row a task, with its JSON and its state (indexed); WAL, synchronous=FULL."""

    name = "sqlite3"

    _get = attrgetter(*FIELDS)
    _insert = "INSERT INTO tasks (state, task) VALUES (?, ?)"

    def __init__(self, directory: str, batch: int) -> None:
        super().__init__(directory, batch)
        os.mkdir(directory)
        self.open()
        self._db.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, state TEXT NOT NULL, task TEXT NOT NULL)")
        self._db.execute("CREATE INDEX by_state ON tasks (state)")
        self._pending = 0

    def open(self) -> None:
        self._db = sqlite3.connect(os.path.join(self.directory, "tasks.db"), isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")

    def _row(self, task: AnyJob) -> tuple[str, str]:
        return task.state, json.dumps(dict(zip(FIELDS, self._get(task), strict=True)))

    def record(self, tasks: list[AnyJob]) -> None:
        if not self._pending:
            self._db.execute("BEGIN")
        self._db.executemany(self._insert, map(self._row, tasks))
        self._pending += len(tasks)
        if self._pending >= self.batch:
            self.finish()

    def finish(self) -> None:
        if self._pending:
            self._db.execute("COMMIT")
            self._pending = 0

    def add(self, task: AnyJob) -> int | None:
        return self._db.execute(self._insert, self._row(task)).lastrowid

    def remove(self, key: Any) -> None:
        self._db.execute("DELETE FROM tasks WHERE id = ?", (key,))

    def keys(self) -> list[Any]:
        return [key for (key,) in self._db.execute("SELECT id FROM tasks")]

    def load(self, keys: list[Any]) -> None:
        for key in keys:
            (text,) = self._db.execute("SELECT task FROM tasks WHERE id = ?", (key,)).fetchone()
            RawJob(**json.loads(text))

    def scan(self) -> Iterator[RawJob]:
        for (text,) in self._db.execute("SELECT task FROM tasks ORDER BY id"):
            yield RawJob(**json.loads(text))

    def change_all(self, state: str) -> None:
        def rows() -> Iterator[tuple[str, str, int]]:
            for key, text in self._db.execute("SELECT id, task FROM tasks ORDER BY id").fetchall():
                task = RawJob(**json.loads(text))
                task.state = state
                task.history.append([time.time(), state])
                yield *self._row(task), key

        self._db.execute("BEGIN")
        self._db.executemany("UPDATE tasks SET state = ?, task = ? WHERE id = ?", rows())
        self._db.execute("COMMIT")

    def stats(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT state, count(*) FROM tasks GROUP BY state"))

    def count_anew(self) -> int:
        self.open()
        count: int = self._db.execute("SELECT count(*) FROM tasks").fetchone()[0]
        self._db.close()
        return count

    def close(self) -> None:
        self._db.close()


class Pickles(Contender):
    """A pickle file a task; `record` does not flush them to disk, `add` does."""

    name = "pickle files"

    def __init__(self, directory: str, batch: int) -> None:
        super().__init__(directory, batch)
        os.mkdir(directory)
        self._next = 0

    def _write(self, path: str, task: RawJob) -> None:
        with open(path, "wb") as file:
            pickle.dump(task, file)

    def _new_path(self) -> str:
        self._next += 1
        return os.path.join(self.directory, f"{self._next}.pickle")

    def record(self, tasks: list[AnyJob]) -> None:
        for task in tasks:
            self._write(self._new_path(), task)

    def finish(self) -> None:
        pass

    def add(self, task: AnyJob) -> str:
        path = self._new_path()
        with open(f"{path}.tmp", "wb") as file:
            pickle.dump(task, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.tmp", path)
        self._sync_directory()
        return path

    def remove(self, key: Any) -> None:
        os.unlink(key)
        self._sync_directory()

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def keys(self) -> list[Any]:
        return [entry.path for entry in os.scandir(self.directory)]

    def load(self, keys: list[Any]) -> None:
        for path in keys:
            with open(path, "rb") as file:
                pickle.load(file)

    def scan(self) -> Iterator[RawJob]:
        for path in self.keys():
            with open(path, "rb") as file:
                yield pickle.load(file)

    def change_all(self, state: str) -> None:
        for path in self.keys():
            with open(path, "rb") as file:
                task = pickle.load(file)
            task.state = state
            task.history.append([time.time(), state])
            self._write(path, task)

    def stats(self) -> dict[str, int]:
        return Counter(task.state for task in self.scan())

    def count_anew(self) -> int:
        return len(os.listdir(self.directory))

    def close(self) -> None:
        pass

    def open(self) -> None:
        pass
