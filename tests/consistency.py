"""Whether a session and its store are consistent: a judge that shares no code with what wrote them.

It looks three times: by `check_session`, which must find nothing but the records that are known to be
damaged; through the public API of a fresh read-only session; and at the tables themselves, read by
py-lmdb and msgpack as FORMAT.md has them.
"""

from __future__ import annotations

import contextlib
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

_TABLES = (
    "meta schemas states sessions counts index holders unique metadata leases records".split()
)  # in the order of their bytes, from 1

Tables = dict[str, list[tuple[bytes, bytes]]]


class Record(NamedTuple):
    """What the judge reads of a record."""

    id: str
    tag: str
    revision: int
    home: int
    schema: int
    fields: dict[str, Any]

    @property
    def state(self) -> str:
        return self.fields.get("state", "")


class Index(NamedTuple):
    """What the judge reads of a session's index."""

    ids: list[str]  # in the order of Ns
    row: list[Any]  # number, total, mirror


class Held(NamedTuple):
    """What the judge reads of a store."""

    records: dict[int, Record]
    sessions: dict[bytes, Index]
    damaged: set[int]


def number_of(id_: str) -> int:
    """Return the N of an ID: a session's tasks are in the order of these."""
    return int(id_.rpartition(".")[2])


def check(path: str | os.PathLike[str], damaged: Collection[str] = (), mirror: bool = True) -> list[str]:
    """Return a session's IDs in their order, if all that is known of it agrees.

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
        assert sorted(read_mirror(path)) == sorted(ids), "session_ids.txt"
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
            _check_mirror(Path(path, "session_ids.txt"), index)
    return ids


def read_mirror(path: str | os.PathLike[str]) -> list[str]:
    """Return the IDs that session_ids.txt holds, as any program would read them."""
    text = Path(path, "session_ids.txt").read_text()
    assert not text or text.endswith("\n"), "the last line of session_ids.txt is cut"
    return [line.strip() for line in text.split("\n") if line.strip()]


def range_of(table: str) -> bytes:
    """Return the byte with which the keys of a table begin in a data file."""
    return bytes([_TABLES.index(table) + 1])


def data_file(path: str | os.PathLike[str], url: str = "") -> Path | None:
    """Return the data file of a session's store, or None if it has not been made."""
    file = Path(
        path, unquote(url.removeprefix("lmdb:").removeprefix("//"), errors="surrogateescape") or "jobs", "data.mdb"
    )
    return file if file.exists() else None


