"""A repair that is killed at any call loses nothing, and none is done to a store that somebody uses or that isn't the session's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from children import in_child, run_script, start_python
from consistency import check
from examples import Simulation, Sweep
from gc3session import (
    CorruptStore,
    DamagedSession,
    Session,
    StoreInUse,
    Task,
    WriteError,
    check_session,
    repair_session,
)
from gc3session.format.frame import with_home
from raw_tables import TABLES, Raw, n4, n8, sealed
from test_check import zero_root
from test_cli import one_error, run
from test_damages import _nodes, lines_of

KIT = Path(__file__).parents[2] / "tools" / "crashkit"
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed session: collections, a forgotten task, one that came back, large values."""
    with Session(tmp_path / "session") as session:
        ids = list(session.add_many(Simulation(jobname=f"t{n}", mesh="m" * 10 * n) for n in range(60)))
        session.add(Sweep(jobname="sweep", tasks=[session.load(ids[3]), Simulation(jobname="in it")]))
        session.add(Simulation(jobname="large", inputs={"bytes": bytes(3 * PAGE)}))
        session.forget(ids[0])
        session.remove(ids[7])
        session.forget(ids[5])
        session.add(session.store.load(ids[5]))
    return tmp_path / "session"


def range_of(table: str) -> bytes:
    return bytes([TABLES.index(table) + 1])


def miscounted(path: Path) -> None:
    """Have the newer meta page say that there is another number of items: whoever reads needs not know it."""
    file = path / "jobs" / "data.mdb"
    data = bytearray(file.read_bytes())
    newest = max((0, PAGE), key=lambda meta: int.from_bytes(data[meta + 144 : meta + 152], sys.byteorder))
    data[newest + 120] ^= 1
    file.write_bytes(data)


