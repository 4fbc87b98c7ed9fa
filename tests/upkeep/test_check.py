"""Each fault that a session can have is found by `check`, reported once, and repaired by `repair`.

The faults are made in the tables by py-lmdb, as FORMAT.md describes them, and in the files.
"""

from __future__ import annotations

import ast
import enum
import inspect
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest

import lmdb
from children import Child, change_until, in_child
from examples import Note, Simulation, Sweep
from gc3session import CorruptRecord, Session, Task, UnknownFormat, check_session, repair_session
from gc3session.upkeep import check as checking
from gc3session.upkeep import check_index as checked_index
from gc3session.upkeep import check_mirror as checked_mirror
from gc3session.upkeep.finding import Finding

LATE = 1 << 31


class Raw:
    """The tables of a session, open to any change."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Raw:
        self._env = lmdb.open(os.fspath(self.path / "jobs"), create=False, max_dbs=16, map_size=1 << 28)
        sets = {"dupsort": True, "dupfixed": True}
        self._tables = {
            name: self._env.open_db(name.encode(), create=False, **(sets if name in ("members", "states") else {}))
            for name in ("records", "schemas", "meta", "sessions", "late", "late_members", "members", "states")
        }
        self._transaction = self._env.begin(write=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._transaction.commit()
        self._env.close()

    def items(self, table: str) -> list[tuple[bytes, bytes]]:
        return list(self._transaction.cursor(self._tables[table]))

    def get(self, table: str, key: bytes) -> bytes:
        return self._transaction.get(key, db=self._tables[table])  # type: ignore[no-any-return]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes, value: bytes = b"") -> None:
        assert self._transaction.delete(key, value, db=self._tables[table])

    def member(self, number: int) -> tuple[bytes, bytes]:
        """Return the entry of an order in the first session."""
        return next(item for item in self.items("members") if item[1][:8] == n8(number))

    def change_member(self, number: int, **parts: int) -> None:
        key, value = self.member(number)
        order, schema, line = struct.unpack(">QIQ", value)
        self.delete("members", key, value)
        values = {"order": order, "schema": schema, "line": line} | parts
        self.put("members", key, struct.pack(">QIQ", *values.values()))

    def change_row(self, **parts: Any) -> None:
        key, data = self.items("sessions")[0]
        number, size, blank, mark, *rest = msgpack.unpackb(data[4:])
        row = {"number": number, "size": size, "blank": blank, "mark": mark} | parts
        self.put("sessions", key, framed(0, [*row.values(), *rest]))

    def change_record(self, number: int, change: Callable[[list[Any]], Any]) -> None:
        """Change the body of a record, `[schema, revision, values]`; its checksum is right then."""
        body = msgpack.unpackb(self.get("records", n8(number))[4:], strict_map_key=False)
        self.put("records", n8(number), framed(number, change(body)))

    def change_schema(self, number: int, change: Callable[[list[Any]], Any]) -> None:
        body = msgpack.unpackb(self.get("schemas", n4(number))[4:])
        self.put("schemas", n4(number), framed(number, change(body)))


def n8(number: int) -> bytes:
    return number.to_bytes(8, "big")


def n4(number: int) -> bytes:
    return number.to_bytes(4, "big")


def framed(number: int, body: Any) -> bytes:
    data = msgpack.packb(body)
    return zlib.crc32(data, number % 2**32).to_bytes(4, "big") + data


def extended(code: int, data: bytes) -> Callable[[list[Any]], Any]:
    """A record whose last value is an extension."""
    return lambda body: [*body[:2], [*body[2][:-1], msgpack.ExtType(code, data)]]


# Of the session: Simulation.1 to .9 (4 is gone), Sweep.10 with 1 and 2, Note.11, Simulation.12 late as order 13.
# Their schemas are 1, 2 and 3.
FAULTS: dict[str, tuple[Callable[[Raw], None], list[tuple[str, str]]]] = {
    "format": (lambda raw: raw.put("meta", b"format", b"\x02"), [("format", "meta")]),
    "no identity of the store": (lambda raw: raw.put("meta", b"store", b"x"), [("format", "meta")]),
    "next N that is none": (lambda raw: raw.put("meta", b"next N", b"x"), [("sequence", "meta")]),
    "next N too small": (
        lambda raw: raw.put("meta", b"next N", n8(13)),
        [("sequence", "Simulation.12")],
    ),
    "next N too small for a record": (
        lambda raw: raw.put("meta", b"next N", n8(12)),
        [("sequence", "Simulation.12"), ("sequence", "Simulation.12")],
    ),
    "next session that is none": (lambda raw: raw.put("meta", b"next session", b"x"), [("sequence", "meta")]),
    "next session too small": (lambda raw: raw.put("meta", b"next session", n4(1)), [("sequence", "session ")]),
    "schema that isn't used damaged": (
        lambda raw: raw.put("schemas", n4(9), b"\0\0\0\0\x90"),
        [("schema", "schema 9")],
    ),
    "record with a flipped bit": (
        lambda raw: raw.put("records", n8(3), raw.get("records", n8(3))[:-1] + b"\xff"),
        [("record", "record 3")],
    ),
    "record in another's place": (
        lambda raw: raw.put("records", n8(3), raw.get("records", n8(5))),
        [("record", "record 3")],
    ),
    "record with a value more": (
        lambda raw: raw.change_record(3, lambda body: [*body[:2], [*body[2], 1]]),
        [("record", "record 3")],
    ),
    "record of no schema": (
        lambda raw: raw.change_record(3, lambda body: [77, *body[1:]]),
        [("record", "record 3")],
    ),
    "record of revision 0": (
        lambda raw: raw.change_record(3, lambda body: [body[0], 0, body[2]]),
        [("record", "record 3")],
    ),
    "record of two parts": (lambda raw: raw.change_record(3, lambda body: body[:2]), [("record", "record 3")]),
    **{
        f"extension {code} {data!r}": (
            lambda raw, code=code, data=data: raw.change_record(3, extended(code, data)),
            [("record", "record 3")],
        )
        for code, data in (
            (1, b"\xc1"), (2, b"\x01"), (4, b""), (5, b"\x91\x01"), (6, b"\x93\x01\x02\x03"), (7, b"\x93\x00\x00\x00"),
            (8, b"\x96\x63\0\0\0\0\xc0"), (9, b"\x91\x01"), (10, b"\xa1x"), (11, b"\x92\x01\x00"), (12, b"123"),
            (13, b"\x92\xa1x\xa1y"), (14, b"\x91\xa1x"), (15, b"\x93\xa1x\x91\xa1y\x90"), (16, b"1234"), (17, b"\x92\xc0\x01"),
            (18, b"\x93\x01\x90\xc4\0"),
        )
    },
    "key of a record that is no N": (
        lambda raw: raw.put("records", b"123", raw.get("records", n8(3))),
        [("record", "record ")],
    ),
    "entry without its record": (lambda raw: raw.delete("records", n8(3)), [("index", "Simulation.3")]),
    "entry without its state": (
        lambda raw: raw.delete("states", n4(1) + b"NEW", n8(3)),
        [("state", "Simulation.3")],
    ),
    "entry in the wrong state": (
        lambda raw: (raw.delete("states", n4(1) + b"NEW", n8(3)), raw.put("states", n4(1) + b"X", n8(3))),
        [("state", "Simulation.3")],
    ),
    "entry in two states": (lambda raw: raw.put("states", n4(1) + b"X", n8(3)), [("state", "Simulation.3")]),
    "state of no entry": (lambda raw: raw.put("states", n4(1) + b"NEW", n8(4)), [("state", "entry 4")]),
    "state after all entries": (lambda raw: raw.put("states", n4(1) + b"NEW", n8(99)), [("state", "entry 99")]),
    "entry of no schema": (lambda raw: raw.change_member(3, schema=77), [("index", "Unreadable.3")]),
    "entry of another's name": (lambda raw: raw.change_member(3, schema=3), [("index", "Note.3"), ("mirror", "session_ids.txt"), ("session", "session ")]),
    "lines that overlap": (lambda raw: raw.change_member(3, line=2), [("mirror", "Simulation.3")]),
    "line beyond the end": (lambda raw: raw.change_member(9, line=10**6), [("mirror", "Simulation.9")]),
    "row with wrong blanks": (lambda raw: raw.change_row(blank=1), [("session", "session ")]),
    "row of a wrong size": (lambda raw: raw.change_row(size=1000), [("session", "session "), ("mirror", "session_ids.txt")]),
    "row with a bad checksum": (
        lambda raw: raw.put("sessions", raw.items("sessions")[0][0], b"\0\0\0\0\x90"),
        [("session", "session ")],
    ),
    "row with a bad mark": (
        lambda raw: raw.change_row(mark=[1]),
        [("session", "session ")],
    ),
    "two rows of one number": (
        lambda raw: raw.put("sessions", b"\xff" * 16, raw.items("sessions")[0][1]),
        [("session", "session ffff")],
    ),
    "entries of a session without a row": (
        lambda raw: (raw.put("members", n4(2), struct.pack(">QIQ", 3, 1, 0)), raw.put("states", n4(2) + b"NEW", n8(3))),
        [("session", "session number 2")],
    ),
    "late entry that leads nowhere": (
        lambda raw: raw.delete("late", n8(13)),
        [("late", "entry 13"), ("late", "record 12")],
    ),
    "late entry that nothing leads to": (
        lambda raw: raw.delete("late_members", n8(12) + n4(1)),
        [("late", "Simulation.12")],
    ),
    "late entry of no session": (lambda raw: raw.put("late", n8(4), n8(5)), [("late", "entry 4")]),
    "record that leads to no entry": (
        lambda raw: raw.put("late_members", n8(4) + n4(1), n8(99)),
        [("late", "record 4")],
    ),
    "record that is in the session twice": (
        lambda raw: raw.put("late_members", n8(3) + n4(1), n8(13)),
        [("late", "Simulation.3"), ("late", "record 3")],
    ),
}  # fmt: skip


def fill(path: Path, **options: Any) -> None:
    """Make a session with an entry of each kind."""
    with Session(path, **options) as session:
        tasks = [Simulation(jobname=f"t{i}") for i in range(9)]
        for task in tasks:
            session.add(task)
        session.remove(tasks[3].persistent_id)
        session.add(Sweep(tasks=tasks[:2]))
        session.add(Note(text="x", about=tasks[4]))
        late = Simulation(jobname="late")
        session.store.save(late)
        session.add(late)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A session with an entry of each kind."""
    path = tmp_path / "session"
    fill(path)
    with Raw(path) as raw:
        assert [int.from_bytes(key, "big") for key, _ in raw.items("records")] == [
            1,
            2,
            3,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            12,
        ]
        assert [int.from_bytes(key, "big") for key, _ in raw.items("late")] == [13]
    assert list(check_session(path)) == []
    return path


