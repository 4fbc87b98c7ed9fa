"""Each fault that a session can have is found by `check`, reported once, and repaired by `repair`.

The faults are made in the tables by py-lmdb, as FORMAT.md describes them, and in the files.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import inspect
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest

from children import Child, Died, change_until, in_child, start_python
from consistency import check
from examples import Note, Simulation, Sweep
from gc3session import CorruptRecord, Session, Task, UnknownFormat, check_session, repair_session
from gc3session.index.mirror import Mirror
from gc3session.tables.lmdb import held_state
from gc3session.upkeep import check as checking
from gc3session.upkeep import check_index as checked_index
from gc3session.upkeep import check_mirror as checked_mirror
from gc3session.upkeep import check_tables as checked_tables
from gc3session.upkeep.finding import Finding
from raw_tables import Raw, members, n4, n8, sealed, unsealed


def extended(code: int, data: bytes) -> Callable[[list[Any]], Any]:
    """A record whose last value is an extension."""
    return lambda body: [*body[:3], [*body[3][:-1], msgpack.ExtType(code, data)]]


def in_state(state: str) -> Callable[[list[Any]], Any]:
    """A record in another state."""
    return lambda body: [*body[:3], [state if value == "NEW" else value for value in body[3]]]


def both(*faults: Callable[[Raw], Any]) -> Callable[[Raw], None]:
    return lambda raw: [fault(raw) for fault in faults] and None


# Of the session: Simulation.1 to .9 (4 is gone), Sweep.10 with 1 and 2, Note.11, Simulation.12.
# Their schemas are 1, 2 and 3, the state NEW has the number 1; all are in block 0.
SIMULATIONS = (1, 2, 3, 5, 6, 7, 8, 9, 12)
BLOCK = "session 1, block 0"
FAULTS: dict[str, tuple[Callable[[Raw], Any], list[tuple[str, str]]]] = {
    "format": (lambda raw: raw.put("meta", b"format", b"\x03"), [("format", "meta")]),
    "no identity of the store": (lambda raw: raw.put("meta", b"store", b"x"), [("format", "meta")]),
    "next N that is none": (lambda raw: raw.put("meta", b"next N", b"x"), [("sequence", "meta")]),
    "next N too small": (lambda raw: raw.put("meta", b"next N", n8(12)), [("sequence", "meta")]),
    "count of the records": (lambda raw: raw.put("meta", b"records", n8(12)), [("format", "meta")]),
    "next session that is none": (lambda raw: raw.put("meta", b"next session", b"x"), [("sequence", "meta")]),
    "next session too small": (lambda raw: raw.put("meta", b"next session", n4(1)), [("sequence", "meta")]),
    "no identity of a session": (lambda raw: raw.delete("meta", b"session " + n4(1)), [("session", "session ")]),
    "identity of no session": (
        lambda raw: raw.put("meta", b"session " + n4(9), bytes(16)),
        [("session", "meta b'session")],
    ),
    "schema that isn't used damaged": (
        lambda raw: raw.put("schemas", n4(9), b"\x90\xce\0\0\0\0"),
        [("schema", "schema 9")],
    ),
    "state damaged": (
        lambda raw: raw.put("states", n4(1), raw.get("states", n4(1))[:-1] + b"x"),
        [("state", "state 1"), ("index", BLOCK), ("index", BLOCK)],
    ),
    "state missing": (lambda raw: raw.delete("states", n4(1)), 2 * [("index", BLOCK)]),
    "state that isn't used damaged": (lambda raw: raw.put("states", n4(9), b"x"), [("state", "state 9")]),
    "state of a wrong key": (lambda raw: raw.put("states", b"\0\7", b"x"), [("state", "state 7")]),
    "state that is no text": (lambda raw: raw.put("states", n4(2), sealed(2, 1)), [("state", "state 2")]),
    "two states of one name": (lambda raw: raw.put("states", n4(2), sealed(2, "NEW")), [("state", "state 2")]),
    "record with a flipped bit": (
        lambda raw: raw.put("records", n8(3), (data := raw.get("records", n8(3)))[:-1] + bytes([data[-1] ^ 1])),
        [("record", "record 3")],
    ),
    "record in another's place": (
        lambda raw: raw.put("records", n8(3), raw.get("records", n8(5))),
        [("record", "record 3")],
    ),
    "record with a value more": (
        lambda raw: raw.change_record(3, lambda body: [*body[:3], [*body[3], 1]]),
        [("record", "record 3")],
    ),
    "record of no schema": (
        lambda raw: raw.change_record(3, lambda body: [77, *body[1:]]),
        [("record", "record 3")],
    ),
    "record of revision 0": (
        lambda raw: raw.change_record(3, lambda body: [body[0], 0, *body[2:]]),
        [("record", "record 3")],
    ),
    "record of three parts": (lambda raw: raw.change_record(3, lambda body: body[:3]), [("record", "record 3")]),
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
        [("record", "records 313233")],
    ),
    "record that is gone": (
        both(lambda raw: raw.delete("records", n8(3)), lambda raw: raw.put("meta", b"records", n8(10))),
        [("index", "Simulation.3")],
    ),
    "home without the index": (
        both(lambda raw: raw.put_members(1, 2, 5, 6, 7, 8, 9, 12), lambda raw: raw.put_count(8), lambda raw: raw.change_row(total=10)),
        [("mirror", "session_ids.txt"), ("index", "Simulation.3")],
    ),
    "index without a home": (
        lambda raw: raw.change_record(3, lambda body: [*body[:2], 0, body[3]]),
        [("index", "Simulation.3")],
    ),
    "index without any home": (
        lambda raw: [raw.change_record(n, lambda body: [*body[:2], 0, body[3]]) for n in (*SIMULATIONS, 10, 11)],
        [*(("index", f"Simulation.{n}") for n in SIMULATIONS), ("index", "Sweep.10"), ("index", "Note.11")],
    ),
    "home that is no session": (
        lambda raw: raw.change_record(3, lambda body: [*body[:2], 5, body[3]]),
        [("index", "Simulation.3"), ("session", "session 5"), ("index", "Simulation.3")],
    ),
    "holder that is no session": (
        lambda raw: raw.put("holders", n8(3) + n4(5), b""),
        [("session", "session 5"), ("index", "Simulation.3")],
    ),
    "holder of no record": (lambda raw: raw.put("holders", n8(4) + n4(1), b""), [("index", "record 4")]),
    "holder that is the home": (lambda raw: raw.put("holders", n8(3) + n4(1), b""), [("index", "Simulation.3")]),
    "holder of a strange key": (lambda raw: raw.put("holders", n8(3), b""), [("index", "holders ")]),
    "holder with a value": (lambda raw: raw.put("holders", n8(4) + n4(1), b"x"), [("index", "holders ")]),
    "task in the wrong state": (lambda raw: raw.change_record(3, in_state("DONE")), [("state", "Simulation.3")]),
    "task of the wrong schema": (
        both(
            lambda raw: raw.put("schemas", n4(4), sealed(4, unsealed(raw.get("schemas", n4(1))))),
            lambda raw: raw.change_record(3, lambda body: [4, *body[1:]]),
        ),
        [("index", "Simulation.3")],
    ),
    "task in two entries": (
        both(lambda raw: raw.put_members(3, state=0), lambda raw: raw.put_count(1, state=0), lambda raw: raw.change_row(total=12)),
        [("index", "Simulation.3"), ("mirror", "session_ids.txt"), ("state", "Simulation.3")],
    ),
    "entry of no schema": (
        both(
            lambda raw: raw.put_members(3, schema=77), lambda raw: raw.put_members(1, 2, 5, 6, 7, 8, 9, 12),
            lambda raw: raw.put_count(8), lambda raw: raw.put_count(1, schema=77),
        ),
        [("index", BLOCK)],
    ),
    "entry of another block": (
        lambda raw: raw.put("index", key := struct.pack(">IQII", 1, 7, 1, 1), members(key, 3)),
        [("index", "session 1, schema 1"), ("session", "session "), ("mirror", "session_ids.txt"), ("index", f"Simulation.{7 * 4096 + 3}")],
    ),
    "entry with a flipped bit": (
        lambda raw: raw.put("index", (item := raw.items("index")[0])[0], b"\xff" + item[1][1:]),
        [("index", BLOCK)],
    ),
    "entry without members": (
        lambda raw: raw.put("index", key := struct.pack(">IQII", 1, 0, 1, 0), members(key)),
        [("index", BLOCK)],
    ),
    "entry of a strange key": (lambda raw: raw.put("index", n4(1) + b"x", b"y"), [("index", "session 1, ")]),
    "count of session 0": (lambda raw: raw.put("counts", struct.pack(">III", 0, 1, 1), n8(1)), [("index", "counts 00000000")]),
    "entry of session 0": (lambda raw: raw.put_members(1, session=0), [("index", "index 00000000")]),
    "holder that is session 0": (lambda raw: raw.put("holders", n8(3) + n4(0), b""), [("index", "holders ")]),
    "count that is wrong": (lambda raw: raw.put_count(8), [("index", "session 1, schema 1")]),
    "count that is missing": (
        lambda raw: raw.delete("counts", struct.pack(">III", 1, 1, 1)),
        [("index", "session 1, schema 1")],
    ),
    "count of nothing": (lambda raw: raw.put_count(8, schema=3, state=1), [("index", "session 1, schema 3")]),
    "count that is none": (lambda raw: raw.put("counts", n4(1) + b"x", n8(1)), [("index", "count ")]),
    "row of a wrong total": (lambda raw: raw.change_row(total=10), [("session", "session ")]),
    "row with wrong blanks": (lambda raw: raw.change_note(2, 1), [("mirror", "session_ids.txt")]),
    "row of a wrong size": (lambda raw: raw.change_note(1, 1000), [("mirror", "session_ids.txt")]),
    "row with a bad checksum": (
        lambda raw: raw.put("sessions", raw.items("sessions")[0][0], b"\x90\xce\0\0\0\0"),
        [("session", "session ")],
    ),
    "row of a strange key": (lambda raw: raw.put("sessions", b"x", sealed(0, [2, 0, None, None])), [("session", "session 78")]),
    "row with a bad mirror": (lambda raw: raw.change_row(mirror=[1]), [("session", "session ")]),
    "two rows of one number": (
        lambda raw: raw.put("sessions", b"\xff" * 16, raw.items("sessions")[0][1]),
        [("session", "session ffff")],
    ),
    "entries of a session without a row": (
        both(
            lambda raw: raw.put_members(3, session=2), lambda raw: raw.put("holders", n8(3) + n4(2), b""),
            lambda raw: raw.put("counts", struct.pack(">III", 2, 1, 1), n8(1)),
        ),
        [("session", "session 2")],
    ),
    "unique key of no record": (lambda raw: raw.put("unique", n4(1) + b"key", n8(4)), [("unique", "key b'key'")]),
    "unique key of no N": (lambda raw: raw.put("unique", n4(1) + b"key", b"x"), [("unique", "key b'key'")]),
    "metadata damaged": (lambda raw: raw.put("metadata", n4(1) + b"name", b"x"), [("metadata", "b'name'")]),
    "metadata of a value that is none": (
        lambda raw: raw.put("metadata", n4(1) + b"name", sealed(0, msgpack.ExtType(12, b"123"))),
        [("metadata", "b'name'")],
    ),
    "lease damaged": (lambda raw: raw.put("leases", n8(3) + n4(1), b"x"), [("lease", "record 3")]),
    "lease of wrong types": (
        lambda raw: raw.put("leases", n8(3) + n4(1), sealed(3, [1, 1, 1])),
        [("lease", "record 3")],
    ),
    "lease of no record": (
        lambda raw: raw.put("leases", n8(4) + n4(1), sealed(4, ["worker", 1, 1])),
        [("lease", "record 4")],
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
        assert [int.from_bytes(key, "big") for key, _ in raw.items("records")] == sorted([*SIMULATIONS, 10, 11])
        raw.put("unique", n4(1) + b"good", n8(5))
        raw.put("metadata", n4(1) + b"good", sealed(0, {"a": [1.5]}))
        raw.put("leases", n8(5) + n4(1), sealed(5, ["worker", None, 2]))
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
    "a page of a tree zeroed": (lambda path: zero_root(path), [("structure", "lmdb:")]),
}  # fmt: skip


def zero_root(path: Path) -> None:
    """Zero the root page of the tree, which the newer of the two meta pages names."""
    file = path / "jobs" / "data.mdb"
    data = bytearray(file.read_bytes())
    newest = max((0, 4096), key=lambda meta: int.from_bytes(data[meta + 144 : meta + 152], sys.byteorder))
    root = int.from_bytes(data[newest + 128 : newest + 136], sys.byteorder)
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


def test_store_elsewhere_that_is_missing_or_does_not_know_the_session_is_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Session(tmp_path / name, store_or_url=tmp_path / f"store of {name}").close()
    url = tmp_path / "a" / "store.url"
    for other in ("store%20of%20b", "nothing"):
        url.write_text(re.sub(r"store%20of%20a|store%20of%20b", other, url.read_text()))
        assert [(f.kind, f.where) for f in found(tmp_path / "a")] == [("directory", "store.url")]


def _sites() -> Iterator[tuple[str, int]]:
    """Give each place in the check's code that makes a finding."""
    for module in (checking, checked_index, checked_mirror, checked_tables):
        file = inspect.getfile(module)
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                yield file, node.lineno