def zeroed(table: str) -> Callable[[Path], None]:
    """Zero each leaf page that has a key of a table."""

    def damage(path: Path) -> None:
        file = path / "jobs" / "data.mdb"
        data = file.read_bytes()
        with open(file, "r+b") as out:
            for page in range(len(data) // PAGE):
                if any(key[:1] == range_of(table) for key, _ in _nodes(data, page)):
                    out.seek(PAGE * page)
                    out.write(bytes(PAGE))

    return damage


def put(table: str, key: bytes, value: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with Raw(path) as raw:
            raw.put(table, key, value)

    return damage


def without_url(path: Path) -> None:
    (path / "store.url").unlink()


def strange_url(path: Path) -> None:
    """Two sessions are in the store, so that only `store.url` tells which one this is."""
    with Session(path.with_name("other"), store_or_url=path / "jobs") as other:
        other.add(Task())
    url = path / "store.url"
    url.write_text(url.read_text().replace("lmdb:jobs", "lmdb:gone"))


def odd_files(path: Path) -> None:
    (path / "created").unlink()
    (path / "created").mkdir()
    odd_lock(path)
    (path / "session_ids.txt").write_text("Simulation.2\nrubbish\n")


def without_data(path: Path) -> None:
    (path / "jobs" / "data.mdb").unlink()


def odd_lock(path: Path) -> None:
    (path / "jobs" / "lock.mdb").unlink()
    (path / "jobs" / "lock.mdb").mkdir()


def combined(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: [damage(path) for damage in damages] and None


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "tree lost": (zero_root, ["python"]),
    "index lost": (zeroed("index"), ["python"]),
    "records lost": (combined(without_url, zeroed("records")), ["python"]),
    "record damaged": (
        combined(put("records", (9).to_bytes(8, "big"), b"spoilt"), put("schemas", b"\0\0\0\7", b"spoilt")),
        ["session"],
    ),
    "store.url strange": (strange_url, ["python"]),
    "odd files": (odd_files, ["command"]),
    "no data": (without_data, ["python"]),
}
"""Damages, and how they are repaired."""


@pytest.mark.skipif(not KIT.exists(), reason="there is no tools/crashkit beside the tests")
@pytest.mark.parametrize("name", DAMAGES)
def test_killed_at_any_call_a_repair_can_be_done_again_and_nothing_is_lost(
    path: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, long_form: bool
) -> None:
    monkeypatch.syspath_prepend(os.fspath(KIT))
    from recorder import Recorder
    from suite import CannotRun, in_memory

    damage, ways = DAMAGES[name]
    damage(path)
    script = Path(__file__).with_name("killed_repairs.py")
    much = "all" if long_form else "some"
    with in_memory(tmp_path) as scratch:
        try:
            environment = Recorder(tmp_path, Path(scratch)).environment(log=False)
        except CannotRun as error:
            pytest.skip(str(error))
        watched = {name: environment[name] for name in ("LD_PRELOAD", "CRASHKIT_ROOT")}
        result = json.loads(run_script(script, scratch, path, much, *ways, env=watched))
    assert result["wrong"] == []
    assert result["kills"] > 5


def test_damaged_record_comes_back_from_a_former_page_in_its_newest_revision(path: Path) -> None:
    with Session(path) as session:
        for mesh in ("second", "third"):
            session.load("Simulation.20").mesh = mesh
            session.save_all()
            session.add(Task())  # so that the page of that revision is written anew, and stays
    put("records", (20).to_bytes(8, "big"), b"spoilt")(path)
    planned, repaired = repair_session(path, dry_run=True), repair_session(path)
    assert planned.done[0] == repaired.done[0]
    assert re.match("record 20: .*; restored from a copy", repaired.done[0])
    assert (path / "damaged" / "20.record").read_bytes() == b"spoilt"
    with Session(path) as session:
        assert session.load("Simulation.20").mesh == "third"
    check(path)


LOSSES: dict[str, tuple[str, ...]] = {
    "index": ("index",),
    "index and counts": ("index", "counts"),
    "rows": ("sessions",),
    "states": ("states",),
    "all but records, holders, schemas and the names of sessions": (
        "index",
        "counts",
        "sessions",
        "states",
        "leases",
    ),
}


@pytest.mark.parametrize("lost", LOSSES.values(), ids=LOSSES)
def test_index_of_all_sessions_comes_back_from_records_and_holders(path: Path, lost: tuple[str, ...]) -> None:
    other = path.with_name("other")
    with Session(other, store_or_url=path / "jobs") as session:
        session.add_many(Task(jobname=f"o{n}", state="RUNNING") for n in range(10))
        session.add(session.store.load("Simulation.20"))
        session.store.save(Task(jobname="in no session"))
    with Session(path) as session:
        session.forget("Simulation.30")
    before = [check(path), check(other), *(lines_of(each) for each in (path, other))]
    with Raw(path) as raw:
        for table in lost:
            for key, _ in raw.items(table):
                raw.delete(table, key)
    assert repair_session(path).done
    assert [check(path), check(other, mirror=False), *(lines_of(each) for each in (path, other))] == before
    Session(other).close()
    check(other)


def test_session_whose_row_and_url_are_lost_is_the_only_one_of_its_store(path: Path) -> None:
    ids = check(path)
    with Raw(path) as raw:
        raw.put("sessions", raw.items("sessions")[0][0], b"spoilt")
    (path / "store.url").unlink()
    assert repair_session(path).done
    assert check(path) == ids


def test_session_whose_row_is_lost_stays_itself_beside_another_one(path: Path) -> None:
    ids = check(path)
    with Raw(path) as raw:
        row = raw.items("sessions")[0]
    with Session(path.with_name("other"), store_or_url=path / "jobs") as other:
        theirs = [other.add(Task()), other.add(other.store.load("Simulation.20"))]
    with Raw(path) as raw:
        raw.delete("sessions", row[0])
    assert repair_session(path).done
    assert check(path) == ids
    assert sorted(check(path.with_name("other"))) == sorted(theirs)


@pytest.mark.parametrize("lost", [[1], [1, 2]])
def test_session_that_its_store_has_forgotten_does_not_become_another_one(path: Path, lost: list[int]) -> None:
    ids = check(path)
    for name in ("other", "third"):
        with Session(path.with_name(name), store_or_url=path / "jobs") as other:
            other.add(Task())
    with Raw(path) as raw:
        for number in lost:
            raw.delete("sessions", raw.get("meta", b"session " + n4(number)))
            raw.delete("meta", b"session " + n4(number))
    if len(lost) == 1:
        assert repair_session(path).done
        assert check(path) == ids
    else:
        with pytest.raises(DamagedSession, match="which of the sessions"):
            repair_session(path)


def test_session_whose_row_stands_under_a_spoilt_key_stays_itself(path: Path) -> None:
    ids = check(path)
    with Raw(path) as raw:
        [(key, row)] = raw.items("sessions")
        raw.delete("sessions", key)
        raw.put("sessions", bytes([key[0] ^ 1]) + key[1:], row)
    with Session(path.with_name("other"), store_or_url=path / "jobs") as other:
        theirs = other.add(Task())
    assert repair_session(path).done
    assert check(path) == ids
    assert check(path.with_name("other")) == [theirs]


@pytest.mark.parametrize("stranger", [False, True])
def test_session_is_not_taken_for_another_one_whose_store_it_shares(path: Path, stranger: bool) -> None:
    ids = check(path)
    for name in ("other", "third"):
        with Session(path.with_name(name), store_or_url=path / "jobs") as other:
            other.add(Task())
    url, copy = path / "store.url", path.with_name("copy")
    url.write_text("lmdb:jobs#" + "0" * 32 + "\n" if stranger else "")
    shutil.copytree(path, copy)  # whose mirror is another file than the row says
    with pytest.raises(DamagedSession, match="which of the sessions"):
        repair_session(copy)
    assert (copy / "store.url").read_text() == url.read_text()
    assert repair_session(path).done
    assert check(path) == ids


def test_value_in_a_damaged_run_of_pages_is_taken_over(path: Path) -> None:
    ids, data = check(path), path / "jobs" / "data.mdb"
    content = bytearray(data.read_bytes())
    runs = [n for n in range(2, len(content) // PAGE) if struct.unpack_from("=QxxH", content, n * PAGE) == (n, 4)]
    for first in runs:
        content[first * PAGE + 12] ^= 0x80
    data.write_bytes(content)
    assert repair_session(path).quarantined == ["data.mdb"]
    assert check(path) == ids


@pytest.mark.parametrize("table", ["meta", "counts"])
def test_count_to_which_nothing_can_be_added_is_damage(path: Path, table: str) -> None:
    with Raw(path) as raw:
        for key, value in raw.items(table):
            if len(value) == 8 and key != b"next N":
                raw.put(table, key, b"\xff" * 8)
    with Session(path) as session, pytest.raises(CorruptStore, match="gc3session repair"):
        session.add(Simulation())
    assert repair_session(path).done
    with Session(path) as session:
        session.add(Simulation())


def test_page_of_records_whose_border_is_odd_is_taken_over(path: Path) -> None:
    ids, data = check(path), path / "jobs" / "data.mdb"
    content = bytearray(data.read_bytes())
    for page in range(len(content) // PAGE):
        if any(key[:1] == range_of("records") for key, _ in _nodes(content, page)):
            content[page * PAGE + 12] ^= 1  # of the number of bytes up to the end of the list of places
    data.write_bytes(content)
    assert repair_session(path).quarantined == ["data.mdb"]
    assert check(path) == ids


def test_record_of_a_revision_that_can_not_be_is_no_record_in_a_damaged_file_either(path: Path) -> None:
    put("records", n8(9), sealed(9, [1, -1, 1, []]))(path)
    miscounted(path)
    assert repair_session(path).done
    assert list(check_session(path)) == []


def test_holders_that_are_lost_come_back_from_the_index(path: Path) -> None:
    with Session(path.with_name("other"), store_or_url=path / "jobs") as session:
        session.add(session.store.load("Simulation.20"))
    with Raw(path) as raw:
        raw.delete("holders", raw.items("holders")[0][0])
        raw.put("records", n8(21), with_home(21, raw.get("records", n8(21)), 0))
    assert len(repair_session(path).done) >= 2
    assert "Simulation.21" in check(path)
    assert check(path.with_name("other")) == ["Simulation.20"]


def test_damaged_key_hides_no_record_but_its_own(path: Path) -> None:
    # The tree has its keys in order, so all that come after this one are out of order.
    data = path / "jobs" / "data.mdb"
    key = struct.pack("=HH", 0, 9) + range_of("records")
    data.write_bytes(data.read_bytes().replace(key + (12).to_bytes(8, "big"), key + b"\xff" * 8))
    assert repair_session(path).quarantined
    assert list(check_session(path)) == []
    with Session(path) as session:
        assert len(session) == 59
        assert "Simulation.12" not in session


# -- beside others


@contextlib.contextmanager
def in_use(path: Path, statement: str) -> Iterator[int]:
    """Give the pid of a program that has the session's store open; it adds a task at the end, and must succeed."""
    script = f"""
        import sys, lmdb
        from gc3session import Session, Task
        {statement}
        print("open", flush=True)
        sys.stdin.read()
    """
    process = start_python("-c", textwrap.dedent(script), path, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    try:
        yield process.pid
    finally:
        _, errors = process.communicate()
    assert process.returncode == 0, errors


USERS = {
    "session": "session = Session(sys.argv[1])",
    "reader": "session = Session(sys.argv[1], read_only=True); len(session)",
    "lmdb alone": "env = lmdb.open(sys.argv[1] + '/jobs'); env.stat()",
}


def state_of(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return inode and contents of each file, but for LMDB's lock, which readers write."""
    return {
        str(file): (file.stat().st_ino, file.read_bytes())
        for file in path.rglob("*")
        if file.is_file() and file.name != "lock.mdb"
    }


@pytest.mark.parametrize("user", USERS)
def test_data_file_that_others_use_is_not_replaced_and_they_are_named(path: Path, user: str) -> None:
    with in_use(path, USERS[user]) as pid:
        miscounted(path)
        before = state_of(path)
        with pytest.raises(StoreInUse, match=f"open by process {pid};") as caught:
            repair_session(path)
        assert caught.value.pids == (pid,)
        assert str(pid) in one_error(run("repair", path), 1)
        assert any("made again" in line for line in repair_session(path, dry_run=True).done)
        assert state_of(path) == before
    assert repair_session(path).quarantined == ["data.mdb"]
    with Session(path) as session:
        assert len(session) == 60
    check(path)


@pytest.mark.parametrize("damage", [without_data, odd_lock])
def test_store_that_others_use_is_not_moved_aside(path: Path, damage: Callable[[Path], None]) -> None:
    with in_use(path, USERS["session"]) as pid:
        damage(path)
        with pytest.raises(StoreInUse, match=str(pid)):
            repair_session(path)
        assert not (path / "damaged").exists()
    assert repair_session(path).done
    assert list(check_session(path)) == []


def test_data_file_that_this_process_uses_is_not_replaced(path: Path) -> None:
    with Session(path) as session:
        in_child(miscounted, path)
        with pytest.raises(WriteError, match=f"open by process {os.getpid()}, this one;"):
            session.repair()
        with pytest.raises(StoreInUse, match="this one"):
            repair_session(path)
    assert repair_session(path).quarantined == ["data.mdb"]


def test_tables_are_mended_beside_a_program_that_goes_on_adding(path: Path) -> None:
    adds = "session = Session(sys.argv[1]); session.add(Task(jobname='before'))"
    process = "import atexit; atexit.register(lambda: session.add(Task(jobname='after')))"
    with in_use(path, f"{adds}; {process}"):
        put("records", (9).to_bytes(8, "big"), b"spoilt")(path)
        assert repair_session(path).quarantined == ["9.record"]
    with Session(path) as session:
        assert {"before", "after", "t8"} <= session.list_names()  # t8's record stands in a former page, too
        assert len(session) == 62
    check(path)


# -- stores that are elsewhere


@pytest.mark.parametrize("there", ["a directory", "another session's store", "nothing"])
@pytest.mark.parametrize("own", [True, False])
def test_repair_touches_nothing_that_a_hostile_url_leads_to(
    path: Path, tmp_path: Path, there: str, own: bool
) -> None:
    with Session(tmp_path / "precious" / "session") as session:
        session.add(Task(jobname="precious"))
    place = {
        "a directory": tmp_path / "precious",
        "another session's store": tmp_path / "precious" / "session" / "jobs",
        "nothing": tmp_path / "precious" / "new",
    }[there]
    url = path / "store.url"
    url.write_text(f"lmdb://{place}#{url.read_text().partition('#')[2]}")
    if not own:
        (path / "jobs").rename(tmp_path / "jobs")
    before = state_of(tmp_path / "precious")
    assert list(check_session(path))
    if own and there == "nothing":  # what the URL leads to is not there, and the store in the directory is
        assert repair_session(path).done
        assert list(check_session(path)) == []
    else:
        for dry_run in (True, False):
            with pytest.raises(DamagedSession, match="doesn't know this session"):
                repair_session(path, dry_run=dry_run)
        assert run("repair", path).status == 2
    assert state_of(tmp_path / "precious") == before


def test_damaged_store_elsewhere_that_knows_the_session_is_mended(path: Path, tmp_path: Path) -> None:
    with Session(tmp_path / "far", store_or_url=tmp_path / "store" / "jobs") as session:
        ids = list(session.add_many(Simulation(jobname=f"t{n}") for n in range(60)))
    miscounted(tmp_path / "store")
    assert repair_session(tmp_path / "far").quarantined == ["data.mdb"]
    with Session(tmp_path / "far") as session:
        assert list(session.ids()) == ids
    assert os.listdir(tmp_path / "store") == ["jobs"]


def test_session_whose_row_is_lost_in_a_store_elsewhere_is_mended(tmp_path: Path) -> None:
    with Session(tmp_path / "far", store_or_url=tmp_path / "store" / "jobs") as session:
        ids = list(session.add_many(Simulation() for _ in range(3)))
    with Raw(tmp_path / "store") as raw:
        raw.delete("sessions", raw.items("sessions")[0][0])
    assert repair_session(tmp_path / "far").done
    assert check(tmp_path / "far") == ids


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_data_file_that_is_made_anew_belongs_to_whom_the_old_one_did(path: Path) -> None:
    data = path / "jobs" / "data.mdb"
    miscounted(path)
    os.chown(data, 65534, 65534)
    data.chmod(0o640)
    repair_session(path)
    assert (data.stat().st_uid, data.stat().st_gid, data.stat().st_mode & 0o7777) == (65534, 65534, 0o640)
