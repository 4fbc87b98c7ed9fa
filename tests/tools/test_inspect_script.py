"""tools/inspect_session.py, which shares no code with the package, sees the same in a session as the package."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings

from examples import Note, Point, Simulation, Sweep
from gc3session import Opaque, Session, Task
from gc3session.records.json_values import MAX_NESTED
from gc3session.workflow import Workflow
from raw_tables import Raw, damage, n4
from test_dump import dumped, nested
from test_import_wf import INSTANCES
from test_values import ONE_OF_EACH, values

SCRIPT = Path(__file__).parents[2] / "tools" / "inspect_session.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the script is not there")


def inspect(path: Path, *argv: str, status: int = 0) -> bytes:
    """Run the script, in an interpreter that doesn't find the package; return what it printed."""
    ran = subprocess.run(
        [sys.executable, "-P", SCRIPT, path, *argv], capture_output=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert b"Traceback" not in ran.stderr, ran.stderr.decode()
    assert ran.returncode == status, ran.stderr.decode()
    return ran.stdout if status == 0 else ran.stderr


def assert_same(path: Path) -> None:
    """Check that the script and the package dump the same."""
    here, there = inspect(path, "dump").splitlines(), dumped(path).splitlines()
    for line, expected in zip(here, there, strict=False):
        assert line == expected
    assert len(here) == len(there)


def test_the_script_is_one_short_file_that_needs_lmdb_and_msgpack_only() -> None:
    text = SCRIPT.read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) < 250  # blank ones aside
    imported = {
        line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    }
    assert {name for name in imported if name not in sys.stdlib_module_names} == {"lmdb", "msgpack"}


