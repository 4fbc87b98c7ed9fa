"""The comparison of `tools/bench.py --store URL`: gc3session on PostgreSQL, on LMDB, and psycopg by hand.

By hand means: the very rows that gc3session has written (records, members, states), in the same
order, table by table, into the same tables, in transactions of as many tasks, by `COPY` and by
`executemany`, as psycopg's documentation shows them.  The bytes are there beforehand; gc3session
makes them, with IDs, checksums and index, in the measured time.  Each repetition begins with empty
tables of its own; contenders take turns, and of several repetitions the fastest counts.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg
from bench_stores import Job, build
from psycopg import sql

from gc3session import Session, Task, make_store
from gc3session.tables.postgresql.address import address_of

TABLES: Final = ("records", "members", "states")
CONTENDERS: Final = ("gc3session", "COPY", "executemany", "on LMDB")

Rows = dict[str, list[tuple[bytes, bytes]]]
Figures = dict[str, dict[str, float]]
"""Of each row: contender -> microseconds a task (of `stats`: a call)."""


class Comparison:
    """The measurements, with *tasks* tasks, at *url*; LMDB's stores are made in *directory*."""

    def __init__(self, url: str, directory: str, tasks: int, batch: int, repeat: int) -> None:
        self._url = url
        self._directory = directory
        self._tasks = tasks
        self._batch = min(batch, tasks)
        self._repeat = repeat
        self._conninfo = psycopg.conninfo.make_conninfo("", **address_of(url).options)
        self._rows = self._rows_of_a_batch()

    @contextmanager
    def _schema(self) -> Iterator[str]:
        """Give the URL of a store in a schema of its own, which is deleted afterwards."""
        name = f"bench_{secrets.token_hex(6)}"
        try:
            yield f"{self._url}{'&' if '?' in self._url else '?'}schema={name}"
        finally:
            with psycopg.connect(self._conninfo, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))

    def _rows_of_a_batch(self) -> Rows:
        """Return the rows that gc3session writes for all tasks."""
        with self._schema() as url:
            with Session(os.path.join(self._directory, secrets.token_hex(4)), store_or_url=url) as session:
                session.add_many(build(Job, self._tasks))
            with psycopg.connect(self._conninfo) as connection:
                return {
                    table: connection.execute(
                        sql.SQL("SELECT key, value FROM {} ORDER BY key, value").format(
                            sql.Identifier(address_of(url).schema, table)
                        ),
                        binary=True,
                    ).fetchall()
                    for table in TABLES
                }

    def _session(self, url: str | None, work: Callable[[Session], float]) -> float:
        path = os.path.join(self._directory, secrets.token_hex(4))
        with Session(path, store_or_url=url) as session:
            session.add(Task())  # so that tables and connection are there
            return work(session)

    def _record(self, session: Session) -> float:
        took = 0.0
        for first in range(0, self._tasks, self._batch):
            tasks = build(Job, min(self._batch, self._tasks - first), first)
            start = time.perf_counter()
            session.add_many(tasks)
            took += time.perf_counter() - start
        return took / self._tasks * 1e6

    def _by_hand(self, write: Callable[[Any, sql.Composable, list[tuple[bytes, bytes]]], None]) -> float:
        """Return how long *write* takes to write all rows, in transactions of as many tasks."""
        took = 0.0
        with self._schema() as url:
            with closing(make_store(url)) as store:
                store.save(Task())
            schema = address_of(url).schema
            names: dict[str, sql.Composable] = {table: sql.Identifier(schema, table) for table in TABLES}
            with psycopg.connect(self._conninfo) as connection:
                for name in names.values():
                    connection.execute(sql.SQL("TRUNCATE {}").format(name))
                connection.commit()
                for first in range(0, self._tasks, self._batch):
                    parts = {table: self._rows[table][first : first + self._batch] for table in TABLES}
                    start = time.perf_counter()
                    for table in TABLES:
                        write(connection, names[table], parts[table])
                    connection.commit()
                    took += time.perf_counter() - start
        return took / self._tasks * 1e6

    def record(self) -> Figures:
        """Return the figures of recording: many tasks at once."""
        steps: dict[str, Callable[[], float]] = {
            "gc3session": self._on_server(self._record),
            "COPY": lambda: self._by_hand(_copy),
            "executemany": lambda: self._by_hand(_executemany),
            "on LMDB": lambda: self._session(None, self._record),
        }
        taken: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for turn in range(self._repeat):
            for name in CONTENDERS[::-1] if turn % 2 else CONTENDERS:
                taken[name].append(steps[name]())
        return {f"record {self._tasks:,} tasks, `add_many`": {name: min(times) for name, times in taken.items()}}

    def _on_server(self, work: Callable[[Session], float]) -> Callable[[], float]:
        def run() -> float:
            with self._schema() as url:
                return self._session(url, work)

        return run

    def use(self, operations: int) -> Figures:
        """Return the figures of using a session that holds all tasks, on both kinds of store."""
        figures: Figures = {}

        def work(name: str, session: Session) -> float:
            ids = session.add_many(build(Job, self._tasks))

            def note(row: str, count: int, function: Callable[[], object]) -> None:
                start = time.perf_counter()
                function()
                figures.setdefault(row, {})[name] = (time.perf_counter() - start) / count * 1e6

            fresh = build(Job, operations, self._tasks)
            note("one durable `add`", operations, lambda: [session.add(task) for task in fresh])
            note("iterate all tasks as objects", self._tasks, lambda: sum(1 for _ in session))
            some = [ids[i * 7919 % self._tasks] for i in range(operations)]
            note("load at random", operations, lambda: [session.load(id_) for id_ in some])
            note("`stats()`", operations, lambda: [session.stats() for _ in range(operations)])
            return 0.0

        with self._schema() as url:
            self._session(url, lambda session: work("gc3session", session))
        self._session(None, lambda session: work("on LMDB", session))
        return figures


def _copy(connection: Any, table: sql.Composable, rows: list[tuple[bytes, bytes]]) -> None:
    statement = sql.SQL("COPY {} (key, value) FROM STDIN (FORMAT BINARY)").format(table)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(["bytea", "bytea"])
        for row in rows:
            copy.write_row(row)


def _executemany(connection: Any, table: sql.Composable, rows: list[tuple[bytes, bytes]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(sql.SQL("INSERT INTO {} (key, value) VALUES (%b, %b)").format(table), rows)


def compare(url: str, directory: str, tasks: int, batch: int, repeat: int, operations: int) -> Figures:
    """Return all figures; see the module."""
    comparison = Comparison(url, directory, tasks, batch, repeat)
    return {**comparison.record(), **comparison.use(operations)}