reached: set[tuple[str, int]] = set()
"""Where in the code of the check the findings of these tests were made: file and line."""


def found(path: Path) -> list[Finding]:
    """Return the findings, and note where they were made."""
    make = Finding.__init__

    def noting(self: Finding, *args: Any) -> None:
        frame = sys._getframe(1)
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        make(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finding, "__init__", noting)
        return list(check_session(path, references=True))


def is_of(findings: list[Finding], expected: list[tuple[str, str]]) -> bool:
    return len(findings) == len(expected) and all(
        finding.kind == kind and finding.where.startswith(where)
        for finding, (kind, where) in zip(findings, expected, strict=True)
    )


def test_each_fault_of_the_tables_is_found_once_and_mended(path: Path, tmp_path: Path) -> None:
    failures = []
    for name, (fault, expected) in FAULTS.items():
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        with Raw(copy) as raw:
            fault(raw)
        findings = found(copy)
        if not is_of(findings, expected):
            failures.append(f"{name}: {[(f.kind, f.where, f.message) for f in findings]}")
        if name == "format":  # a later version of gc3session may have written it
            with pytest.raises(UnknownFormat, match="upgrade gc3session"):
                repair_session(copy)
        else:
            repair_session(copy)
            left = list(check_session(copy))
            if left:
                failures.append(f"{name}, after the repair: {left}")
    assert not failures, "\n".join(failures)


