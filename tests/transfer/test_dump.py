"""Dumps: what is loaded from one is the session that was dumped, and its dump is the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from children import Child, run_python
from consistency import check, read_tables
from examples import Note, Point, Simulation, Sweep
from gc3session import (
    ClashError,
    InvalidArgument,
    Opaque,
    Session,
    Task,
    TaskCollection,
    TemporarySession,
    WriteError,
    diff,
    dump_session,
    load_dump,
)
from gc3session.records.json_values import MAX_NESTED
from raw_tables import Raw, damage, n4, n8
from sameness import picture
from test_cli import Terminal, finish, one_error, run, start
from test_import_wf import INSTANCES
from test_values import ONE_OF_EACH, any_text, keys, values


def dumped(session: Any) -> bytes:
    """Return the dump of a session, or of that at a path."""
    file = io.BytesIO()
    if isinstance(session, (str, os.PathLike)):
        with Session(session, create=False, read_only=True) as opened:
            dump_session(opened, file)
    else:
        dump_session(session, file)
    return file.getvalue()


def lines_of(dump: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dump.splitlines()]


def records_of(dump: bytes) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in lines_of(dump) if "id" in line}


def loaded(dump: bytes, path: Path) -> Path:
    """Load a dump into a new session, which must be consistent and give the same dump."""
    load_dump(path, io.BytesIO(dump))
    check(path)
    assert dumped(path) == dump
    return path


def again(session: Session) -> Session:
    """Return a session loaded from the dump of another one."""
    path = Path(f"{session.path}-{time.monotonic_ns()}")
    return Session(loaded(dumped(session), path), create=False, read_only=True)


# -- the same again -----------------------------------------------------------


def test_loaded_session_has_the_same_tables_but_for_its_own_identity(session: Session, tmp_path: Path) -> None:
    session.add_many(Task(jobname=f"t{n}", state="RUNNING" if n % 3 else "NEW") for n in range(1000))
    sweep = Sweep(jobname="all", tasks=[Simulation(jobname="in"), session["Task.3"]])
    session.add(sweep)
    session.forget("Task.7")
    session.remove("Task.9")
    session.save(Note("not in the session"))
    session.close()
    copy = loaded(dumped(session.path), tmp_path / "copy")
    here, there = (read_tables(Path(path, "jobs")) for path in (session.path, copy))
    for name in here.keys() - {"meta", "sessions"}:
        assert here[name] == there[name], name
    for key in (b"next N", b"records", b"next session"):
        assert dict(here["meta"])[key] == dict(there["meta"])[key]


def test_what_was_forgotten_and_what_was_added_again_comes_back(session: Session) -> None:
    session.add_many(Task(jobname=str(n)) for n in range(1500))
    for n in (3, 700, 1500, 1):
        session.forget(f"Task.{n}")
    for n in (1500, 3, 1):
        session.add(session.store.load(f"Task.{n}"))
    session.add_many(Task(jobname=str(n)) for n in range(600))
    with again(session) as copy:
        assert list(copy.tasks) == list(session.tasks)
        assert copy.list_ids() == session.list_ids()
        assert copy.store.load("Task.700").jobname == "699"
        assert "Task.700" not in copy
        records = records_of(dumped(copy))
    assert [id_ for id_, line in records.items() if not line["member"]] == ["Task.700"]


def test_sessions_that_are_empty_or_were_never_written(make_session: Callable[..., Session]) -> None:
    session = make_session("empty")
    with again(session) as copy:
        assert len(copy) == 0
    session.add(Task())
    session.remove("Task.1")
    with again(session) as copy:
        assert len(copy) == 0
    with Session(copy.path) as copy:
        assert copy.add(Task()) != "Task.1", "an ID was given twice"


def test_times_and_command_come_back(session: Session) -> None:
    session.add(Task())
    Path(session.path, "created").write_bytes(b"a \xff command\n")
    session.set_start_timestamp(1_234_567.875)
    with again(session) as copy:
        assert (copy.created, copy.finished) == (1_234_567.875, None)
        assert Path(copy.path, "created").read_bytes() == b"a \xff command\n"
    session.set_end_timestamp(1_700_000_000.5)
    with again(session) as copy:
        assert copy.finished == 1_700_000_000.5


def test_references_cycles_and_shared_objects_come_back(session: Session) -> None:
    shared = Simulation(jobname="shared")
    a, b = Note("a"), Note("b")
    a.about, b.about = {"in a dict": [b, (shared,)]}, {a, shared}
    session.add_many([TaskCollection(tasks=[shared, Task()]), TaskCollection(tasks=[shared])])
    session.add(a)
    with again(session) as copy:
        first, second, note = copy
        assert first.tasks[0] is second.tasks[0]
        assert note.about["in a dict"][0].about == {note, first.tasks[0]}


def test_revision_goes_on_where_it_was(session: Session) -> None:
    task = Task()
    session.add(task)
    for n in range(300):
        task.returncode = n
        session.save_all()
    assert records_of(dumped(session))["Task.1"]["revision"] == 301
    with again(session) as copy:
        assert copy["Task.1"].returncode == 299


@pytest.mark.parametrize(
    "name",
    sorted(path.name for path in INSTANCES.glob("*.json")) if INSTANCES.exists() else ["none"],
)
@pytest.mark.skipif(not INSTANCES.exists(), reason="the workflow instances are not there")
def test_workflows_imported_dumped_loaded_elsewhere_and_dumped_are_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    for argv in (
        ("import-wf", tmp_path / "a", INSTANCES / name),
        ("dump", tmp_path / "a", "-o", tmp_path / "a.jsonl"),
        ("load", tmp_path / "b" / "c", tmp_path / "a.jsonl"),
        ("dump", tmp_path / "b" / "c", "-o", tmp_path / "b.jsonl.gz"),
    ):
        (tmp_path / "b").mkdir(exist_ok=True)
        ran = run(*argv)
        assert (ran.status, ran.err) == (0, ""), ran
    assert gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()
    for first, second in (("a", "b/c"), ("a.jsonl", "b.jsonl.gz"), ("a", "b.jsonl.gz")):
        assert run("diff", tmp_path / first, tmp_path / second) == (0, "", "")
    check(tmp_path / "b" / "c")
    shutil.rmtree(tmp_path / "a")
    source = (INSTANCES / name).read_bytes()
    with Session(tmp_path / "b" / "c", read_only=True) as session:
        from gc3session.workflow import Workflow

        [workflow] = session
        again = Workflow.from_document(json.loads(source))
        assert len(workflow) == len(again)


def test_lines_are_as_the_format_has_them(session: Session) -> None:
    session.add_many([Note("é", {"n": 1}), Note("forgotten", nested(MAX_NESTED + 1, "list"))])
    session.forget("Note.2")
    packed = msgpack.packb(["forgotten", nested(MAX_NESTED + 1, "list")])
    head, *lines, end = dumped(session).decode().splitlines()
    number = json.loads(head)["next"]
    assert head.startswith(f'{{"dump":2,"first":1,"next":{number},"records":2,"created":')
    assert lines == [
        '{"schema":1,"tag":"examples:Note","name":"Note","kind":0,"fields":["text","about"]}',
        '{"id":"Note.1","schema":1,"revision":1,"member":true,"fields":{"text":"\\u00e9","about":{"n":1}}}',
        f'{{"id":"Note.2","schema":1,"revision":1,"member":false,"values":"{b64encode(packed).decode()}"}}',
    ]
    assert end == '{"end":{"records":2,"members":1}}'


# -- values -------------------------------------------------------------------


@pytest.fixture(scope="module")
def value_comes_back(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], None]:
    """A function that checks that a value is the same in a loaded session."""
    directory = tmp_path_factory.mktemp("values")

    def checked(value: Any) -> None:
        with tempfile.TemporaryDirectory(dir=directory) as place:
            with Session(Path(place, "a")) as session:
                session.add(Task(extra={"value": value}))
            dump = dumped(Path(place, "a"))
            for line in dump.splitlines():
                json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
            load_dump(Path(place, "b"), io.BytesIO(dump))
            assert dumped(Path(place, "b")) == dump
            here, there = (read_tables(Path(place, name, "jobs"))["records"] for name in "ab")
            assert here == there
            with Session(Path(place, "b"), read_only=True) as session:
                assert picture(session["Task.1"].extra["value"]) == picture(value)

    return checked


@settings(max_examples=40)
@given(value=values)
@example(value=[math.nan, {math.nan: math.nan}, {math.nan}, (math.nan,), complex(math.nan, -math.nan)])
@example(value={(math.nan,): 1, (float("nan"),): 2})
@example(value={"$tuple": [1]})
@example(value={"$x": 1, "$y": {"$ref": 5}})
@example(value=[{"$dict": {}}, {"": {"$": 1}}, {'"$': '"$'}, '"$ref"'])
@example(value={1: 2, "1": 3, None: 4, "null": 5, 2.5: 6})
@example(value=["\ud83d\ude00", "\U0001f600", {"\ud800": "\udfff"}, ("\ud83d\ude00",)])
def test_any_value_comes_back(value_comes_back: Callable[[Any], None], value: Any) -> None:
    value_comes_back(value)


def test_one_of_each_type_comes_back(value_comes_back: Callable[[Any], None]) -> None:
    value_comes_back(ONE_OF_EACH)
    for value in ONE_OF_EACH:
        if type(value) not in (int, str, float):
            value_comes_back([value])


@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(keys, any_text), max_size=4))
def test_any_key_comes_back(value_comes_back: Callable[[Any], None], pairs: list[Any]) -> None:
    value_comes_back(dict(pairs))


def test_ints_of_any_size_come_back(value_comes_back: Callable[[Any], None]) -> None:
    value_comes_back([10**5000, -(10**5000), 7**9000, -(7**20000), 2**64, -(2**63) - 1, 10**4000, 10**3999])


@pytest.mark.parametrize("bits", ["7ff8000000000000", "fff8000000000000", "7ff0000000000001", "7ff80000deadbeef"])
def test_every_nan_keeps_its_bits(session: Session, bits: str) -> None:
    nan = struct.unpack(">d", bytes.fromhex(bits))[0]
    session.add(Task(extra={"x": nan, "y": [nan, (nan,)]}))
    with again(session):
        pass
    value = records_of(dumped(session))["Task.1"]["fields"]["extra"]["x"]
    assert value == {"$float": "nan" if bits == "7ff8000000000000" else bits}


@pytest.mark.parametrize(
    "opaque",
    [
        Opaque(60, b"unknown code"),
        Opaque(6, b"not msgpack"),
        Opaque(6, b"\xc1"),
        Opaque(4, b""),
        Opaque(4, b"\0\0\1"),
        Opaque(12, b"short"),
        Opaque(1, b"\x92\x01"),
        Opaque(1, b"\x90\x90"),
        Opaque(10, b"\xa1\xff"),
        Opaque(1, msgpack.packb({"$ref": 1})),
    ],
)
def test_extensions_that_are_not_what_they_say_come_back(tmp_path: Path, opaque: Opaque) -> None:
    with Session(tmp_path / "a") as session:
        session.add(Task(extra={"x": opaque}))
        session.add(Task(extra={"x": [opaque, math.nan]}))
    load_dump(tmp_path / "b", io.BytesIO(dumped(tmp_path / "a")))
    assert dumped(tmp_path / "b") == dumped(tmp_path / "a")
    here, there = (read_tables(tmp_path / name / "jobs")["records"] for name in "ab")
    assert here == there


def test_numpy_values_come_back(value_comes_back: Callable[[Any], None]) -> None:
    numpy = pytest.importorskip("numpy")
    value_comes_back([
        numpy.float32(1.5), numpy.int64(-1), numpy.str_("a\0"), numpy.bytes_(b"b\0"), numpy.zeros((2, 0, 3)),
        numpy.arange(6, dtype=">u2").reshape(2, 3), numpy.array("2024-01-01", "M8[ns]"),
        numpy.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    ])  # fmt: skip


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"k": value} if kind == "dict" else Point(value)
    return value


@pytest.mark.parametrize("kind", ["list", "dict"])
@pytest.mark.parametrize("depth", [MAX_NESTED - 1, MAX_NESTED, MAX_NESTED + 1, 480])
def test_values_of_any_depth_come_back(session: Session, kind: str, depth: int) -> None:
    session.add(Task(state="RUNNING", extra={"x": nested(depth, kind)}))
    session.add(Note("x", [nested(depth, kind), TaskCollection(tasks=[Task()])]))
    with again(session) as copy:
        assert copy.stats() == session.stats()
        assert repr(copy["Task.1"].extra["x"]) == repr(session["Task.1"].extra["x"])


def test_attrs_objects_nested_deep_come_back(session: Session) -> None:
    session.add(Task(extra={"x": nested(90, "attrs")}))
    with again(session) as copy:
        assert copy["Task.1"].extra["x"] == nested(90, "attrs")


# -- without the classes ------------------------------------------------------

ANOTHER_PROGRAM = """
    import sys, attrs, enum, decimal
    from gc3session import Session, Task

    class Colour(enum.Enum):
        RED = 1

    @attrs.frozen
    class Point:
        x: int

    @attrs.define
    class Measurement(Task):
        place: object = None

    with Session(sys.argv[1]) as session:
        session.add(Measurement(jobname="f", place=Point(1), extra={Colour.RED: {Point(2)}}))
        session.add(Task(extra={"d": decimal.Decimal("1.10")}))
