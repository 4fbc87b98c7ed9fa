"""Whatever is planted in a session directory: nothing outside it is changed or made, and nothing is waited for."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from children import in_child
from gc3session import (
    DamagedSession,
    Error,
    ReadOnlyError,
    Session,
    Task,
    check_session,
    dump_session,
    repair_session,
)
from gc3session.cli.program import run
from gc3session.index.entries import moved_key
from raw_tables import Raw

SECONDS = 300  # after which something is waited for that never comes


class Place(NamedTuple):
    """The session, and what is outside it.

    Attributes:
        session: the session's directory.
        outside: what nobody may touch: `precious`, a file; `directory`; `store`, that of another session.
        out: where commands may write.
    """

    session: Path
    outside: Path
    out: Path


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, if possible, that other users can reach: what is flushed doesn't matter here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="gc3session-", dir=memory if memory.is_dir() else None) as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def place(memory: Path) -> Place:
    place = Place(memory / "session", memory / "outside", memory / "out")
    for name in ("session", "outside/other"):
        with Session(memory / name, store_or_url=None) as session:
            session.add_many(Task(jobname=f"t{n}") for n in range(20))
            session.add(Task(jobname="large", extra={"data": bytes(20_000)}))
            session.remove("Task.3")
    (place.outside / "precious").write_bytes(b"precious")
    (place.outside / "directory").mkdir()
    place.out.mkdir()
    (place.out / "task.jsonl").write_text('{"jobname": "new"}\n')
    with Session(place.session, read_only=True) as session:
        dump_session(session, place.out / "dump.jsonl")
    return place


# -- what is planted

Plant = Callable[[Place], None]


def emptied(path: Path) -> Path:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return path


def link(name: str, target: str) -> Plant:
    return lambda place: emptied(place.session / name).symlink_to(place.outside / target)


def hard_link(name: str, target: str) -> Plant:
    return lambda place: emptied(place.session / name).hardlink_to(place.outside / target)


def other_name(name: str) -> Plant:
    """What is in the session is found outside, too."""
    return lambda place: (place.outside / "other name").hardlink_to(place.session / name)


def fifo(name: str) -> Plant:
    return lambda place: os.mkfifo(emptied(place.session / name))


def directory(name: str) -> Plant:
    return lambda place: emptied(place.session / name).mkdir()


def sparse(name: str) -> Plant:
    return lambda place: os.truncate(place.session / name, 1 << 43)


def leads(to: str) -> Plant:
    """`store.url` names something else."""

    def plant(place: Place) -> None:
        url = place.session / "store.url"
        os.mkfifo(place.outside / "fifo")
        (place.outside / "link").symlink_to("other/jobs")
        where = to.format(outside=place.outside, session=place.session)
        url.write_text(f"{where}#{url.read_text().partition('#')[2]}")

    return plant


def moved(to: str, *, known: bool = False) -> Plant:
    """The store says that the session has moved."""

    def plant(place: Place) -> None:
        identity = (place.session / "store.url").read_text().strip().partition("#")[2]
        there = (
            (place.outside / "other" / "store.url").read_text().strip().partition("#")[2] if known else "0" * 32
        )
        line = f"{to.format(outside=place.outside)}#{there}\n".encode()
        with Raw(place.session) as raw:
            raw.put("meta", moved_key(bytes.fromhex(identity)), line)

    return plant


def both(*plants: Plant) -> Plant:
    return lambda place: [plant(place) for plant in plants] and None


def damaged_data(place: Place) -> None:
    with open(place.session / "jobs" / "data.mdb", "r+b") as file:
        file.seek(3 * 4096)
        file.write(bytes(3 * 4096))


DATA, LOCK, MARK, NEW = "jobs/data.mdb", "jobs/lock.mdb", "jobs/checked", "jobs/compacted.tmp"
PLANTS: dict[str, Plant] = {
    **{f"{name} is a link": link(name, "precious") for name in (DATA, LOCK, MARK, NEW, "created", "damaged")},
    **{f"{name} is a FIFO": fifo(name) for name in (DATA, LOCK, MARK, NEW, "created", "damaged", "jobs")},
    **{f"{name} is a directory": directory(name) for name in (DATA, LOCK, MARK, "session_ids.txt.tmp")},
    **{f"{name} is a hard link": hard_link(name, "precious") for name in (DATA, LOCK, MARK, "created", "finished")},
    **{
        f"{name} has another name": other_name(name)
        for name in (DATA, LOCK, MARK, "created", "session_ids.txt", "store.url")
    },
    **{f"{name} is sparse": sparse(name) for name in (DATA, LOCK, "session_ids.txt", "store.url", "created")},
    "data.mdb is /dev/zero": lambda place: emptied(place.session / DATA).symlink_to("/dev/zero"),
    "data.mdb is that of another": link(DATA, "other/jobs/data.mdb"),
    "session_ids.txt is a link": link("session_ids.txt", "precious"),
    "session_ids.txt is a FIFO": fifo("session_ids.txt"),
    "session_ids.txt.tmp is a link": both(link("session_ids.txt.tmp", "precious"), link("session_ids.txt", "no")),
    "session_ids.txt.tmp is a FIFO": both(fifo("session_ids.txt.tmp"), link("session_ids.txt", "no")),
    "store.url is a link": link("store.url", "other/store.url"),
    "store.url is a FIFO": fifo("store.url"),
    "jobs is a link": link("jobs", "other/jobs"),
    "jobs is a link to nothing": link("jobs", "new"),
    "damaged is a link to a directory": both(link("damaged", "directory"), damaged_data),
    "damaged is a link to nothing": both(link("damaged", "new"), damaged_data),
    "the directory for what is taken out is a link": both(
        directory("damaged"), link("damaged/data.mdb", "precious"), link("damaged/data.mdb.1.tmp", "precious"), damaged_data
    ),
    "leftover is a link": link("jobs.4194999.deadbeef.tmp", "directory"),
    "store.url leads to /": leads("lmdb:///"),
    "store.url leads to //": leads("lmdb:////"),
    "store.url leads to a file": leads("lmdb://{outside}/precious"),
    "store.url leads to a FIFO": leads("lmdb://{outside}/fifo"),
    "store.url leads to a directory": leads("lmdb://{outside}/directory"),
    "store.url leads to a session": leads("lmdb://{outside}/other"),
    "store.url leads to a link": leads("lmdb://{outside}/link"),
    "store.url leads to the store of another": leads("lmdb://{outside}/other/jobs"),
    "store.url leads to what is not there": leads("lmdb://{outside}/new/jobs"),
    "store.url leads out by ..": leads("lmdb:../outside/other/jobs"),
    "store.url leads out by a link": both(leads("lmdb:sub/jobs"), link("sub", "other")),
    "store.url leads out by .. that is quoted": leads("lmdb:%2e%2e/outside/other/jobs"),
    "store.url leads out by .. below": leads("lmdb://{session}/../outside/other/jobs"),
    "moved to the store of another": moved("lmdb://{outside}/other/jobs"),
    "moved to a directory": moved("lmdb://{outside}/directory"),
    "moved to what is not there": moved("lmdb://{outside}/new/jobs"),
    "moved to a file": moved("lmdb://{outside}/precious"),
}  # fmt: skip


# -- what is done with it


def commands(place: Place) -> tuple[list[list[str]], list[list[str]]]:
    """Return the command lines that look, and those that write."""
    session, out = str(place.session), str(place.out)
    looking = [
        ["info", session, "--scan"], ["list", session, "-r"], ["select", session, "state = NEW"], ["show", session, "Task.1"],
        ["log", session], ["watch", session, "--once"], ["dump", session, "-o", f"{out}/new.jsonl"],
        ["diff", session, f"{out}/dump.jsonl"], ["backup", session, f"{out}/backup"], ["check", session],
        ["repair", session, "--dry-run"],
    ]  # fmt: skip
    writing = [
        ["record", session, f"{out}/task.jsonl"], ["import-wf", session, f"{out}/task.jsonl"],
        ["load", session, f"{out}/dump.jsonl"], ["forget", session, "Task.2", "--yes"], ["remove", session, "Task.5", "--yes"],
        ["compact", session], ["repair", session], ["compact", session], ["migrate", session, f"lmdb://{out}/moved"],
        ["destroy", session, "--yes"],
    ]  # fmt: skip
    return looking, writing


def alone(function: Callable[[Place], Any], place: Place) -> None:
    """Run in this process, which is a child, and be ended by SIGALRM if something is waited for."""
    signal.alarm(SECONDS)
    warnings.simplefilter("ignore")
    sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    function(place)


def look(place: Place) -> None:
    with suppress(Error), Session(place.session, read_only=True) as session:
        for task in session:
            repr(task)
        repr((session.info(scan=True), list(session.log()), session.stats(), session.created, session.finished))
        dump_session(session, io.BytesIO())
    with suppress(Error):
        list(check_session(place.session))
    ran(commands(place)[0])


def write(place: Place) -> None:
    for change in (
        lambda session: session.add(Task()),
        lambda session: session.remove("Task.1"),
        lambda session: session.set_start_timestamp(1.0),
        lambda session: session.set_end_timestamp(2.0),
        lambda session: session.compact(),
        lambda session: session.repair(),
    ):
        with suppress(Error), Session(place.session) as session:
            change(session)
    with suppress(Error), Session(place.session, load=False) as session:
        session.add(Task())
    with suppress(Error):
        repair_session(place.session)


def write_by_commands(place: Place) -> None:
    ran(commands(place)[1])


def ran(lines: list[list[str]]) -> None:
    for line in lines:
        status = run(line)
        if status not in (0, 1, 2):
            raise AssertionError(f"{line} ended with status {status}")


def state_of(path: Path) -> dict[str, Any]:
    """Return what there is in a directory, except for `lock.mdb`: each reader of a store takes LMDB's own locks."""
    found = {}
    for file in path.rglob("*"):
        status = os.lstat(file)
        if file.name == "lock.mdb" and 1000 < status.st_size < 1 << 20:
            continue
        contents = file.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20 else b""
        found[str(file)] = status.st_mode, status.st_size, status.st_mtime_ns, contents
    return found


