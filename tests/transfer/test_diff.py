"""`gc3session diff`: what differs between two sessions or dumps, and nothing else."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import Simulation
from gc3session import Difference, InvalidArgument, NotASession, Session, Task, TaskCollection, diff, load_dump
from raw_tables import damage
from test_cli import one_error, run
from test_dump import dumped
from test_import_wf import INSTANCES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A session of 6 records."""
    with Session(tmp_path / "a") as session:
        session.add_many(Task(jobname=f"t{n}") for n in range(3))
        session.add(TaskCollection(jobname="both", tasks=[Simulation(jobname="in"), session["Task.1"]]))
        session.save(Task(jobname="not in the session"))
    return tmp_path / "a"


def copied(path: Path) -> Path:
    return Path(shutil.copytree(path, path.parent / "b"))


def test_session_its_copy_and_its_dump_do_not_differ(path: Path, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(dumped(path))
    load_dump(tmp_path / "c", tmp_path / "d")
    sides = [path, copied(path), tmp_path / "d", tmp_path / "c"]
    for a in sides:
        for b in sides:
            assert list(diff(a, b)) == []
    ran = run("diff", path, tmp_path / "d")
    assert ran == (0, "", "")


def test_added_removed_and_changed_tasks_are_told_with_their_fields(path: Path) -> None:
    other = copied(path)
    with Session(other) as session:
        session["Task.2"].state = "RUNNING"
        session["TaskCollection.4"].tasks[0].steps = 7
        session.save_all()
        session.remove("Task.3")
        new = session.add(Task(jobname="new"))
    number = next(task.persistent_id for task in Session(other, read_only=True)["TaskCollection.4"].tasks)
    expected = {
        Difference("changed", "Task.2", ("state", "history")),
        Difference("removed", "Task.3"),
        Difference("changed", str(number), ("steps",)),
        Difference("added", new),
    }
    assert set(diff(path, other)) == expected
    ran = run("diff", path, other)
    assert ran.status == 1
    assert sorted(ran.out.splitlines()) == sorted(
        [f"+ {new}", "- Task.3", "~ Task.2: state, history", f"~ {number}: steps"]
    )
    assert {difference.kind for difference in diff(other, path)} == {"added", "removed", "changed"}


def test_saving_alone_is_no_difference(path: Path) -> None:
    other = copied(path)
    with Session(other) as session:
        task = session["Task.1"]
        task.changed = True
        session.save_all()
    assert dumped(path) != dumped(other)
    assert list(diff(path, other)) == []


def test_leaving_the_session_is_told(path: Path) -> None:
    other = copied(path)
    with Session(other) as session:
        session.forget("Task.1")
        session.forget("Task.2")
        session.add(session.store.load("Task.2"))
    expected = [Difference("changed", "Task.1", ("<in the session>",))]
    assert list(diff(path, other)) == expected
    assert list(diff(other, path)) == expected


def test_same_number_of_another_class_is_another_task(tmp_path: Path) -> None:
    with Session(tmp_path / "a") as a, Session(tmp_path / "b") as b:
        a.add(Task())
        b.add(Simulation())
        assert sorted(diff(a, b)) == [Difference("added", "Simulation.1"), Difference("removed", "Task.1")]


def test_damaged_record_differs_from_what_it_was(path: Path) -> None:
    other = copied(path)
    damage(other, "Task.2")
    [difference] = diff(path, other)
    assert difference.id == "Task.2"
    assert "<bytes>" in difference.fields


def test_dumps_that_are_none_or_cut_are_refused(path: Path, tmp_path: Path) -> None:
    dump = dumped(path)
    lines = dump.splitlines(keepends=True)
    for broken in (b"", b"x", b"{}\n", b"[]\n", b"\xff\n", *(b"".join(lines[:n]) for n in range(1, len(lines)))):
        with pytest.raises(InvalidArgument):
            list(diff(io.BytesIO(broken), path))
        with pytest.raises(InvalidArgument):
            list(diff(path, io.BytesIO(broken)))
    with pytest.raises(NotASession):
        list(diff(path, tmp_path / "none"))
    (tmp_path / "file").write_text("no dump\n")
    assert f"{tmp_path}/file, line 1" in one_error(run("diff", path, tmp_path / "file"), 2)
    assert "no session" in one_error(run("diff", path, tmp_path / "none"), 2)


def test_diff_may_be_left_at_any_moment_and_the_session_used(path: Path, tmp_path: Path) -> None:
    with Session(path) as a, Session(tmp_path / "b") as b:
        b.add(Simulation())
        for difference in diff(a, b):
            a.add(Task())
            if difference.kind == "added":
                break
        a.add(Task())


@settings(max_examples=25)
@given(data=st.data())
def test_any_changes_are_found_and_nothing_else(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    with tempfile.TemporaryDirectory() as place:
        first, second = Path(place, "a"), Path(place, "b")
        with Session(first) as session:
            ids = list(session.add_many(Task(jobname=str(n)) for n in range(count)))
            for id_ in ids:
                if data.draw(st.booleans()):
                    session.forget(id_)
        shutil.copytree(first, second)
        expected: dict[str, Any] = {}
        with Session(second) as session:
            for id_ in ids:
                what = data.draw(st.sampled_from(["keep", "keep", "change", "remove", "add", "move"]))
                if what == "change":
                    task = session.store.load(id_)
                    task.returncode = 5
                    session.save(task)
                    expected[id_] = ("changed", ("returncode",))
                elif what == "remove":
                    session.store.remove(id_)
                    expected[id_] = ("removed", ())
                elif what == "add":
                    expected[session.add(Task())] = ("added", ())
                elif what == "move":
                    if id_ in session:
                        session.forget(id_)
                    else:
                        session.add(session.store.load(id_))
                    expected[id_] = ("changed", ("<in the session>",))
        found = list(diff(first, second))
        assert {difference.id: (difference.kind, difference.fields) for difference in found} == expected
        assert len(found) == len(expected)


def test_memory_stays_flat_where_all_differ(tmp_path: Path) -> None:
    from children import run_python

    with Session(tmp_path / "a") as a:
        a.add_many(Task(jobname=str(n), extra={"pad": "x" * 1000}) for n in range(60_000))
    with Session(tmp_path / "b") as b:
        b.add_many(Simulation(jobname=str(n), mesh="y" * 1000) for n in range(60_000))
    script = """
        import sys
        from gc3session import diff
        count = sum(1 for _ in diff(sys.argv[1], sys.argv[2]))
        with open("/proc/self/status") as status:
            anonymous = next(line for line in status if line.startswith("RssAnon"))
        print(count, int(anonymous.split()[1]) // 1024 < 80)
    """
    assert run_python(script, tmp_path / "a", tmp_path / "b") == "120000 True"


@pytest.mark.skipif(not INSTANCES.exists(), reason="the workflow instances are not there")
def test_workflows_loaded_elsewhere_do_not_differ(tmp_path: Path) -> None:
    assert run("import-wf", tmp_path / "a", *sorted(INSTANCES.glob("*.json"))).status == 0
    assert run("dump", tmp_path / "a", "-o", tmp_path / "d.gz").status == 0
    assert run("load", tmp_path / "b", tmp_path / "d.gz").status == 0
    assert run("diff", tmp_path / "a", tmp_path / "b") == (0, "", "")
    assert run("diff", tmp_path / "d.gz", tmp_path / "b") == (0, "", "")