FILES: dict[str, tuple[Callable[[Path], Any], list[tuple[str, str]]]] = {
    "created missing": (lambda path: (path / "created").unlink(), [("directory", "created")]),
    "finished a directory": (lambda path: (path / "finished").mkdir(), [("directory", "finished")]),
    "store.url garbage": (lambda path: (path / "store.url").write_bytes(b"x"), [("directory", "store.url")]),
    "store.url of no scheme": (
        lambda path: (path / "store.url").write_bytes(b"none:x#" + b"0" * 32 + b"\n"),
        [("directory", "store.url")],
    ),
    "store missing": (lambda path: shutil.rmtree(path / "jobs"), [("directory", "lmdb:")]),
    "mirror missing": (lambda path: (path / "session_ids.txt").unlink(), [("mirror", "session_ids.txt")]),
    "mirror a directory": (
        lambda path: ((path / "session_ids.txt").unlink(), (path / "session_ids.txt").mkdir()),
        [("mirror", "session_ids.txt")],
    ),
    "mirror longer": (
        lambda path: (path / "session_ids.txt").open("a").write("Task.1\n"),
        [("mirror", "session_ids.txt")],
    ),
    "mirror with a wrong line": (
        lambda path: (path / "session_ids.txt").write_text(
            (path / "session_ids.txt").read_text().replace("Simulation.3", "Simulation.4")
        ),
        [("mirror", "session_ids.txt")],
    ),
    "mirror with text in a blank line": (
        lambda path: (path / "session_ids.txt").write_text((path / "session_ids.txt").read_text().replace("  ", "xx", 1)),
        [("mirror", "session_ids.txt")],
    ),
    "data empty": (lambda path: os.truncate(path / "jobs" / "data.mdb", 0), [("structure", "lmdb:")]),
    "a page of a tree zeroed": (lambda path: zero_root(path, "records"), [("structure", "lmdb:")]),
}  # fmt: skip