@pytest.mark.parametrize("uses", [look, write, write_by_commands])
def test_nothing_outside_is_changed_made_or_waited_for(
    place: Place, memory: Path, uses: Callable[[Place], None]
) -> None:
    failures = []
    for name, plant in PLANTS.items():
        work = memory / "work"
        shutil.rmtree(work, ignore_errors=True)
        copy = Place(*(Path(shutil.copytree(each, work / each.name)) for each in place))
        plant(copy)
        before, own = state_of(copy.outside), state_of(copy.session) if uses is look else {}
        try:
            in_child(alone, uses, copy)
        except Exception as error:
            failures.append(f"{name}: {error!r}")
        if state_of(copy.outside) != before:
            failures.append(f"{name}: changed outside: {difference(before, state_of(copy.outside))}")
        if uses is look and state_of(copy.session) != own:
            failures.append(f"{name}: looking changed {difference(own, state_of(copy.session))}")
    assert not failures, "\n".join(failures)


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def test_what_has_another_name_outside_is_still_of_use(place: Place) -> None:
    """As in backups whose files are hard links to one another: it can be read, and what can be replaced is written."""
    for name in (DATA, "session_ids.txt", "created"):
        (place.outside / name.replace("/", "-")).hardlink_to(place.session / name)
    with Session(place.session, read_only=True) as session:
        assert len(session) == 20
    assert list(check_session(place.session)) == []
    with pytest.raises(ReadOnlyError, match=r"other names.*a copy of the file"), Session(place.session) as session:
        session.add(Task())
    data = place.session / DATA
    shutil.copy(data, place.out / "data.mdb")
    (place.out / "data.mdb").rename(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the mirror is as it was: nobody has edited it
        with Session(place.session) as session:
            session.add(Task(jobname="new"))
            session.set_start_timestamp(1.0)
            assert session.created == 1.0
    assert list(check_session(place.session)) == []
    assert (place.session / "created").read_text()
    assert len((place.outside / "session_ids.txt").read_text().splitlines()) == 21
    assert (place.outside / "created").stat().st_mtime > 1.0


@pytest.mark.parametrize("read_only", [True, False])
def test_session_that_has_moved_is_followed_only_to_a_store_that_knows_it(place: Place, read_only: bool) -> None:
    moved("lmdb://{outside}/other/jobs")(place)
    with pytest.raises(DamagedSession, match="doesn't know this session"):
        Session(place.session, read_only=read_only)
    moved("lmdb://{outside}/other/jobs", known=True)(place)
    with Session(place.session, read_only=read_only) as session:
        assert session.store_url == f"lmdb://{place.outside}/other/jobs"