def test_every_type_of_value(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        for value in ONE_OF_EACH:
            session.add(Task(extra={"value": value}), flush=False)
        session.add(Task(extra={"all": ONE_OF_EACH, "more": [{"$x": 1}, {"$x": 1, "y": 2}, '"$', {'"$': 1}]}))
        session.add(
            Task(extra={(math.nan,): 1, (float("nan"),): 2, 7**9000: -(7**9000), "\ud83d\ude00": "\U0001f600"})
        )
        session.add(Task(extra={"x": [Opaque(60, b"?"), msgpack.Timestamp(1, 2), Opaque(4, b"\0\0")]}))
        for code in range(1, 19):
            session.add(
                Task(extra={"x": [Opaque(code, data) for data in (b"", b"\xc1", b"\x90\x90", b"\x91\xa1\xff")]})
            )
    assert_same(tmp_path / "s")


def test_numpy_values(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with Session(tmp_path / "s") as session:
        session.add(Task(extra={"x": [numpy.float32(1), numpy.arange(6).reshape(2, 3), numpy.str_("a\0")]}))
    assert_same(tmp_path / "s")


@settings(max_examples=15)
@given(value=values)
def test_any_value(value: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        with Session(Path(place, "s")) as session:
            session.add(Task(extra={"value": value}))
        assert_same(Path(place, "s"))


@pytest.mark.parametrize("depth", [MAX_NESTED - 5, MAX_NESTED - 2, MAX_NESTED - 1, MAX_NESTED, 400])
def test_values_of_any_depth(tmp_path: Path, depth: int) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task(state="RUNNING", extra={"x": nested(depth, "list"), "y": nested(depth, "dict")}))
        session.add(Task(extra={"x": nested(min(depth, 90), "attrs"), "z": nested(depth - 3, "list")}))
        session.add(Task(extra={"x": [{(1,): nested(depth - 6, "dict")}]}))
    assert_same(tmp_path / "s")


def test_order_forgotten_tasks_and_references(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many(Task(jobname=str(n)) for n in range(1200))
        session.add(Sweep(tasks=[Simulation(inputs={"p": Point(Note("in a point"))}), session["Task.7"]]))
        for n in (700, 5, 6):
            session.forget(f"Task.{n}")
        for n in (700, 5):
            session.add(session.store.load(f"Task.{n}"))
        session.remove("Task.9")
        session.set_end_timestamp(1.5)
    Path(tmp_path, "s", "created").write_bytes(b"\xff\n")
    assert_same(tmp_path / "s")


def test_shared_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Session(tmp_path / "a", store_or_url=store) as a, Session(tmp_path / "b", store_or_url=store) as b:
        for n in range(300):
            (a if n % 2 else b).add(Task(jobname=str(n)), flush=False)
        a.add(Sweep(tasks=[Simulation(extra={("deep",): {Note("below", [Point(Note("lower"))])}})]))
        b.flush()
        a.add(a.store.load(next(iter(b.tasks))))
        b.add(Note("only b's"))
        for code in (1, 2, 3, 15, 16):
            a.add(Task(extra={"x": [Opaque(code, b"\xc1"), Opaque(code, b""), Opaque(code, b"\x91\xa1\xff")]}))
    assert_same(tmp_path / "a")
    assert_same(tmp_path / "b")


def test_empty_and_unwritten_sessions(tmp_path: Path) -> None:
    Session(tmp_path / "new").close()
    with Session(tmp_path / "emptied") as session:
        session.remove(session.add(Task()))
    for name in ("new", "emptied"):
        assert_same(tmp_path / name)
        assert inspect(tmp_path / name) == b""
        assert inspect(tmp_path / name, "list") == b""


def test_damaged_records_and_schemas(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many([Task(state="RUNNING"), Simulation(state="STOPPED"), Note("x"), Task(), Note("y")])
        session.forget("Task.4")
    for number in (2, 3, 4):
        damage(tmp_path / "s", number)
    assert_same(tmp_path / "s")
    with Raw(tmp_path / "s") as raw:
        raw.put("schemas", n4(3), raw.get("schemas", n4(3))[:-1])
    assert_same(tmp_path / "s")
    assert b"Simulation.2\t(unreadable)" in inspect(tmp_path / "s", "list")


@pytest.mark.skipif(not INSTANCES.exists(), reason="the workflow instances are not there")
def test_workflows(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        for path in sorted(INSTANCES.glob("*.json")):
            session.add(Workflow.from_document(json.loads(path.read_bytes())))
    assert_same(tmp_path / "s")


def test_stats_list_and_show_tell_what_the_session_does(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many([Task(jobname="a", state="RUNNING"), Note("n"), Task(jobname="b\n", state="NEW")])
        session.add(Task(jobname="c", state="x" * 500))
    counts = dict(reversed(line.split(maxsplit=1)) for line in inspect(tmp_path / "s").decode().splitlines())
    assert counts.pop("(not a task)") == "1"
    assert {state[:5]: int(count) for state, count in counts.items()} == {"RUNNI": 1, "NEW": 1, "xxxxx": 1}
    listed = [line.split("\t") for line in inspect(tmp_path / "s", "list").decode().splitlines()]
    assert listed[:3] == [["Task.1", "RUNNING", "a"], ["Note.2", "-", "-"], ["Task.3", "NEW", "b\\n"]]
    assert json.loads(inspect(tmp_path / "s", "show", "Task.3"))["fields"]["jobname"] == "b\n"
    for id_ in ("Task.2", "Task.99", "x", "Note.2x", "Note." + "9" * 30):
        assert inspect(tmp_path / "s", "show", id_, status=1) == f"there is no record {id_}\n".encode()


def test_what_is_not_a_session_is_told_in_a_line(tmp_path: Path) -> None:
    assert b"can't be read" in inspect(tmp_path / "none", status=1)
    (tmp_path / "store.url").write_text("x\n")
    assert b"not the URL" in inspect(tmp_path, status=1)
    Session(tmp_path / "s").close()
    (tmp_path / "s" / "jobs").mkdir()
    assert b"data.mdb is missing" in inspect(tmp_path / "s", status=1)
    (tmp_path / "s" / "jobs" / "data.mdb").write_bytes(b"x" * 10000)
    assert b"can't be read" in inspect(tmp_path / "s", status=1)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A session of which nothing can be written, nor anything made beside it."""
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(jobname=str(n)) for n in range(10))
    (path / "jobs" / "lock.mdb").unlink()
    for directory in (path / "jobs", path):
        directory.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield path
    for directory in (path, path / "jobs"):
        directory.chmod(0o700)


def test_nothing_is_written_and_no_lock_made(read_only: Path, tmp_path: Path) -> None:
    def state() -> dict[str, Any]:
        return {
            str(f): (f.stat().st_mtime_ns, f.is_file() and f.read_bytes()) for f in sorted(read_only.rglob("*"))
        }

    before = state()
    for command in ("stats", "list", "dump"):
        inspect(read_only, command)
        assert state() == before
    assert "lock.mdb" not in os.listdir(read_only / "jobs")


def test_dump_of_the_script_can_be_loaded(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Sweep(tasks=[Simulation(extra={"x": ONE_OF_EACH})]))
    (tmp_path / "d").write_bytes(inspect(tmp_path / "s", "dump"))
    from gc3session import load_dump

    load_dump(tmp_path / "copy", tmp_path / "d")
    assert dumped(tmp_path / "copy") == (tmp_path / "d").read_bytes()
    shutil.rmtree(tmp_path / "copy")
