"""Each fault that the tables on a server can have is found by `check` and repaired by `repair`, also beside writers.

The faults are those of test_check.py, made by SQL.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from children import Child, change_until
from consistency import check
from gc3session import DamagedSession, Session, Task, UnknownFormat, check_session, repair_session
from gc3session.tables.postgresql.address import address_of
from raw_tables import TABLES, Raw, n4, n8
from test_check import FAULTS, FILES, fill, is_of


class OnServer(Raw):
    """The tables of a session on a server, open to any change."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path)
        address = address_of(url)
        self._options = address.options
        self._schema = address.schema

    def __enter__(self) -> OnServer:
        self._connection = psycopg.connect(**self._options)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.commit()
        self._connection.close()

    def ask(self, statement: str, *parameters: Any) -> list[Any]:
        """Execute a statement; {records} and the like in it are the tables."""
        quoted = {name: sql.Identifier(self._schema, name).as_string(None) for name in TABLES}
        names = {name: sql.SQL(text.replace("%", "%%")) for name, text in quoted.items()}
        cursor = self._connection.execute(sql.SQL(statement).format(**names), parameters, binary=True)
        return cursor.fetchall() if cursor.description else []

    def items(self, table: str) -> list[tuple[bytes, bytes]]:
        return self.ask(f"SELECT key, value FROM {{{table}}} ORDER BY key")

    def get(self, table: str, key: bytes) -> bytes:
        [(value,)] = self.ask(f"SELECT value FROM {{{table}}} WHERE key = %b", key)
        return bytes(value)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.ask(f"DELETE FROM {{{table}}} WHERE key = %b", key)
        self.ask(f"INSERT INTO {{{table}}} (key, value) VALUES (%b, %b)", key, value)

    def delete(self, table: str, key: bytes) -> None:
        assert self.ask(f"DELETE FROM {{{table}}} WHERE key = %b RETURNING 1", key)

    def keep(self) -> None:
        """Keep what the tables hold, for `restore`."""
        for table in TABLES:
            self.ask(f"CREATE TEMPORARY TABLE kept_{table} AS SELECT * FROM {{{table}}}")
        self._connection.commit()

    def restore(self) -> None:
        for table in TABLES:
            self.ask(f"DELETE FROM {{{table}}}")
            self.ask(f"INSERT INTO {{{table}}} SELECT * FROM kept_{table}")
        self._connection.commit()


@pytest.fixture
def raw(postgresql_url: str, tmp_path: Path) -> Iterator[OnServer]:
    """A session on a server, with an entry of each kind."""
    fill(tmp_path / "session", store_or_url=postgresql_url)
    with OnServer(tmp_path / "session", postgresql_url) as raw:
        raw.keep()
        yield raw


def faulty(raw: OnServer, tmp_path: Path, fault: Callable[[Any], Any]) -> Path:
    """Return a directory of the session, whose tables have that fault alone."""
    raw.restore()
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(raw.path, copy)
    status = (raw.path / "session_ids.txt").stat()
    assert (copy / "session_ids.txt").stat().st_mtime_ns == status.st_mtime_ns
    fault(raw)
    raw._connection.commit()
    return copy


def test_each_fault_of_the_tables_is_found_and_mended(raw: OnServer, tmp_path: Path) -> None:
    failures = []
    for name, (fault, expected) in FAULTS.items():
        copy = faulty(raw, tmp_path, fault)
        findings = list(check_session(copy, references=True))
        # The mirror of a copy is known to be stale: it is another place.
        expected = [each for each in expected if each != ("mirror", "session_ids.txt")]
        if not is_of(findings, expected):
            failures.append(f"{name}: {[str(finding) for finding in findings]}")
        if name == "format":
            with pytest.raises(UnknownFormat, match="upgrade gc3session"):
                repair_session(copy)
            continue
        done = repair_session(copy)
        if expected and not done.done:
            failures.append(f"{name}: {done}")
        left = [str(finding) for finding in check_session(copy)]
        if left:
            failures.append(f"{name}, after the repair: {left}")
        if not done.quarantined and any(kind in ("record", "schema", "metadata") for kind, _ in expected):
            failures.append(f"{name}: nothing is kept of what was taken out")
    assert not failures, "\n".join(failures)


def test_each_fault_of_the_files_is_found_and_mended(raw: OnServer) -> None:
    names = [
        "created missing",
        "mirror missing",
        "mirror a directory",
        "mirror longer",
        "mirror with a wrong line",
    ]
    for name in names:
        fault, expected = FILES[name]
        fault(raw.path)
        assert is_of(list(check_session(raw.path)), expected), name
        repair_session(raw.path)
        assert list(check_session(raw.path)) == [], name
        assert len(check(raw.path)) == 11


@pytest.mark.parametrize("text", ["", "x\n", "postgresql://nobody@/x?sslmode=nosuchmode#" + 32 * "0" + "\n"])
def test_repair_leaves_a_session_alone_whose_store_nobody_can_tell(
    raw: OnServer, tmp_path: Path, text: str
) -> None:
    copy = faulty(raw, tmp_path, lambda raw: None)
    (copy / "store.url").write_text(text)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    assert next(check_session(copy)).kind == "directory"
    for dry_run in (True, False):
        with pytest.raises(DamagedSession, match=r"store\.url"):
            repair_session(copy, dry_run=dry_run)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_check_and_repair_beside_writers(postgresql_url: str, tmp_path: Path, long_form: bool) -> None:
    """No state is taken for damaged, and nothing that others write meanwhile is lost by a repair."""
    path, other = tmp_path / "session", tmp_path / "other"
    first = []
    for each in (path, other):
        with Session(each, store_or_url=postgresql_url) as session:
            first.append(session.add(Task(jobname="first")))

    writers = [Child(change_until, tmp_path / "stop", each, 0.02) for each in (path, path, other)]
    try:
        with OnServer(path, postgresql_url) as raw:
            for n in range(40 if long_form else 8):
                assert list(check_session(path)) == []
                if n % 2:
                    raw.put("leases", n8(10**9 + n) + n4(1), b"none")
                    raw.put("meta", b"session " + n4(10**9 + n), bytes(16))
                    raw._connection.commit()
                    assert len(repair_session(path).done) >= 2
    finally:
        (tmp_path / "stop").touch()
        ids = [writer.result() for writer in writers]
    assert sorted(check(path)) == sorted([first[0], *ids[0], *ids[1]])
    assert check(other) == [first[1], *ids[2]]
