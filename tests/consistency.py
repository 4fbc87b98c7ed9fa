"""Whether a session and its store are consistent: a judge that shares no code with what wrote them.

It looks three times: by `check_session`, which must find nothing but the records that are known to be
damaged; through the public API of a fresh read-only session; and at the tables themselves, read by
py-lmdb and msgpack as `gc3session/tables.py`, `codec.py` and `entries.py` draw them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import msgpack
import psycopg
from psycopg import sql

import lmdb
from gc3session import LoadError, Session, check_session

_LATE = 1 << 31
_PLAIN = ("records", "schemas", "meta", "sessions", "late", "late_members")
_SETS = ("members", "states")

Tables = dict[str, list[tuple[bytes, bytes]]]


class Record(NamedTuple):
    """What the judge reads of a record."""

    id: str
    tag: str
    revision: int
    fields: dict[str, Any]

    @property
    def state(self) -> str:
        return self.fields.get("state", "")


class Index(NamedTuple):
    """What the judge reads of a session's index."""

    ids: list[str]  # in the order of adding
    lines: list[int]  # where each stands in the mirror
    row: list[Any]  # number, size and blank bytes of the mirror, mark


class Held(NamedTuple):
    """What the judge reads of a store."""

    records: dict[int, Record]
    sessions: dict[bytes, Index]
    damaged: set[int]