def test_each_check_is_needed_by_one_of_these_tests(path: Path, tmp_path: Path) -> None:
    # As the findings of each fault are compared one by one, a check that is disabled makes one of them fail.
    reached.clear()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    test_each_fault_of_the_tables_is_found_once_and_mended(path, tmp_path / "1")
    test_each_fault_of_the_files_is_found_and_mended(path, tmp_path / "1")
    test_reference_to_a_missing_record_is_counted_and_a_finding_only_if_asked(path)
    test_store_elsewhere_that_is_missing_or_does_not_know_the_session_is_found(tmp_path / "2")
    lines = {}
    for file, line in _sites():
        lines[Path(file).name, line] = any(file == f and line <= at <= line + 8 for f, at in reached)
    assert [site for site, hit in lines.items() if not hit] == []


SCHEMAS: dict[str, Callable[[list[Any]], Any]] = {
    "three parts": lambda body: body[:3],
    "no name": lambda body: [body[0], "", *body[2:]],
    "a name that would be lines of the mirror": lambda body: [body[0], "A.1\nTask", *body[2:]],
    "a name that a terminal would obey": lambda body: [body[0], "\x1b[2J", *body[2:]],
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
        *header, values = unsealed(record)
        inputs = next(value for value in values if isinstance(value, dict) and "loud" in value)
        inputs["set"] = msgpack.ExtType(2, msgpack.packb([inputs["loud"]]))
        tag, _ = msgpack.unpackb(inputs["colour"].data)
        inputs["colour"] = msgpack.ExtType(14, msgpack.packb([tag, "no number"]))
        raw.put("records", key, sealed(int.from_bytes(key, "big"), [*header, values]))
    assert found(path) == []
    assert repair_session(path).done == []


def killed_before_the_mirror(path: Path, change: Callable[[Session], Any]) -> None:
    """Change a session in a process that ends right after the commit."""

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            session = Session(path)
            patch.setattr(Mirror, "write", lambda self: os._exit(7))
            change(session)

    with pytest.raises(Died, match="7"):
        in_child(work)


STEPS: dict[str, Callable[[Session], Any]] = {
    "a task added": lambda session: session.add(Task()),
    "more tasks added than the row notes": lambda session: session.add_many(Task() for _ in range(1500)),
    "a task removed": lambda session: session.remove("Simulation.6"),
    "a task forgotten": lambda session: session.forget("Simulation.12"),
    "written anew": lambda session: session.store.write(
        lambda index_writer, writer: index_writer.rewrite_mirror(session._index.identity)
    ),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_step_of_the_mirror_that_a_killed_writer_has_left_is_no_finding(
    path: Path, step: Callable[[Session], Any]
) -> None:
    before = (path / "session_ids.txt").read_bytes()
    killed_before_the_mirror(path, step)
    assert (path / "session_ids.txt").read_bytes() == before
    assert found(path) == []
    check(path, mirror=False)
    Session(path).close()
    check(path)


def test_edited_mirror_beside_a_step_that_is_left_is_a_finding(path: Path) -> None:
    killed_before_the_mirror(path, lambda session: session.add(Task()))
    mirror = path / "session_ids.txt"
    mirror.write_text(mirror.read_text().replace("Simulation.3", "Simulation.4"))
    assert [finding.kind for finding in found(path)] == ["mirror"]


def test_mirror_that_another_directory_of_the_session_has_written_last_is_no_finding(tmp_path: Path) -> None:
    with Session(tmp_path / "one", store_or_url=tmp_path / "store") as session:
        session.add(Task())
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    with Session(tmp_path / "other") as session:
        session.add(Task())
    assert (found(tmp_path / "one"), found(tmp_path / "other")) == ([], [])
    with open(tmp_path / "other" / "session_ids.txt", "a") as mirror:
        mirror.write("Task.99\n")
    assert [finding.kind for finding in found(tmp_path / "other")] == ["mirror"]


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


REMOVE_ONE = """
    import sys
    from gc3session import Session
    with Session(sys.argv[1]) as session:
        first = next(iter(session.ids()))
        print("ready", flush=True)
        sys.stdin.readline()
        session.remove(first)
        print("removed", flush=True)
"""


@pytest.mark.parametrize("may_lock", [True, False])
def test_mirror_is_compared_with_the_state_that_it_was_copied_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, may_lock: bool
) -> None:
    take = checked_mirror.MirrorCopy.take
    with start_python("-c", textwrap.dedent(REMOVE_ONE), path, stdin=subprocess.PIPE) as writer:
        assert writer.stdin
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"

        def take_beside_a_removal(mirror: checked_mirror.MirrorCopy) -> None:
            if not writer.stdin.closed:
                with writer.stdin:
                    writer.stdin.write("\n")
                removed = select.select([writer.stdout], [], [], 0.5 if may_lock else 60)[0]
                assert bool(removed) != may_lock
            take(mirror)

        monkeypatch.setattr(checked_mirror.MirrorCopy, "take", take_beside_a_removal)
        if not may_lock:  # as for somebody who may only read
            monkeypatch.setattr(held_state, "writers_waiting", lambda directory: contextlib.nullcontext())
        assert list(check_session(path)) == []
        assert writer.stdout.read() == "removed\n"
    assert len(check(path)) == 10


def test_check_changes_nothing(path: Path) -> None:
    before = {
        f: (f.read_bytes(), f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file() and f.name != "lock.mdb"
    }
    assert list(check_session(path)) == []
    assert before == {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in before}