def zero_root(path: Path, table: str) -> None:
    """Zero the root page of a table."""
    file = path / "jobs" / "data.mdb"
    data = bytearray(file.read_bytes())
    with (
        lmdb.open(os.fspath(path / "jobs"), readonly=True, max_dbs=16, map_size=1 << 28) as env,
        env.begin() as txn,
    ):
        described = txn.get(table.encode())
    root = int.from_bytes(described[40:48], sys.byteorder)
    data[root * 4096 : (root + 1) * 4096] = bytes(4096)
    file.write_bytes(data)


def test_each_fault_of_the_files_is_found_and_mended(path: Path, tmp_path: Path) -> None:
    failures = []
    for name, (fault, expected) in FILES.items():
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        in_child(lambda fault=fault, copy=copy: fault(copy) and None)
        findings = found(copy)
        if not is_of(findings, expected):
            failures.append(f"{name}: {[(f.kind, f.where, f.message) for f in findings]}")
        repair_session(copy)
        left = list(check_session(copy))
        if left:
            failures.append(f"{name}, after the repair: {left}")
    assert not failures, "\n".join(failures)


def test_reference_to_a_missing_record_is_counted_and_a_finding_only_if_asked(path: Path) -> None:
    with Session(path) as session:
        session.remove("Simulation.2")
        check = session.check()
        assert list(check) == []
        assert (check.dangling, check.examples) == (1, [("Sweep.10", 2)])
        assert [(f.kind, f.where) for f in session.check(references=True)] == [("reference", "Sweep.10")]
    assert [f.kind for f in found(path)] == ["reference"]


def test_two_sessions_can_not_both_have_added_a_record_first(tmp_path: Path) -> None:
    with (
        Session(tmp_path / "a", store_or_url=tmp_path / "store") as a,
        Session(tmp_path / "b", store_or_url=a.store) as b,
    ):
        id_, _ = a.add(Task()), b.add(Task())
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "jobs").symlink_to(tmp_path / "store")
    with Raw(tmp_path / "raw") as raw:
        raw.put("members", n4(2), struct.pack(">QIQ", int(id_[5:]), 1, 100))
        raw.put("states", n4(2) + b"NEW", n8(int(id_[5:])))
    assert "two sessions have it" in str(found(tmp_path / "a"))


def test_store_elsewhere_that_is_missing_or_does_not_know_the_session_is_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Session(tmp_path / name, store_or_url=tmp_path / f"store of {name}").close()
    url = tmp_path / "a" / "store.url"
    for other in ("store%20of%20b", "nothing"):
        url.write_text(re.sub(r"store%20of%20a|store%20of%20b", other, url.read_text()))
        assert [(f.kind, f.where) for f in found(tmp_path / "a")] == [("directory", "store.url")]