def check(path: str | os.PathLike[str], damaged: Collection[str] = (), mirror: bool = True) -> list[str]:
    """Return a session's IDs in the order of adding, if all that is known of it agrees.

    Args:
        path: of a session that nobody is writing to.
        damaged: the IDs of its records that can't be read.
        mirror: whether session_ids.txt must agree, too.
    """
    found = [finding for finding in check_session(path) if mirror or finding.kind != "mirror"]
    assert bool(found) == bool(damaged), found
    assert {finding.kind for finding in found} <= {"record"}, found
    with Session(path, create=False, read_only=True) as session:
        ids = list(session.tasks)
        assert len(set(ids)) == len(ids) == len(session), "len or the order of adding"
        assert session.list_ids() == set(ids), "list_ids"
        stored = list(session.store.list())
        assert len(set(stored)) == len(stored), "an ID is listed twice"
        assert set(ids) <= set(stored), f"no record for {set(ids) - set(stored)}"
        states: Counter[str] = Counter()
        one_by_one = ids
        if not damaged:  # then together, which is faster, and some one by one
            one_by_one = ids[:: len(ids) // 100 + 1]
            for id_, task in zip(ids, session, strict=True):
                assert task.persistent_id == id_
                if hasattr(task, "state"):
                    states[task.state] += 1
        for id_ in one_by_one:
            try:
                task = session.load(id_)
            except LoadError:
                assert id_ in damaged, f"{id_} can't be read"
                continue
            assert task.persistent_id == id_
            if damaged and hasattr(task, "state"):
                states[task.state] += 1
        for id_ in damaged:
            assert id_ in session, f"{id_} has left the index"
        stats = session.stats()
        if damaged:
            assert states <= Counter(stats), "stats"
            assert sum(stats.values()) <= len(ids), "stats"
        else:
            assert stats == dict(states), "stats"
        url = session.store_url
    if mirror:
        assert read_mirror(path) == ids, "session_ids.txt"
    if url.startswith("postgresql:"):
        tables = read_postgresql(url)
    else:
        jobs = data_file(path, url)
        tables = None if jobs is None else read_tables(jobs.parent)
    if tables is None:
        assert not ids
    else:
        held = check_tables(tables)
        numbers = {int(id_.rpartition(".")[2]) for id_ in stored}
        assert held.records.keys() | held.damaged == numbers, "store.list"
        assert {record.id for record in held.records.values()} <= set(stored), "store.list"
        identity = bytes.fromhex(Path(path, "store.url").read_text().strip().rpartition("#")[2])
        index = held.sessions.get(identity)
        assert ids == ([] if index is None else index.ids), "the session's index in the tables"
        if index is not None and mirror:
            _check_lines(Path(path, "session_ids.txt").read_bytes(), index)
    return ids


def read_mirror(path: str | os.PathLike[str]) -> list[str]:
    """Return the IDs that session_ids.txt holds, as any program would read them."""
    text = Path(path, "session_ids.txt").read_text()
    assert not text or text.endswith("\n"), "the last line of session_ids.txt is cut"
    return [line.strip() for line in text.split("\n") if line.strip()]


def data_file(path: str | os.PathLike[str], url: str = "") -> Path | None:
    """Return the data file of a session's store, or None if it has not been made."""
    file = Path(path, unquote(url.removeprefix("lmdb:").removeprefix("//")) or "jobs", "data.mdb")
    return file if file.exists() else None


@contextlib.contextmanager
def copied(directory: str | os.PathLike[str]) -> Iterator[lmdb.Environment]:
    """Open a copy of the environment: the process may have that itself open."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copyfile(os.path.join(directory, "data.mdb"), os.path.join(copy, "data.mdb"))
        with lmdb.open(copy, readonly=True, lock=False, max_dbs=16, map_size=1 << 36) as env:
            yield env


def read_tables(directory: str | os.PathLike[str]) -> Tables:
    """Return all items of all tables of the store in *directory*."""
    tables = {}
    with copied(directory) as env:
        for name in (*_PLAIN, *_SETS):
            options = {"dupsort": True, "dupfixed": True} if name in _SETS else {}
            table = env.open_db(name.encode(), create=False, **options)
            with env.begin(table) as transaction:
                tables[name] = list(transaction.cursor())
    return tables


def read_postgresql(url: str) -> Tables | None:
    """Return all items of all tables of the store at *url*, None if it has not been made."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query)
    schema = dict(query).get("schema", "gc3session")
    others = urlencode([pair for pair in query if pair[0] != "schema"], quote_via=quote)
    with psycopg.connect(parts._replace(query=others).geturl()) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

        def rows(name: str, columns: str) -> list[Any]:
            table = sql.Identifier(schema, name)
            return connection.execute(
                sql.SQL(f"SELECT {columns} FROM {{}} ORDER BY 1, 2").format(table)
            ).fetchall()

        there = connection.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = %s", [schema]
        ).fetchall()
        if not there:
            return None
        tables = {name: rows(name, "key, value") for name in (*_PLAIN, *_SETS)}
        counts = {(table, key): n for table, key, n in rows("counts", "tab, key, n") if n}
        versions = rows("layout", "version, version")
    found = Counter((name, key) for name in _SETS for key, _ in tables[name])
    assert counts == found, "the counts of the values of each key"
    assert versions == [(1, 1)]
    return tables


def unframed(number: int, data: bytes) -> Any:
    """Return what stands in a record's frame.  Raise ValueError if its checksum is wrong."""
    if zlib.crc32(data[4:], number % 2**32) != int.from_bytes(data[:4], "big"):
        raise ValueError("checksum")
    return msgpack.unpackb(data[4:], strict_map_key=False, unicode_errors="surrogatepass")


def check_tables(tables: Tables) -> Held:
    """Return what a store holds, if its tables agree with each other."""
    meta = dict(tables["meta"])
    assert len(meta[b"format"]) > 0
    next_number = int.from_bytes(meta.get(b"next N", b"\0" * 7 + b"\1"), "big")
    schemas = {
        int.from_bytes(key, "big"): unframed(int.from_bytes(key, "big"), data) for key, data in tables["schemas"]
    }
    assert len({(tag, name, kind, tuple(fields)) for tag, name, kind, fields in schemas.values()}) == len(schemas)
    records, damaged = _records(tables, schemas)
    assert max(records, default=0) < next_number, "an N that may be given out again"
    rows = {identity: unframed(0, data) for identity, data in tables["sessions"]}
    assert len({row[0] for row in rows.values()}) == len(rows), "two sessions have one number"
    indices = _indices(tables, schemas, records, damaged)
    assert set(indices) <= {row[0] for row in rows.values()}, "an index of no session"
    _check_late(tables, next_number)
    sessions = {identity: Index(*indices.get(row[0], ([], [])), row) for identity, row in rows.items()}
    return Held(records, sessions, damaged)


