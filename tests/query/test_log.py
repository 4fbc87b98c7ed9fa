"""The log: every event once, in the order of time, and as they come beside a writer."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from children import Child, run_python
from examples import Note, Simulation, Sweep
from gc3session import (
    ClosedError,
    CorruptRecord,
    InvalidArgument,
    LogEntry,
    Session,
    Task,
    TaskCollection,
    TemporarySession,
    make_store,
)
from gc3session.system import external_sort
from raw_tables import damage
from test_cli import BERLIN, MOMENT, finish, on_terminal, one_error, run, start, without_colours

DONE = "TERMINATED"


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(MOMENT + seconds, UTC)


def task(name: str, *events: tuple[Any, str], cls: Any = Task, **fields: Any) -> Any:
    """Return a task with events at these seconds after MOMENT."""
    history = [[MOMENT + seconds, state] for seconds, state in events]
    return cls(jobname=name, state=events[-1][1] if events else "NEW", history=history, **fields)


def names_and_states(entries: Iterator[LogEntry]) -> list[tuple[str | None, str | None]]:
    return [(entry.name, entry.state) for entry in entries]


# -- which, and in which order ------------------------------------------------


def test_events_of_all_tasks_in_the_order_of_time(session: Session) -> None:
    session.add(task("a", (0, "NEW"), (3, "RUNNING"), (9, DONE)))
    session.add(task("b", (1, "NEW"), (2, "RUNNING")))
    assert list(session.log()) == [
        LogEntry(at(0), "Task.1", "a", "NEW"),
        LogEntry(at(1), "Task.2", "b", "NEW"),
        LogEntry(at(2), "Task.2", "b", "RUNNING"),
        LogEntry(at(3), "Task.1", "a", "RUNNING"),
        LogEntry(at(9), "Task.1", "a", DONE),
    ]


def test_at_equal_times_the_order_of_adding_and_of_the_history_holds(session: Session) -> None:
    session.add_many(task(str(n), (0, "NEW"), (0, "x"), (0, "NEW"), (0, "a")) for n in range(12))
    assert names_and_states(session.log()) == [
        (str(n), state) for n in range(12) for state in ("NEW", "x", "NEW", "a")
    ]


def test_collections_are_entered_each_task_is_given_once_and_cycles_end(session: Session) -> None:
    shared = task("shared", (5, "NEW"))
    inner = task("inner", (4, "NEW"), cls=Sweep, tasks=[shared, Note("no task"), task("leaf", (6, "NEW"))])
    outer = task("outer", (3, "NEW"), cls=TaskCollection, tasks=[shared, inner])
    inner.add(outer)
    session.add(task("first", (9, "NEW")))
    session.add(outer)
    session.add(shared)
    session.add(Note("neither"))
    assert names_and_states(session.log()) == [
        (name, "NEW") for name in ("outer", "inner", "shared", "leaf", "first")
    ]


def test_a_task_that_was_forgotten_is_left_out_and_one_added_again_is_given_once(session: Session) -> None:
    ids = session.add_many(task(str(n), (n, "NEW")) for n in range(3))
    session.forget(ids[0])
    session.forget(ids[1])
    session.add(session.store.load(ids[1]))
    assert names_and_states(session.log()) == [("1", "NEW"), ("2", "NEW")]


def test_events_without_a_known_time_come_first(session: Session) -> None:
    session.add(task("timed", (-1e9, "NEW")))
    odd: list[Any] = [[None, "a"], [float("nan"), "b"], [1e300, "c"], [-1e300, "d"], [True, "e"], [0.0, "f"]]
    odd += ["g", [1.0], [1.0, 7], (MOMENT, "tuple"), [MOMENT + 1, "int time"]]
    session.add(Task(jobname="odd", history=odd))
    session.add(Task(jobname="none", state="RUNNING", history=[]))
    expected: list[tuple[Any, Any]] = [(None, state) for state in ("a", "b", "c", "d", "e", None, None)]
    expected += [
        (None, "RUNNING"),
        (datetime(1970, 1, 1, tzinfo=UTC), "f"),
        (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), None),
    ]
    expected += [(at(-1e9), "NEW"), (at(0), "tuple"), (at(1), "int time")]
    assert sorted(((e.time, e.state) for e in session.log() if e.time), key=str) == sorted(
        (pair for pair in expected if pair[0]), key=str
    )
    untimed = [(e.time, e.state) for e in session.log() if e.time is None]
    assert untimed == [pair for pair in expected if not pair[0]]
    assert [e.time is None for e in session.log()] == [True] * len(untimed) + [False] * 5


def test_fields_that_are_not_what_a_task_has_are_no_obstacle(session: Session) -> None:
    for value in (None, 7, "x", {"a": 1}, {1, 2}):
        odd = Simulation(jobname="x")
        odd.history = value  # type: ignore[assignment]
        odd.jobname = value  # type: ignore[assignment]
        session.add(odd)
    entries = list(session.log())
    assert [(entry.time, entry.state) for entry in entries] == [(None, "NEW")] * 5
    assert [entry.name for entry in entries] == [None, None, "x", None, None]


def test_only_what_is_asked_for(session: Session) -> None:
    session.add(task("align-1", (0, "NEW"), (10, "RUNNING"), (20, DONE)))
    session.add(task("align-2", (5, "NEW"), (15, "RUNNING")))
    session.add(Task(jobname="untimed", state="RUNNING", history=[]))
    assert names_and_states(session.log(state="NEW")) == [("align-1", "NEW"), ("align-2", "NEW")]
    assert names_and_states(session.log(state=["NEW", DONE])) == [
        ("align-1", "NEW"),
        ("align-2", "NEW"),
        ("align-1", DONE),
    ]
    assert names_and_states(session.log(name="2$")) == [("align-2", "NEW"), ("align-2", "RUNNING")]
    assert names_and_states(session.log(since=at(10), before=at(20))) == [
        ("align-1", "RUNNING"),
        ("align-2", "RUNNING"),
    ]
    assert names_and_states(session.log(since=at(15.5))) == [("align-1", DONE)]
    assert names_and_states(session.log(before=at(5))) == [("align-1", "NEW")]
    assert names_and_states(session.log(since=at(15).astimezone().replace(tzinfo=None), state="RUNNING")) == [
        ("align-2", "RUNNING")
    ]
    assert names_and_states(session.log(since=timedelta(days=1))) == []
    assert names_and_states(session.log(last=2)) == [("align-2", "RUNNING"), ("align-1", DONE)]
    assert names_and_states(session.log(last=1, state="NEW")) == [("align-2", "NEW")]
    assert names_and_states(session.log(last=0)) == []
    assert len(list(session.log(last=100))) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        {"last": -1},
        {"last": 1.5},
        {"name": "("},
        {"state": 1},
        {"since": 5},
        {"before": "x"},
        {"follow": True, "interval": 0},
    ],
)
def test_arguments_that_can_not_be_used_are_refused(session: Session, arguments: dict[str, Any]) -> None:
    with pytest.raises((InvalidArgument, TypeError)):
        session.log(**arguments)


def test_what_is_in_the_batch_is_told_and_what_was_not_saved_is_not(session: Session) -> None:
    a = task("a", (0, "NEW"))
    session.add(a, flush=False)
    assert names_and_states(session.log()) == [("a", "NEW")]
    a.state = "RUNNING"
    assert names_and_states(session.log()) == [("a", "NEW")]
    session.save_all(flush=False)
    assert names_and_states(session.log()) == [("a", "NEW"), ("a", "RUNNING")]


def test_sessions_without_tasks_or_store_have_no_events(session: Session, tmp_path: Path) -> None:
    assert list(session.log()) == []
    with TemporarySession(tmp_path / "store") as temporary:
        temporary.add(task("a", (0, "NEW")))
        assert names_and_states(temporary.log()) == [("a", "NEW")]


def test_unreadable_tasks_are_raised_first_and_the_others_told(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many(task(str(n), (n, "NEW")) for n in range(4))
    damage(tmp_path / "s", 2)
    damage(tmp_path / "s", 3)
    with Session(tmp_path / "s", read_only=True) as source:
        entries = source.log()
        for id_ in ("Task.2", "Task.3"):
            with pytest.raises(CorruptRecord, match=rf"{id_} in .*checksum") as caught:
                next(entries)
            assert caught.value.id == id_
        assert names_and_states(entries) == [("0", "NEW"), ("3", "NEW")]


@settings(max_examples=30)
@given(
    items=st.lists(st.tuples(st.floats(allow_nan=False), st.text(st.characters(exclude_categories=())))),
    run=st.integers(1, 9),
    block=st.integers(1, 4),
)
def test_sorting_through_a_file_is_sorting(items: list[tuple[float, str]], run: int, block: int) -> None:
    sortable = [(key, place, text) for place, (key, text) in enumerate(items)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "_RUN", run)
        patch.setattr(external_sort, "_BLOCK", block)
        assert list(external_sort.in_order(iter(sortable))) == sorted(sortable)


def test_memory_stays_flat(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many(task(f"{n:050}", (n % 7, "NEW"), (n % 997, "RUNNING")) for n in range(150_000))
    script = """
        import sys
        from gc3session import Session
        def mebibytes(name):
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) // 1024 for line in status if line.startswith(name))
        with Session(sys.argv[1], read_only=True) as session:
            next(session.log(last=1))
            before = mebibytes("RssAnon")
            count, time = 0, None
            for entry in session.log():
                assert time is None or entry.time >= time
                time, count = entry.time, count + 1
                if count % 1000 == 0:
                    most = max(before, mebibytes("RssAnon"))
        print(count, most - before)
    """
    count, more = map(int, run_python(script, tmp_path / "s").split())
    assert count == 300_000
    assert more < 40


# -- following ----------------------------------------------------------------


def write_without_pause(path: Path, tasks: int) -> Counter[tuple[str, str]]:
    """Add tasks, some in a collection that grows, drive them through their states, and destroy the session."""
    made: Counter[tuple[str, str]] = Counter()
    with Session(path) as session:
        collection = Sweep(jobname="all")
        session.add(collection)
        made["all", "NEW"] += 1
        living: list[Task] = []
        for n in range(tasks):
            new = Task(jobname=str(n))
            made[str(n), "NEW"] += 1
            if n % 5 == 0:
                collection.add(new)
            else:
                session.add(new, flush=n % 3 == 0)
            living.append(new)
            for other in living[-4:]:
                # Also TERMINATED and on again at once, and several events in one transaction.
                for state in (DONE, "RUNNING") if other.state == "NEW" else (DONE,):
                    if other.state != state:
                        other.state = state
                        made[other.jobname, state] += 1
            session.save_all(flush=n % 2 == 0)
        session.flush()
        for n, other in enumerate(living):
            if n % 7 == 0:
                other.state = "RUNNING" if other.state == DONE else DONE
                made[other.jobname, other.state] += 1
        session.save_all()
        session.destroy()
    return made


def test_followers_get_every_event_of_a_writer_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Session(path).close()
    with Session(path, read_only=True) as source:
        writer = Child(write_without_pause, path, 300)
        events = Counter((entry.name, entry.state) for entry in source.log(follow=True, interval=0.002))
    made = writer.result()
    assert events == made


def test_what_a_writer_did_between_two_looks_at_few_of_many_is_given_later(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks are looked at rarely here: what is open or new is given at once, the others at the end."""
    monkeypatch.setattr("gc3session.query.event_log._WHOLE_SPACING", 1e9)
    ended, begun = task("ended", (0, DONE)), task("begun", (0, "RUNNING"))
    session.add_many([ended, begun])
    with Session(session.path, read_only=True) as source:
        entries = source.log(follow=True, interval=0.001)
        assert names_and_states(iter([next(entries), next(entries)])) == [("ended", DONE), ("begun", "RUNNING")]
        ended.history.append([MOMENT + 1, DONE])
        begun.state = DONE
        session.save(ended, force=True)
        session.save_all()
        session.add(task("new", (2, "NEW")))
        assert sorted(names_and_states(iter([next(entries), next(entries)])), key=str) == [
            ("begun", DONE),
            ("new", "NEW"),
        ]
        begun.state = "RUNNING"
        session.save_all()
        session.add(task("newer", (3, "NEW")))
        assert names_and_states(iter([next(entries)])) == [("newer", "NEW")]
        run_python("import sys; from gc3session import Session; Session(sys.argv[1]).destroy()", session.path)
        assert sorted(names_and_states(entries), key=str) == [("begun", "RUNNING"), ("ended", DONE)]