@contextlib.contextmanager
def copied(directory: str | os.PathLike[str]) -> Iterator[lmdb.Environment]:
    """Open a copy of the environment: the process may have that itself open."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copyfile(os.path.join(directory, "data.mdb"), os.path.join(copy, "data.mdb"))
        with lmdb.open(copy, readonly=True, lock=False, map_size=1 << 36) as env:
            yield env


def read_tables(directory: str | os.PathLike[str]) -> Tables:
    """Return all items of all tables of the store in *directory*."""
    tables: Tables = {name: [] for name in _TABLES}
    with copied(directory) as env, env.begin() as transaction:
        for key, value in transaction.cursor():
            tables[_TABLES[key[0] - 1]].append((key[1:], value))
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
        tables = {name: rows(name, "key, value") for name in _TABLES}
        versions = rows("layout", "version, version")
    assert versions == [(2, 2)]
    return tables


def unsealed(number: int, data: bytes) -> Any:
    """Return what is sealed.  Raise ValueError if its checksum is wrong."""
    body, mark, checksum = data[:-5], data[-5:-4], int.from_bytes(data[-4:], "big")
    if mark != b"\xce" or zlib.crc32(body, number % 2**32) != checksum:
        raise ValueError("checksum")
    return msgpack.unpackb(body, strict_map_key=False, unicode_errors="surrogatepass")


def _numbered(table: list[tuple[bytes, bytes]]) -> dict[int, Any]:
    return {int.from_bytes(key, "big"): unsealed(int.from_bytes(key, "big"), data) for key, data in table}


def check_tables(tables: Tables) -> Held:
    """Return what a store holds, if its tables agree with each other."""
    meta = dict(tables["meta"])
    assert msgpack.unpackb(meta[b"format"]) == 2
    next_number = int.from_bytes(meta.get(b"next N", b"\0" * 7 + b"\1"), "big")
    schemas, states = _numbered(tables["schemas"]), {0: "", **_numbered(tables["states"])}
    assert len({(tag, name, kind, tuple(fields)) for tag, name, kind, fields in schemas.values()}) == len(schemas)
    assert len(set(states.values())) == len(states)
    records, damaged = _records(tables, schemas)
    assert max(records, default=0) < next_number, "an N that may be given out again"
    assert int.from_bytes(meta.get(b"records", b""), "big") == len(tables["records"]), "the count of the records"
    rows = {identity: unsealed(0, data) for identity, data in tables["sessions"]}
    named = {identity: int.from_bytes(key[8:], "big") for key, identity in meta.items() if key[:8] == b"session "}
    assert named == {identity: row[0] for identity, row in rows.items()}, "the numbers of the sessions"
    members = _members(tables)
    assert {session for session, *_ in members} <= {row[0] for row in rows.values()}, "an index of no session"
    _check_counts(tables, members, rows)
    _check_homes(tables, members, records, damaged)
    numbers: dict[int, dict[int, str]] = {row[0]: {} for row in rows.values()}
    for (session, schema, state), some in members.items():
        for number in some:
            assert number in records or number in damaged, f"an index entry without its record: {number}"
            id_ = f"{schemas[schema][1]}.{number}"
            assert number not in numbers[session], f"{id_} is in two entries of the index"
            numbers[session][number] = id_
            if number in records:
                assert (records[number].id, records[number].schema) == (id_, schema)
                assert records[number].state == states[state], f"{id_} is not in {states[state]!r}"
    sessions = {
        identity: Index([id_ for _, id_ in sorted(numbers[row[0]].items())], row) for identity, row in rows.items()
    }
    return Held(records, sessions, damaged)


def _records(tables: Tables, schemas: dict[int, Any]) -> tuple[dict[int, Record], set[int]]:
    records, damaged = {}, set()
    for key, data in tables["records"]:
        number = int.from_bytes(key, "big")
        assert len(key) == 8
        try:
            schema, revision, home, values = unsealed(number, data)
        except ValueError:
            damaged.add(number)
            continue
        tag, name, _, fields = schemas[schema]
        assert revision >= 1
        assert len(values) == len(fields)
        content = dict(zip(fields, values, strict=True))
        records[number] = Record(f"{name}.{number}", tag, revision, home, schema, content)
    return records, damaged


def _members(tables: Tables) -> dict[tuple[int, int, int], list[int]]:
    """Return the Ns of each session, schema and state."""
    members: dict[tuple[int, int, int], list[int]] = {}
    for key, value in tables["index"]:
        session, block, schema, state = struct.unpack(">IQII", key)
        body = value[:-4]
        assert zlib.crc32(body, zlib.crc32(key)) == int.from_bytes(value[-4:], "big"), "the checksum of members"
        if len(body) == 512:
            places = [p for p in range(4096) if body[p // 8] >> p % 8 & 1]
            assert len(places) > 64
        else:
            places = [place for (place,) in struct.iter_unpack(">H", body)]
            assert 0 < len(places) <= 64
            assert places == sorted(set(places))
            assert places[-1] < 4096
        members.setdefault((session, schema, state), []).extend(4096 * block + place for place in places)
    return members


def _check_counts(
    tables: Tables, members: dict[tuple[int, int, int], list[int]], rows: dict[bytes, list[Any]]
) -> None:
    counts = {struct.unpack(">III", key): int.from_bytes(value, "big") for key, value in tables["counts"]}
    assert counts == {kind: len(numbers) for kind, numbers in members.items()}, "counts"
    totals = Counter({row[0]: 0 for row in rows.values()})
    for (session, *_), count in counts.items():
        totals[session] += count
    assert totals == {row[0]: row[1] for row in rows.values()}, "the totals of the sessions"


def _check_homes(
    tables: Tables,
    members: dict[tuple[int, int, int], list[int]],
    records: dict[int, Record],
    damaged: set[int],
) -> None:
    holding = {(number, session) for (session, *_), numbers in members.items() for number in numbers}
    others = {struct.unpack(">QI", key) for key, _ in tables["holders"]}
    homes = {(number, record.home) for number, record in records.items() if record.home}
    assert not others & homes, "a home that is a holder, too"
    held = {pair for pair in holding if pair[0] not in damaged}
    assert homes | {pair for pair in others if pair[0] not in damaged} == held, "homes and holders"
    assert all(value == b"" for _, value in tables["holders"])


def _check_mirror(path: Path, index: Index) -> None:
    note = index.row[2]
    if note is None:
        return
    inode, size, blank, _, begin, text, blanks = note
    status, mirror = path.stat(), path.read_bytes()
    assert len(mirror) == size, "the size of the mirror"
    assert status.st_ino == inode, "the inode of the mirror"
    assert blank == size - sum(len(id_) + 1 for id_ in index.ids), "the blank bytes of the mirror"
    gone = {place for offset, length in blanks for place in range(offset, offset + length)}
    step = bytes(byte for place, byte in enumerate(mirror[begin : begin + len(text)], begin) if place not in gone)
    assert not text or step == bytes(byte for place, byte in enumerate(text, begin) if place not in gone)
    assert all(mirror[offset : offset + length].strip() == b"" for offset, length in blanks)
