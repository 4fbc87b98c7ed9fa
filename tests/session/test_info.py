"""What `info` shows is right; it reads no records unless it says that it does."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from children import Child, Died
from examples import Note, Simulation, Sweep
from gc3session import Information, Session, Task, make_store
from gc3session.tables.interface import Reader
from gc3session.tables.lmdb.data_file.meta import meta_pages_of
from gc3session.text import size_text
from test_cli import on_terminal, one_error, run, without_colours

MakeSession = Callable[..., Session]


def figure(info: Information, name: str) -> dict[str, Any]:
    return next(figure.values for figure in info.figures if figure.name == name)


def test_counts_times_and_names_are_those_of_the_session(session: Session) -> None:
    first = session.add(Task(history=[[100.5, "NEW"], [200, "RUNNING"]], state="RUNNING"))
    session.add_many(Simulation(state="NEW") for _ in range(3))
    session.add(Note(text="no task"))
    last = session.add(Task(history=[[50.0, "NEW"], [150, "TERMINATED"]], state="TERMINATED"))
    session.set_start_timestamp(30)
    info = session.info()
    assert (info.name, info.path, info.store) == (session.name, session.path, session.store_url)
    assert info.identity == Path(session.path, "store.url").read_text().strip().partition("#")[2]
    assert (info.format, info.inside, info.mirror, info.waiting) == (2, True, True, 0)
    assert info.tasks == 6
    assert info.states == {"NEW": 3, "RUNNING": 1, "TERMINATED": 1}
    assert (info.created, info.finished) == (30, None)
    assert info.first_event is not None
    assert info.last_event is not None
    assert (info.first_event.id, info.first_event.time, info.first_event.state) == (first, 100.5, "NEW")
    assert (info.last_event.id, info.last_event.time, info.last_event.state) == (last, 150, "TERMINATED")
    assert info.last_write is not None
    assert info.per_minute == 60 * 6 / (info.last_write - 30)
    assert info.last_write == Path(session.path, "jobs", "data.mdb").stat().st_mtime
    assert (info.scanned, info.unreadable) == (None, None)
    assert {schema.name: schema.records for schema in info.schemas} == dict.fromkeys(
        ["Task", "Simulation", "Note"]
    )
    session.set_end_timestamp(390)
    assert session.info().per_minute == 1


def test_scan_finds_the_first_and_last_of_all_events_and_counts_records_by_schema(session: Session) -> None:
    session.add(Task(history=[[100.5, "NEW"]]))
    inner = Task(history=[[7, "NEW"], [900, "STOPPED"]], state="STOPPED")
    session.add(Sweep(history=[[300, "NEW"]], tasks=[inner, Simulation(history=[["x", 1], "y", [1], 5])]))
    session.add(Note())
    seen: list[tuple[int, int]] = []
    info = session.info(scan=True, progress=lambda done, total: seen.append((done, total)))
    assert info.scanned == 5
    assert info.unreadable == 0
    assert seen[-1] == (5, 5)
    assert info.first_event is not None
    assert info.last_event is not None
    assert (info.first_event.id, info.first_event.time) == (inner.persistent_id, 7)
    assert (info.last_event.id, info.last_event.time, info.last_event.state) == (
        inner.persistent_id,
        900,
        "STOPPED",
    )
    counts = {schema.name: schema.records for schema in info.schemas}
    assert counts == {"Task": 2, "Sweep": 1, "Simulation": 1, "Note": 1}


def test_batch_is_told_and_not_written(session: Session) -> None:
    session.add(Task())
    session.add(Task(), flush=False)
    for scan in (False, True):
        info = session.info(scan=scan)
        assert (info.tasks, info.waiting, info.records) == (2, 1, 1)
    assert len(session.store.batch.records) == 1


def test_session_without_tasks_has_information_too(session: Session) -> None:
    for scan in (False, True):
        info = session.info(scan=scan)
        assert (info.tasks, info.states, info.records, info.format) == (0, {}, 0, None)
        assert info.first_event is info.last_event is None
        assert json.loads(json.dumps(info.as_dict()))["figures"]["filesystem"]["type"]
    assert run("info", session.path).status == 0
    session.add(Task())
    session.remove("Task.1")
    assert session.info().first_event is None


def test_records_and_sessions_of_a_shared_store_are_told_apart(tmp_path: Path) -> None:
    with make_store(tmp_path / "store") as store:
        first = Session(tmp_path / "first", store_or_url=store)
        first.add_many(Task() for _ in range(3))
        assert first.info().other_sessions == 0
        second = Session(tmp_path / "second", store_or_url=store)
        second.add_many(Simulation() for _ in range(5))
        info = first.info(scan=True)
        assert (info.inside, info.tasks, info.records, info.other_sessions, info.scanned) == (False, 3, 8, 1, 3)
        assert {schema.name: schema.records for schema in info.schemas} == {"Task": 3}
        first.close()
        second.close()


def test_damaged_record_and_stale_mirror_are_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(jobname=f"{n} xyzzy") for n in range(3))
    data = path / "jobs" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"2 xyzzy", b"2 xyzzz").replace(b"0 xyzzy", b"0 xyzzz"))
    (path / "session_ids.txt").write_text("")
    with Session(path, read_only=True) as session:
        info = session.info(scan=True)
        assert (info.unreadable, info.scanned, info.mirror) == (2, 3, False)
        assert session.info().first_event is None
    assert "stale" in run("info", path).out


def test_constant_time_without_a_scan(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # How often something is read, and how much each time, doesn't depend on the number of tasks.
    made: list[int] = []

    def calls(count: int) -> int:
        session.add_many(Task() for _ in range(count))
        with monkeypatch.context() as patch:
            kind = _kind_of_reader(session)
            for name in ("get", "scan", "get_many"):
                patch.setattr(kind, name, counting(getattr(kind, name)))
            session.info()
        found, made[:] = list(made), []
        assert all(length < 10 for length in found)
        return len(found)

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found = real(*args, **options)
            made.append(len(found) if isinstance(found, list) else 1)
            return found

        return call

    calls(1)  # what is known then need not be read again
    assert calls(10) == calls(3000) > 0


def _kind_of_reader(session: Session) -> type[Reader]:
    with session.store.tables.read() as reader:
        return type(reader)


# -- the store's figures


def test_pages_in_use_and_free_are_those_that_lmdb_counts(session: Session) -> None:
    ids = list(session.add_many(Simulation(mesh="m" * 500) for _ in range(3000)))
    session.remove_many(ids[:2000])
    room = figure(session.info(), "file")
    data = Path(session.path, "jobs", "data.mdb")
    assert room["bytes"] == data.stat().st_size
    assert room["used_bytes"] + room["free_bytes"] == max(meta.size for meta in meta_pages_of(os.fspath(data)))
    assert room["free_bytes"] == 4096 * _listed_as_free(data)
    assert room["reclaimable_bytes"] > room["bytes"] // 2
    done = session.compact()
    assert done.before - done.after >= room["reclaimable_bytes"]


def _listed_as_free(data: Path) -> int:
    """Return how many pages are in the free list, read from the file as LMDB's source has it."""
    contents = data.read_bytes()

    def number(at: int, size: int) -> int:
        return int.from_bytes(contents[at : at + size], "little")

    def walk(page: int) -> int:
        start, free = page * 4096, 0
        for n in range((number(start + 12, 2) - 16) // 2):
            node = start + number(start + 16 + 2 * n, 2)
            if number(start + 10, 2) & 1:  # a branch
                free += walk(number(node, 4) | number(node + 4, 2) << 32)
                continue
            data_at = node + 8 + number(node + 6, 2)
            if number(node + 4, 2) & 1:  # the list is on pages of its own
                data_at = number(data_at, 8) * 4096 + 16
            free += number(data_at, 8)
        return free

    newest = max((0, 4096), key=lambda start: number(start + 144, 8))
    return walk(number(newest + 80, 8))


def test_map_and_last_write_are_told(tmp_path: Path) -> None:
    with Session(tmp_path / "s", map_size=1 << 26) as session:
        session.add(Task())
        info = session.info()
    data = tmp_path / "s" / "jobs" / "data.mdb"
    assert figure(info, "map")["map_bytes"] == 1 << 26
    assert figure(info, "map")["headroom_bytes"] == (1 << 26) - data.stat().st_size
    assert figure(info, "last write")["transaction"] > 0


@pytest.mark.parametrize("read_only", [False, True])
def test_commits_are_told_to_be_flushed_as_they_are(session: Session, read_only: bool) -> None:
    session.add(Task())
    with Session(session.path, read_only=read_only) as other:
        values = figure(other.info(), "durability")
    assert (values["sync"], values["metasync"], values["writemap"]) == (True, True, False)


def read_and_wait(path: Path, tell: int) -> None:
    """Hold a transaction open until killed."""
    session = Session(path)
    with session.store.reading():
        os.write(tell, b"x")
        time.sleep(600)


def test_reader_slots_are_named_and_those_of_the_dead_are_told(make_session: MakeSession) -> None:
    session = make_session()
    session.add(Task())
    session.close()
    path = Path(session.path)
    reader, writer = os.pipe()
    child = Child(read_and_wait, path, writer)
    os.read(reader, 1)
    alive = json.loads(run("info", path, "--json").out)["figures"]["reader slots"]["readers"]
    assert [(slot["pid"], slot["stale"]) for slot in alive] == [(child.pid, False)]
    with Session(path, read_only=True) as keeper:  # opening it first, and alone, clears the slots
        assert len(keeper) == 1
        child.kill()
        with pytest.raises(Died):
            child.result()
        info = run("info", path).out
        dead = json.loads(run("info", path, "--json").out)["figures"]["reader slots"]["readers"]
        assert (child.pid, True) in [(slot["pid"], slot["stale"]) for slot in dead]
        assert re.search(rf"stale, .*: pid {child.pid} reading transaction \d", info)
    os.close(reader)
    os.close(writer)
    make_session()


# -- the command


def test_command_writes_plain_text_into_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "s ü"
    with Session(path) as session:
        session.add_many(Task(state=state) for state in ("NEW", "NEW", "a\x1b[31mb", "NEW"))
    ran = run("info", path)
    assert ran.status == 0
    assert ran.err == ""
    assert "\x1b" not in ran.out
    assert re.search(r"^    NEW +3 +75\.0%$", ran.out, re.MULTILINE)
    assert re.search(r"^    a\\x1b\[31mb +1 +25\.0%$", ran.out, re.MULTILINE)
    assert "up to date" in ran.out
    scanned = run("info", "--scan", path).out
    assert re.search(r"^  scanned +4 records$", scanned, re.MULTILINE)
    assert "5 fields, 4 records" in scanned


def test_command_draws_bars_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add_many(Task(state=state) for state in ("NEW", "NEW", "RUNNING", "NEW"))
    out = without_colours(on_terminal("info", path))
    assert re.search(r"^    NEW +3 +75\.0% +█{30} *\r?$", out, re.MULTILINE)
    assert re.search(r"^    RUNNING +1 +25\.0% +█{10} *\r?$", out, re.MULTILINE)
    assert "█" in on_terminal("info", path, width=30)


def test_command_gives_the_same_as_the_library_in_json(session: Session) -> None:
    session.add_many(Task() for _ in range(5))
    info = json.loads(run("info", "--json", "--scan", session.path).out)
    expected = json.loads(json.dumps(session.info(scan=True).as_dict()))
    for values in (info, expected):
        values["figures"].pop("reader slots")  # of which each leaves out its own
    assert info == expected


def test_what_is_no_session_is_told(tmp_path: Path) -> None:
    assert "no session" in one_error(run("info", tmp_path / "none"), 2)
    assert not (tmp_path / "none").exists()


def test_information_beside_a_busy_writer(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Session(path) as session:
        session.add(Task())
    ready, tell = os.pipe()
    child = Child(add_without_pause, path, tell)
    os.read(ready, 1)
    counted = []
    with Session(path, read_only=True) as session:
        for n in range(200):
            info = session.info(scan=n % 20 == 0)
            assert sum(info.states.values()) == info.tasks
            counted.append(info.tasks)
    child.kill()
    with pytest.raises(Died):
        child.result()
    assert counted == sorted(counted)
    assert counted[-1] > counted[0]
    os.close(ready)
    os.close(tell)
    Session(path).close()


def add_without_pause(path: Path, tell: int) -> None:
    session = Session(path)
    while True:
        session.add(Task())
        os.write(tell, b"x")


def test_sizes_as_text() -> None:
    texts = [size_text(n) for n in (0, 1, 1023, 1024, 1536, 1 << 20, 5 << 40, 1 << 70)]
    assert texts == ["0 bytes", "1 byte", "1023 bytes", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 TiB", "1,024.0 EiB"]