def test_following_begins_with_the_last_ones_and_takes_only_what_is_asked_for(session: Session) -> None:
    session.add_many(task(str(n), (n, "NEW")) for n in range(5))
    entries = session.log(follow=True, last=2, state=["NEW", DONE], interval=0.001)
    assert names_and_states(iter([next(entries), next(entries)])) == [("3", "NEW"), ("4", "NEW")]
    first = session["Task.1"]
    first.state = "RUNNING"
    late = session["Task.2"]
    late.state = DONE
    session.save_all()
    assert names_and_states(iter([next(entries)])) == [("1", DONE)]
    session.add(Task(jobname="no times", history=[]))
    assert next(entries).name == "no times"
    late.history.extend([MOMENT, str(n)] for n in range(300))
    late.history.append([MOMENT, DONE])
    session.save(late, force=True)
    assert next(entries) == LogEntry(at(0), "Task.2", "1", DONE)
    session.destroy()


def test_unreadable_tasks_are_told_once_while_following(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add_many(task(str(n), (n, "NEW")) for n in range(3))
    damage(tmp_path / "s", 2)
    with Session(tmp_path / "s") as source:
        entries = source.log(follow=True, interval=0.001)
        with pytest.raises(CorruptRecord):
            next(entries)
        assert names_and_states(iter([next(entries), next(entries)])) == [("0", "NEW"), ("2", "NEW")]
        source.add(task("3", (3, "NEW")))
        assert names_and_states(iter([next(entries)])) == [("3", "NEW")]
        source.destroy()


def test_no_transaction_is_open_between_looks(session: Session) -> None:
    session.add(task("a", (0, "NEW")))
    entries = session.log(follow=True, interval=0.001)
    next(entries)
    for n in range(200):
        session.add(Task(jobname=str(n)))
    data = Path(session.path, "jobs", "data.mdb")
    size = data.stat().st_size
    for n in range(200):  # a reader that is held would keep each commit's pages: some 60 KB
        session["Task.1"].returncode = n
        session.save_all()
    assert data.stat().st_size < size + 1_000_000
    session.destroy()


def test_iterators_raise_once_the_session_is_closed_though_its_store_is_open(tmp_path: Path) -> None:
    with make_store(str(tmp_path / "store")) as store:
        session = Session(tmp_path / "s", store_or_url=store)
        session.add(task("a", (0, "NEW")))
        begun, entries, looks = session.log(follow=True, interval=0.001), session.log(), session.watch(0.001)
        next(begun)
        session.close()
        for iterator in (begun, entries, looks):
            with pytest.raises(ClosedError):
                next(iterator)


# -- the command --------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Session(tmp_path / "runs") as session:
        session.add(task("align \x1b[31m", (0, "NEW"), (1.5, "RUNNING"), (60, DONE)))
        session.add(Task(jobname="", state="my\nstate", history=[]))
    return tmp_path / "runs"


def test_text_has_local_times_or_utc(path: Path) -> None:
    ran = run("log", path, env=BERLIN)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "(not known)              Task.2        my\\nstate    -",
        "2020-09-13 13:26:40.250  Task.1        NEW          align \\x1b[31m",
        "2020-09-13 13:26:41.750  Task.1        RUNNING      align \\x1b[31m",
        "2020-09-13 13:27:40.250  Task.1        TERMINATED   align \\x1b[31m",
    ]
    assert (
        run("log", path, "-n", 1, env={"TZ": "UTC"}).out
        == "2020-09-13 12:27:40.250  Task.1        TERMINATED   align \\x1b[31m\n"
    )
    on = on_terminal("log", path, **BERLIN)
    assert "\x1b[" in on
    assert without_colours(on) == ran.out