def _sites() -> Iterator[tuple[str, int]]:
    """Give each place in the check's code that makes a finding."""
    for module in (checking, checked_index, checked_mirror):
        file = inspect.getfile(module)
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                yield file, node.lineno


def test_each_check_is_needed_by_one_of_these_tests(path: Path, tmp_path: Path) -> None:
    # As the findings of each fault are compared one by one, a check that is disabled makes one of them fail.
    reached.clear()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "3").mkdir()
    test_each_fault_of_the_tables_is_found_once_and_mended(path, tmp_path / "1")
    test_each_fault_of_the_files_is_found_and_mended(path, tmp_path / "1")
    test_two_sessions_can_not_both_have_added_a_record_first(tmp_path / "2")
    test_reference_to_a_missing_record_is_counted_and_a_finding_only_if_asked(path)
    test_store_elsewhere_that_is_missing_or_does_not_know_the_session_is_found(tmp_path / "3")
    lines = {}
    for file, line in _sites():
        lines[Path(file).name, line] = any(file == f and line <= at <= line + 8 for f, at in reached)
    assert [site for site, hit in lines.items() if not hit] == []


SCHEMAS: dict[str, Callable[[list[Any]], Any]] = {
    "three parts": lambda body: body[:3],
    "no name": lambda body: [body[0], "", *body[2:]],
    "kind 3": lambda body: [*body[:2], 3, body[3]],
    "kind true": lambda body: [*body[:2], True, body[3]],
    "fields that are text": lambda body: [*body[:3], "state"],
    "a field that is a number": lambda body: [*body[:3], [*body[3][:-1], 1]],
    "a field twice": lambda body: [*body[:3], [*body[3][:-1], body[3][0]]],
    "no state": lambda body: [*body[:3], [*(name for name in body[3] if name != "state"), "x"]],
}


@pytest.mark.parametrize("change", SCHEMAS.values(), ids=SCHEMAS)
def test_schema_that_can_not_be_one_is_found(path: Path, change: Callable[[list[Any]], Any]) -> None:
    with Raw(path) as raw:
        raw.change_schema(1, change)
    assert [finding.where for finding in found(path) if finding.kind == "schema"] == ["schema 1"]
    with Session(path, read_only=True) as session, pytest.raises(CorruptRecord, match="schema 1 is damaged: "):
        session.load("Simulation.1")


class Colour(enum.Flag):
    RED = 1


@attrs.define(eq=False)
class Loud:
    text: str

    def __hash__(self) -> int:
        raise AssertionError("the code of the program has been run")


def test_check_uses_no_class_of_the_program(path: Path) -> None:
    with Session(path) as session:
        session.add(Simulation(inputs={"colour": Colour.RED, "loud": Loud("x")}))
    with Raw(path) as raw:
        key, record = raw.items("records")[-1]
        schema, revision, values = msgpack.unpackb(record[4:], strict_map_key=False)
        inputs = next(value for value in values if isinstance(value, dict) and "loud" in value)
        inputs["set"] = msgpack.ExtType(2, msgpack.packb([inputs["loud"]]))
        tag, _ = msgpack.unpackb(inputs["colour"].data)
        inputs["colour"] = msgpack.ExtType(14, msgpack.packb([tag, "no number"]))
        raw.put("records", key, framed(int.from_bytes(key, "big"), [schema, revision, values]))
    assert found(path) == []
    assert repair_session(path).done == []


def test_check_beside_writers_finds_nothing(path: Path, long_form: bool) -> None:
    writers = [Child(change_until, path.parent / "stop", path) for _ in range(2)]
    try:
        for _ in range(100 if long_form else 8):
            assert list(check_session(path)) == []
    finally:
        (path.parent / "stop").touch()
        for writer in writers:
            writer.result()
    assert list(check_session(path)) == []


def test_check_changes_nothing(path: Path) -> None:
    before = {
        f: (f.read_bytes(), f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file() and f.name != "lock.mdb"
    }
    assert list(check_session(path)) == []
    assert before == {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in before}