"""


def test_dump_and_load_need_no_classes_and_import_nothing(tmp_path: Path) -> None:
    run_python(ANOTHER_PROGRAM, tmp_path / "a")
    script = """
        import io, sys
        import gc3session
        from gc3session import Session, dump_session, load_dump
        import tempfile, gzip  # imported when they are needed
        before = set(sys.modules)
        def dumped(path):
            file = io.BytesIO()
            with Session(path, read_only=True) as session:
                dump_session(session, file)
            return file.getvalue()
        first = dumped(sys.argv[1])
        load_dump(sys.argv[2], io.BytesIO(first))
        assert dumped(sys.argv[2]) == first
        print(sorted(name for name in set(sys.modules) - before if not name.startswith(("encodings.", "lmdb.", "gc3session.", "ctypes", "_ctypes"))))
    """
    assert run_python(script, tmp_path / "a", tmp_path / "b") in ("[]", "['random']", "['zstandard']")
    check(tmp_path / "b")


# -- a shared store -----------------------------------------------------------


def test_values_of_a_shared_store_that_are_not_what_they_say_are_dumped(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Session(tmp_path / "a", store_or_url=store) as a, Session(tmp_path / "b", store_or_url=store) as b:
        b.add(Task())
        for code in (1, 2, 3, 15, 16):
            a.add(Task(extra={"x": [Opaque(code, b"\xc1"), Opaque(code, b""), Opaque(code, b"\x91\xa1\xff")]}))
        a.add(Sweep(tasks=[Simulation()]))
        assert len(records_of(dumped(a))) == 7
    load_dump(tmp_path / "copy", io.BytesIO(dumped(tmp_path / "a")))
    assert dumped(tmp_path / "copy").splitlines()[2:] == dumped(tmp_path / "a").splitlines()[2:]


def test_of_a_shared_store_the_tasks_and_what_they_refer_to_are_dumped(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with Session(tmp_path / "a", store_or_url=store) as a, Session(tmp_path / "b", store_or_url=store) as b:
        inner = Simulation(jobname="inner", extra={("deep",): {Note("below")}})
        for n in range(700):
            (a if n % 2 else b).add(Task(jobname=str(n)), flush=False)
        a.add(Sweep(jobname="sweep", tasks=[inner]))
        b.add(Note("not a's"))
        late = b["Task.101"]
        a_task = a.store.load(late.persistent_id)
        a.add(a_task)
        ids, names = list(a.tasks), a.list_names()
        dump = dumped(a)
    stored = {line["id"].partition(".")[0] for line in records_of(dump).values()}
    assert stored == {"Task", "Sweep", "Simulation", "Note"}
    assert sum(line["id"].startswith("Note") for line in records_of(dump).values()) == 1
    assert dumped(tmp_path / "a").splitlines()[1:] == dump.splitlines()[1:]
    with Session(loaded(dump, tmp_path / "c"), read_only=True) as copy:
        assert list(copy.tasks) == ids
        assert copy.list_names() == names
        assert len(list(copy.store.list())) == len(ids) + 2


def test_what_has_no_json_or_cannot_be_read_comes_back_from_a_session_that_is_not_the_first_of_its_store(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    with Session(tmp_path / "a", store_or_url=store) as a, Session(tmp_path / "b", store_or_url=store) as b:
        a.add(Task())
        damaged = b.add(Task(jobname="xyzzy", state="RUNNING"))
        b.add_many(Task(state="RUNNING", extra={"x": nested(MAX_NESTED + 1, "list")}) for _ in range(2))
    file = store / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"xyzzy", b"xyzzz"))
    dump = dumped(tmp_path / "b")
    load_dump(tmp_path / "c", io.BytesIO(dump))
    check(tmp_path / "c", damaged=[damaged])
    assert dumped(tmp_path / "c") == dump
    with Session(tmp_path / "b", read_only=True) as b:
        b.backup(tmp_path / "d")
    check(tmp_path / "d", damaged=[damaged])
    assert dumped(tmp_path / "d") == dump
    with Session(tmp_path / "d") as copy:
        copy.forget(damaged)
        assert copy.stats() == {"RUNNING": 2}


def test_temporary_session_is_dumped_and_loaded_into(tmp_path: Path) -> None:
    with TemporarySession(tmp_path / "store") as session:
        session.add(Task(jobname="x"))
        dump = dumped(session)
    with TemporarySession(tmp_path / "other") as copy:
        assert load_dump(copy, io.BytesIO(dump)).members == 1
        assert [task.jobname for task in copy] == ["x"]
        assert dumped(copy) == dump


# -- into a session that has tasks --------------------------------------------


@pytest.fixture
def dump(make_session: Callable[..., Session]) -> bytes:
    """The dump of a session of 5 tasks: a collection with two, one of which was added, and one forgotten."""
    session = make_session("dumped")
    session.add(TaskCollection(jobname="both", tasks=[Task(jobname="one"), Task(jobname="two")]))
    session.add(session["TaskCollection.1"].tasks[1])
    session.add(Simulation(jobname="sim", inputs={"set": {session["TaskCollection.1"].tasks[0], 1}}))
    session.add(Task(jobname="forgotten"))
    session.forget(f"Task.{max(int(id_.split('.')[1]) for id_ in session.list_ids())}")
    return dumped(session)


def test_clash_fails_says_what_and_writes_nothing(session: Session, dump: bytes) -> None:
    session.add(Task(jobname="here"))
    before = dumped(session)
    with pytest.raises(ClashError, match=r"has given out .*TaskCollection\.1.*on_clash='renumber'") as caught:
        load_dump(session, io.BytesIO(dump))
    assert "TaskCollection.1" in caught.value.ids
    assert dumped(session).splitlines()[1:] == before.splitlines()[1:]


def test_dump_whose_numbers_are_greater_is_added_under_its_own(
    make_session: Callable[..., Session], dump: bytes
) -> None:
    other = make_session("other")
    other.add(Task(jobname="gone"))
    for _ in range(100):
        other.remove(next(iter(other.tasks)))
        other.add(Task(jobname="last"))
    [last] = other.tasks
    with Session(Path(other.path).parent / "small") as small:
        small.add(Task(jobname="own"))
    assert load_dump(small.path, io.BytesIO(dumped(other))).members == 1
    with Session(small.path) as small:
        assert [task.jobname for task in small] == ["own", "last"]
        assert list(small.tasks)[1] == last
        assert small.add(Task()) not in (last, "Task.1")
    check(small.path)


@pytest.mark.parametrize("flush", [True, False])
def test_renumbering_keeps_references_order_and_membership(session: Session, dump: bytes, flush: bool) -> None:
    session.add_many([Task(jobname="here"), Simulation(jobname="here, too")], flush=flush)
    here = list(session.tasks)
    done = load_dump(session, io.BytesIO(dump), on_clash="renumber")
    assert done.shift > 0
    assert done.records == 5
    assert (done.skipped, done.members) == (0, 3)
    assert list(session.tasks)[:2] == here
    names = [task.jobname for task in session]
    assert names[:3] == ["here", "here, too", "both"]
    assert sorted(names[3:]) == ["sim", "two"]
    collection = next(task for task in session if task.jobname == "both")
    assert [task.jobname for task in collection.tasks] == ["one", "two"]
    assert collection.tasks[1] in session
    sim = next(task for task in session if task.jobname == "sim")
    assert sim.inputs["set"] == {collection.tasks[0], 1}
    new = session.add(Task())
    assert int(new.split(".")[1]) not in {int(id_.split(".")[1]) for id_ in list(session.tasks)[:-1]}


@pytest.mark.parametrize("on_clash", ["fail", "skip", "renumber"])
def test_the_dump_of_an_empty_session_clashes_with_nothing(
    session: Session, make_session: Callable[..., Session], on_clash: str
) -> None:
    session.add(Task())
    done = load_dump(session, io.BytesIO(dumped(make_session("empty"))), on_clash=on_clash)
    assert (done.records, done.skipped, done.shift) == (0, 0, 0)


@pytest.mark.parametrize(("on_clash", "before"), [("fail", 200), ("renumber", 0)])
def test_a_reference_whose_record_is_gone_never_leads_to_another_one(
    session: Session, tmp_path: Path, on_clash: str, before: int
) -> None:
    """The N that is gone in the dump is that of a record in the session, as it is or after the renumbering."""
    with Session(tmp_path / "dumped") as other:
        gone = Task(jobname="gone")
        other.add(gone)
        others = list(other.add_many(Task() for _ in range(before)))
        other.add(Task(extra={"see": gone, "in": [(gone,), "see"]}))
        other.remove_many([str(gone.persistent_id), *others])
        dump = dumped(other)
    session.add_many(Task(jobname="a stranger") for _ in range(3))
    load_dump(session, io.BytesIO(dump), on_clash=on_clash)
    extra = list(session)[-1].extra
    assert [type(found).__name__ for found in (extra["see"], extra["in"][0][0])] == ["Unreadable"] * 2
    assert extra["in"][1] == "see"


def test_skipping_takes_only_what_is_new(session: Session, tmp_path: Path) -> None:
    session.add_many(Task(jobname=f"{n}") for n in range(3))
    session.close()
    shutil.copytree(session.path, tmp_path / "grown")
    with Session(tmp_path / "grown") as grown:
        grown.add_many(Task(jobname=f"{n}") for n in range(3, 6))
        grown.add(TaskCollection(tasks=[grown["Task.1"], grown["Task.4"]]))
        grown.remove("Task.5")
        more = dumped(grown)
    with Session(session.path) as session:
        session.remove("Task.2")
        done = load_dump(session, io.BytesIO(more), on_clash="skip")
        assert (done.records, done.skipped, done.gone) == (3, 3, 1)
        assert list(session.tasks) == ["Task.1", "Task.3", "Task.4", "Task.6", "TaskCollection.7"]
        assert session["TaskCollection.7"].tasks == [session["Task.1"], session["Task.4"]]


def test_schemas_of_other_numbers_are_found_by_what_they_say(session: Session, dump: bytes) -> None:
    for obj in (Note("n"), Sweep(), Simulation(), Task(extra={"x": nested(MAX_NESTED + 5, "list")})):
        session.add(obj)
    load_dump(session, io.BytesIO(dump), on_clash="renumber")
    assert {type(task).__name__ for task in session} == {"Note", "Sweep", "Simulation", "Task", "TaskCollection"}
    with again(session):
        pass


def test_session_that_loads_sees_it_and_can_change_it(session: Session, dump: bytes) -> None:
    load_dump(session, io.BytesIO(dump))
    sim = next(session.select(name="sim"))
    sim.state = "RUNNING"
    session.save_all()
    assert session.stats()["RUNNING"] == 1


def test_loading_inside_a_transaction_is_refused(session: Session, dump: bytes) -> None:
    with session.transaction(), pytest.raises(InvalidArgument, match="transaction"):
        load_dump(session, io.BytesIO(dump))
    assert len(session) == 0


# -- broken dumps -------------------------------------------------------------


def test_every_cut_of_a_dump_is_refused_and_makes_no_session(dump: bytes, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    for size in [*range(0, len(dump), 37), len(dump) - 1]:
        with pytest.raises(InvalidArgument, match=r"dump"):
            load_dump(tmp_path / "cut", io.BytesIO(dump[:size]))
        assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("number", range(1, 9))
def test_line_taken_out_doubled_or_moved_is_refused(dump: bytes, number: int, tmp_path: Path) -> None:
    lines = dump.splitlines(keepends=True)
    without = lines[:number] + lines[number + 1 :]
    doubled = lines[: number + 1] + lines[number:]
    moved = [*without[:-1], lines[number], *without[-1:]]
    for broken in (without, doubled, moved):
        if b"".join(broken) in (dump,):
            continue
        if b'"tag"' in lines[number] and broken is doubled:
            continue  # nothing differs then
        with pytest.raises(InvalidArgument, match=r"line [0-9]+: "):
            load_dump(tmp_path / "broken", io.BytesIO(b"".join(broken)))
        assert not (tmp_path / "broken").exists()


@settings(max_examples=150)
@given(data=st.data())
def test_changed_bytes_never_give_another_exception(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        with Session(Path(place, "a")) as session:
            session.set_start_timestamp(1)
            inner = Task(extra={"x": (1, {2: b"b"})}, state="\ud800", history=[])
            session.add(TaskCollection(tasks=[inner], history=[]))
        dump = bytearray(dumped(Path(place, "a")))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(dump) - 1))
            dump[at] = data.draw(st.sampled_from(b'0123456789"{}[],:$aen-\n\\\xff'))
        try:
            load_dump(Path(place, "b"), io.BytesIO(bytes(dump)))
        except InvalidArgument:
            assert os.listdir(place) == ["a"]
        else:
            dumped(Path(place, "b"))


@pytest.mark.parametrize(
    ("part", "other"),
    [
        (b'"revision":1', b'"revision":' + b"9" * 30),
        (b'"revision":1', b'"revision":-1'),
        (b'"member":true', b'"member":1'),
        (b'"fields":{"text"', b'"values":5,"fields":{"text"'),
        (b'"fields":{"text"', b'"record":[],"fields":{"text"'),
        (b'"fields":{"text"', b'"record":"x","fields":{"text"'),
        (b'{"schema":1,"tag"', b'{"schema":1,"bytes":null,"tag"'),
        (b'{"schema":1,"tag"', b'{"schema":99999999999,"bytes":"","tag"'),
        (b'"kind":0', b'"kind":1'),
    ],
)
def test_parts_of_lines_that_cannot_be_are_refused(tmp_path: Path, part: bytes, other: bytes) -> None:
    with Session(tmp_path / "a") as session:
        session.add(Note("x"))
    dump = dumped(tmp_path / "a").replace(part, other)
    assert dump != dumped(tmp_path / "a")
    with pytest.raises(InvalidArgument, match=r"line [0-9]+: "):
        load_dump(tmp_path / "b", io.BytesIO(dump))
    assert not (tmp_path / "b").exists()


def test_other_files_are_told_from_dumps(tmp_path: Path) -> None:
    for text in ("", "x\n", "{}\n", '{"jobname": "x"}\n', "[1]\n", "\x1f\x8b"):
        (tmp_path / "file").write_text(text)
        error = one_error(run("load", tmp_path / "s", tmp_path / "file"), 1)
        assert error.startswith(f"{tmp_path}/file, line ")
        assert "not a dump" in error
    assert not (tmp_path / "s").exists()


# -- damaged records ----------------------------------------------------------


def test_damaged_records_come_back_with_their_bytes_and_states(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as session:
        session.add_many([Task(state="RUNNING"), Simulation(state="STOPPED"), Task(state="NEW"), Note("x")])
        session.forget("Task.3")
    for id_ in ("Simulation.2", "Task.3", "Note.4"):
        damage(tmp_path / "a", id_)
    ran = run("dump", tmp_path / "a")
    assert ran.status == 1
    assert ran.err.splitlines() == [
        f"gc3session: {id_} is unreadable; the dump has its bytes" for id_ in ("Simulation.2", "Task.3", "Note.4")
    ]
    load_dump(tmp_path / "b", io.BytesIO(ran.out.encode()))
    check(tmp_path / "b", damaged=["Simulation.2", "Note.4"])
    assert dumped(tmp_path / "b") == ran.out.encode()
    with Session(tmp_path / "b") as session:
        assert session.stats() == {"RUNNING": 1, "STOPPED": 1}
        done = load_dump(session, io.BytesIO(ran.out.encode()), on_clash="renumber")
        assert done.records == 4
    check(
        tmp_path / "b",
        damaged=["Simulation.2", "Note.4", f"Simulation.{2 + done.shift}", f"Note.{4 + done.shift}"],
    )


def test_records_of_a_damaged_schema_come_back_with_it(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as session:
        session.add_many([Task(state="RUNNING"), Simulation(state="STOPPED")])
    with Raw(tmp_path / "a") as raw:
        raw.put("schemas", n4(2), raw.get("schemas", n4(2))[:-1])
    ran = run("dump", tmp_path / "a")
    assert ran.status == 1
    assert "Unreadable.2 is unreadable" in ran.err
    load_dump(tmp_path / "b", io.BytesIO(ran.out.encode()))
    assert dumped(tmp_path / "b") == ran.out.encode()
    here, there = (read_tables(tmp_path / name / "jobs") for name in "ab")
    for name in ("records", "schemas", "states"):
        assert here[name] == there[name]
    with Session(tmp_path / "c") as session:
        session.add(Note("x"))
    with pytest.raises(InvalidArgument, match="its schema is damaged"):
        load_dump(tmp_path / "c", io.BytesIO(ran.out.encode()), on_clash="renumber")


def test_records_that_are_not_what_their_schema_says_come_back_with_their_bytes(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as session:
        session.add_many(Task(state="RUNNING") for _ in range(4))
    with Raw(tmp_path / "a") as raw:
        raw.change_record(1, lambda body: [*body[:3], body[3][:-1]])
        raw.change_record(2, lambda body: [*body[:3], 7])
        raw.change_record(3, lambda body: [*body[:3], [body[3][0], 5, *body[3][2:]]])  # its state is no text
    ran = run("dump", tmp_path / "a")
    assert ran.status == 1
    assert [id_ for id_, line in records_of(ran.out.encode()).items() if "record" in line] == [
        "Task.1",
        "Task.2",
        "Task.3",
    ]
    load_dump(tmp_path / "b", io.BytesIO(ran.out.encode()))
    assert dumped(tmp_path / "b") == ran.out.encode()
    here, there = (read_tables(tmp_path / name / "jobs") for name in "ab")
    for name in ("records", "schemas", "states", "index", "counts"):
        assert here[name] == there[name]


def test_index_entries_without_a_record_are_told_of(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as session:
        session.add_many(Task() for _ in range(3))
    with Raw(tmp_path / "a") as raw:
        raw.delete("records", n8(2))
    ran = run("dump", tmp_path / "a")
    assert ran.status == 1
    assert "an entry for record 2" in ran.err
    assert list(records_of(ran.out.encode())) == ["Task.1", "Task.3"]


# -- beside a writer ----------------------------------------------------------


def add_pairs(path: Path, ready: int) -> None:
    """Add two tasks a transaction, and change two others, for ever."""
    with Session(path) as session:
        pair = [Task(jobname="total", extra={"n": 0}), Task(jobname="total", extra={"n": 0})]
        session.add_many(pair)
        n = 0
        while True:
            n += 1
            for task in pair:
                task.extra = {"n": n}
            with session.transaction():
                session.add_many(Task(jobname=f"pair {n}", extra={"pad": "x" * 300}) for _ in range(2))
                session.save_all()
            if n == 50:
                os.write(ready, b"x")


@pytest.mark.parametrize("read_only", [True, False])
def test_dump_beside_a_writer_is_one_state(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(jobname="old") for _ in range(5000))
    done, ready = os.pipe()
    writer = Child(add_pairs, path, ready)
    try:
        os.read(done, 1)
        with Session(path, read_only=read_only) as session:
            for n in range(3):
                dump = dumped(session)
                records = list(records_of(dump).values())
                totals = [r["fields"]["extra"]["n"] for r in records if r["fields"]["jobname"] == "total"]
                pairs = sum(r["fields"]["jobname"].startswith("pair") for r in records)
                assert totals[0] == totals[1]
                assert pairs == 2 * totals[0]
                loaded(dump, tmp_path / f"copy{n}")
    finally:
        writer.kill()
        with pytest.raises(Exception, match="ended"):
            writer.result()


def test_slow_reader_of_a_dump_does_not_make_the_store_grow(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(jobname=f"old {n}", extra={"pad": "y" * 300}) for n in range(20_000))
    size = (path / "jobs" / "data.mdb").stat().st_size
    process = start("dump", path, bufsize=0)
    assert process.stdout
    first = process.stdout.read(1)  # the rest waits in the pipe
    with Session(path) as session:
        task = session["Task.1"]
        for n in range(2000):
            task.returncode = n
            session.save_all()
    assert (path / "jobs" / "data.mdb").stat().st_size < size + size // 10
    ran = finish(process)
    assert ran.status == 0
    records = records_of(first + ran.out.encode())
    assert len(records) == 20_000
    assert records["Task.1"]["fields"]["returncode"] is None


def test_dump_changes_no_byte_of_the_session(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task() for _ in range(10))

    def state() -> dict[str, Any]:
        files = [file for file in sorted(path.rglob("*")) if file.name != "lock.mdb"]
        return {str(f): (f.stat().st_mtime_ns, f.is_file() and f.read_bytes()) for f in files}

    before = state()
    assert run("dump", path).status == 0
    assert state() == before


def test_no_room_for_what_is_left_of_the_dump_is_told(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add(Task())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gc3session.snapshots.snapshot._pack", full)
    with pytest.raises(WriteError, match="TMPDIR"):
        dumped(session)
    session.add(Task())  # no transaction was left open


# -- files --------------------------------------------------------------------


def test_compressed_dumps_have_the_same_lines(session: Session, tmp_path: Path) -> None:
    session.add_many(Task(jobname=str(n)) for n in range(2000))
    dump = dumped(session)
    dump_session(session, tmp_path / "d.gz")
    first = (tmp_path / "d.gz").read_bytes()
    dump_session(session, tmp_path / "d.gz")
    assert (tmp_path / "d.gz").read_bytes() == first
    assert gzip.decompress(first) == dump
    load_dump(tmp_path / "copy", tmp_path / "d.gz")
    assert dumped(tmp_path / "copy") == dump
    (tmp_path / "cut.gz").write_bytes(first[:-20])
    with pytest.raises(InvalidArgument, match=r"cut\.gz, line [0-9]+: it is cut or damaged"):
        load_dump(tmp_path / "cut", tmp_path / "cut.gz")
    assert not (tmp_path / "cut").exists()


def test_zst_is_a_dump_in_the_format_of_zstandard(session: Session, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    session.add_many(Task(jobname=str(n)) for n in range(20_000))
    dump, file = dumped(session), tmp_path / "d.zst"
    dump_session(session, file)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes()) == dump
    assert file.stat().st_size < len(dump) // 4
    load_dump(tmp_path / "copy", file)
    assert dumped(tmp_path / "copy") == dump
    assert list(diff(file, tmp_path / "copy")) == []


def test_zst_of_another_program_in_several_frames_is_read(session: Session, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    session.add_many(Task(jobname=str(n)) for n in range(20_000))
    dump, file = dumped(session), tmp_path / "d.zst"
    parts = dump[:100], dump[100:700_000], dump[700_000:]
    file.write_bytes(b"".join(zstandard.ZstdCompressor(level=19).compress(part) for part in parts))
    load_dump(tmp_path / "copy", file)
    assert dumped(tmp_path / "copy") == dump


def test_zst_that_is_cut_or_damaged_or_is_none_is_refused(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    session.add_many(Task(jobname=str(n)) for n in range(20_000))
    file = tmp_path / "d.zst"
    dump_session(session, file)
    whole = file.read_bytes()
    middle = len(whole) // 2
    damaged = (
        whole[:-1], whole[:middle], whole[:5], b"", whole[:middle] + bytes(200) + whole[middle + 200 :],
        dumped(session),
    )  # fmt: skip
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(InvalidArgument, match=r"d\.zst, line [0-9]+: "):
            load_dump(tmp_path / "copy", file)
        assert not (tmp_path / "copy").exists()


def test_zst_without_the_package_says_what_to_install(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)  # importing it fails
    session.add(Task())
    with pytest.raises(InvalidArgument, match="pip install zstandard"):
        dump_session(session, tmp_path / "d.zst")
    assert sorted(os.listdir(tmp_path)) == ["session"]
    (tmp_path / "d.zst").touch()
    with pytest.raises(InvalidArgument, match="pip install zstandard"):
        load_dump(tmp_path / "copy", tmp_path / "d.zst")
    assert not (tmp_path / "copy").exists()


def test_output_file_is_whole_or_the_former_one(tmp_path: Path) -> None:
    path, output = tmp_path / "s", tmp_path / "dump"
    with Session(path) as session:
        session.add_many(Task(extra={"x": "y" * 500}) for _ in range(60_000))
    output.write_text("former")
    process = start("dump", path, "-o", output)
    while process.poll() is None and len(os.listdir(tmp_path)) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ran = finish(process)
    if ran.status == 0:  # it was faster
        assert b'"end"' in output.read_bytes()[-100:]
    else:
        assert ran.status == 128 + signal.SIGTERM
        assert output.read_text() == "former"
    assert sorted(os.listdir(tmp_path)) == ["dump", "s"]


def test_interrupted_loading_leaves_no_session(tmp_path: Path) -> None:
    path, output = tmp_path / "s", tmp_path / "dump"
    with Session(path) as session:
        session.add_many(Task(extra={"x": "y" * 500}) for _ in range(60_000))
        dump_session(session, output)
    with output.open("rb") as file:
        text = file.read()
    process = start("load", tmp_path / "copy")
    assert process.stdin
    process.stdin.write(text[: len(text) * 3 // 4])
    process.stdin.flush()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.wait()  # before the end of its input, which would be another reason to clean up
    ran = finish(process)
    assert ran.status == 128 + signal.SIGINT
    assert ran.err.startswith("gc3session: interrupted")
    assert sorted(os.listdir(tmp_path)) == ["dump", "s"]


def test_killed_loading_leaves_no_session_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(extra={"x": "y" * 500}) for _ in range(15_000))
        text = dumped(session)
    process = start("load", tmp_path / "copy")
    assert process.stdin
    process.stdin.write(text[: len(text) * 3 // 4])
    process.kill()
    process.wait()
    process.stdin.close()
    assert not (tmp_path / "copy").exists()
    loaded(text, tmp_path / "copy")


def test_failures_have_one_line_and_a_status(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task())
    assert "no session" in one_error(run("dump", tmp_path / "none"), 2)
    assert "No such file" in one_error(run("load", tmp_path / "new", tmp_path / "none"), 1)
    assert "No such file" in one_error(run("dump", tmp_path / "s", "-o", tmp_path / "no" / "dir"), 1)
    assert "Is a directory" in one_error(run("load", tmp_path / "new", tmp_path), 1)
    with open("/dev/full", "wb") as full:
        process = start("dump", tmp_path / "s", stdout=full)
        assert "No space left" in one_error(finish(process), 1)
    dump = run("dump", tmp_path / "s").out
    assert run("load", tmp_path / "t", stdin=dump).out == f"loaded 1 record into {tmp_path}/t\n"
    error = one_error(run("load", tmp_path / "t", stdin=dump), 1)
    assert "Task.1" in error
    assert "--on-clash renumber" in error
    ran = run("load", tmp_path / "t", "--on-clash", "renumber", stdin=dump)
    assert re.fullmatch(r"loaded 1 record into \S+, each with [0-9]+ added to its number\n", ran.out)
    (tmp_path / "not").mkdir()
    (tmp_path / "not" / "file").touch()
    assert "not a session" in one_error(run("load", tmp_path / "not", stdin=dump), 2)


def test_bars_are_shown_on_a_terminal_only(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many(Task() for _ in range(1000))
    terminal = Terminal()
    process = start("dump", tmp_path / "s", "-o", tmp_path / "d", stderr=terminal.there, env={"TERM": "xterm"})
    shown = terminal.read()
    assert finish(process).status == 0
    assert "1,000 records" in shown
    ran = run("load", tmp_path / "t", tmp_path / "d")
    assert (ran.status, ran.err) == (0, "")


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(jobname=str(n), extra={"pad": "x" * 10_000}) for n in range(15_000))
    script = """
        import sys
        from gc3session import Session, dump_session, load_dump
        def mebibytes(name):
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) // 1024 for line in status if line.startswith(name))
        with Session(sys.argv[1], read_only=True) as session:
            dump_session(session, sys.argv[2])
        print(mebibytes("VmHWM"))  # at its most, with what is mapped of the data file
        load_dump(sys.argv[3], sys.argv[2])
        print(mebibytes("RssAnon"))
    """
    dumping, loading = map(int, run_python(script, path, tmp_path / "d", tmp_path / "copy").split())
    assert dumping < 100 < (path / "jobs" / "data.mdb").stat().st_size >> 20
    assert loading < 120