def test_lines_for_programs(path: Path) -> None:
    lines = [json.loads(line) for line in run("log", path, "--format", "jsonl").out.splitlines()]
    assert lines[0] == {"time": None, "id": "Task.2", "name": "", "state": "my\nstate"}
    assert lines[1] == {
        "time": "2020-09-13T12:26:40.250000+00:00",
        "id": "Task.1",
        "name": "align \x1b[31m",
        "state": "NEW",
    }
    assert [line["id"] for line in lines] == ["Task.2", "Task.1", "Task.1", "Task.1"]


def test_options_of_the_command(path: Path) -> None:
    def states(*argv: object) -> list[str]:
        ran = run("log", path, "--format", "jsonl", *argv, env=BERLIN)
        assert (ran.status, ran.err) == (0, "")
        return [json.loads(line)["state"] for line in ran.out.splitlines()]

    assert states("--state", "NEW", "--state", DONE) == ["NEW", DONE]
    assert states("--name", "^align") == ["NEW", "RUNNING", DONE]
    assert states("--since", "2020-09-13 13:26:41", "--before", "2020-09-13T13:27:00") == ["RUNNING"]
    assert states("--since", "2 hours ago") == []
    assert states("-n", 2) == ["RUNNING", DONE]
    for argv, why in (
        (("--since", "x"), "no time"), (("--name", "("), "regular expression"), (("-n", "-1"), "-1"),
        (("--interval", "0"), "interval"), (("--format", "x"), "format"), (("--wrong",), "--wrong"),
    ):  # fmt: skip
        assert why in one_error(run("log", path, *argv), 2)
    assert "no session" in one_error(run("log", path / "none"), 2)