def _records(tables: Tables, schemas: dict[int, Any]) -> tuple[dict[int, Record], set[int]]:
    records, damaged = {}, set()
    for key, data in tables["records"]:
        number = int.from_bytes(key, "big")
        assert len(key) == 8
        try:
            schema, revision, values = unframed(number, data)
        except ValueError:
            damaged.add(number)
            continue
        tag, name, _, fields = schemas[schema]
        assert revision >= 1
        assert len(values) == len(fields)
        records[number] = Record(f"{name}.{number}", tag, revision, dict(zip(fields, values, strict=True)))
    return records, damaged


def _state_name(state: str) -> bytes:
    name = state.encode("utf-8", "surrogatepass")
    return name if len(name) <= 400 else name[:368] + hashlib.sha256(name).digest()


def _indices(
    tables: Tables, schemas: dict[int, Any], records: dict[int, Record], damaged: set[int]
) -> dict[int, tuple[list[str], list[int]]]:
    late = {int.from_bytes(key, "big"): int.from_bytes(value, "big") for key, value in tables["late"]}
    numbers: dict[int, dict[int, int]] = {}  # session -> order -> N
    indices: dict[int, tuple[list[str], list[int]]] = {}
    for key, value in tables["members"]:
        session = int.from_bytes(key, "big")
        order, schema, line = struct.unpack(">QIQ", value)
        number = late[order] if schema & _LATE else order
        assert number in records or number in damaged, f"an index entry without its record: {number}"
        id_ = f"{schemas[schema & ~_LATE][1]}.{number}"
        assert number in damaged or records[number].id == id_
        numbers.setdefault(session, {})[order] = number
        ids, lines = indices.setdefault(session, ([], []))
        ids.append(id_)
        lines.append(line)
    for session, (ids, _) in indices.items():
        assert len(ids) == len(set(ids)), f"session {session} holds an ID twice"
    states: dict[int, dict[int, bytes]] = {}  # session -> order -> name of the state
    for key, value in tables["states"]:
        session, order = int.from_bytes(key[:4], "big"), int.from_bytes(value, "big")
        assert order not in states.setdefault(session, {}), f"order {order} is in two states"
        states[session][order] = key[4:]
    assert {s: set(orders) for s, orders in states.items()} == {s: set(orders) for s, orders in numbers.items()}
    for session, orders in numbers.items():
        for order, number in orders.items():
            if number in records:
                expected = _state_name(records[number].state)
                assert states[session][order] == expected, f"{records[number].id} is not in {expected!r}"
    return indices


def _check_lines(mirror: bytes, index: Index) -> None:
    _, size, blank, mark = index.row
    end = 0
    for id_, line in zip(index.ids, index.lines, strict=True):
        assert line >= end, "the lines of the mirror are not in the order of adding"
        end = line + len(id_) + 1
        assert mirror[line:end] == f"{id_}\n".encode(), f"{id_} is not at its line of the mirror"
    if mark is not None:
        assert len(mirror) == size, "the size of the mirror"
        assert blank == size - sum(len(id_) + 1 for id_ in index.ids), "the blank bytes of the mirror"


def _check_late(tables: Tables, next_number: int) -> None:
    late = dict(tables["late"])
    found = set()
    for key, value in tables["members"]:
        if int.from_bytes(value[8:12], "big") & _LATE:
            found.add((late[value[:8]] + key, value[:8]))
    assert set(tables["late_members"]) == found, "the tables of late entries"
    assert set(late) == {order for _, order in found}, "a late entry of no session"
    assert all(int.from_bytes(order, "big") < next_number for order in late)