def test_unreadable_tasks_are_told_and_the_status_is_1(path: Path) -> None:
    damage(path, 1)
    ran = run("log", path)
    assert "Task.1" in one_error(ran, 1)
    assert ran.out.count("\n") == 1


def test_following_is_ended_by_ctrl_c(path: Path) -> None:
    process = start("log", path, "--follow", "--interval", "0.02", "--format", "jsonl")
    assert process.stdout
    assert [json.loads(process.stdout.readline())["id"] for _ in range(4)] == ["Task.2", *["Task.1"] * 3]
    with Session(path) as session:
        session.add(Task(jobname="new"))
    assert json.loads(process.stdout.readline())["name"] == "new"
    process.send_signal(signal.SIGINT)
    ran = finish(process)
    assert (ran.status, ran.out, ran.err) == (130, "", "gc3session: interrupted\n")


def test_following_ends_when_nobody_reads_any_more_though_nothing_comes(path: Path) -> None:
    process = start("log", path, "--follow")
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr
    assert process.stderr.read() == b""
    for stream in (process.stdin, process.stderr):
        assert stream
        stream.close()


def test_following_ends_when_the_session_is_destroyed(path: Path) -> None:
    process = start("log", path, "--follow", "--interval", "0.02")
    assert process.stdout
    assert process.stdout.readline()
    with Session(path) as session:
        session.add(Task(jobname="the last"))
        session.destroy()
    ran = finish(process)
    assert ran.status == 0
    assert re.fullmatch(r"gc3session: \S+ is no longer there\n", ran.err)
    assert ran.out.endswith("the last\n")
