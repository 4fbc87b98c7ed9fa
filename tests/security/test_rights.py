"""Rights that are missing: only documented errors, nothing changes; and files that are made have no more rights than asked."""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from children import in_child
from gc3session import OpenError, Session, Task, WriteError, check_session, dump_session, repair_session
from gc3session.cli.program import run
from test_damage import NOBODY
from test_outside import Place, damaged_data, look, write, write_by_commands
from test_outside import memory as memory
from test_outside import state_of as contents_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

Rights = Callable[[Path], None]


def mode(name: str, bits: int) -> Rights:
    return lambda path: (path / name).chmod(bits)


def without_lock(path: Path) -> None:
    (path / "jobs" / "lock.mdb").unlink()
    (path / "jobs").chmod(0o555)


def all_modes(directories: int, files: int) -> Rights:
    def change(path: Path) -> None:
        for each in (*path.rglob("*"), path):
            each.chmod(directories if each.is_dir() else files)

    return change


RIGHTS: dict[str, Rights] = {
    **{f"the directory has {bits:o}": mode(".", bits) for bits in (0, 0o100, 0o400, 0o500, 0o700, 0o701, 0o704, 0o755)},
    **{f"{name} has {bits:o}": mode(name, bits) for name in ("jobs", "jobs/lock.mdb") for bits in (0, 0o444, 0o555)},
    **{f"{name} has 0": mode(name, 0) for name in ("jobs/data.mdb", "store.url", "session_ids.txt", "created")},
    **{f"{name} has 444": mode(name, 0o444) for name in ("jobs/data.mdb", "store.url", "session_ids.txt", "created")},
    "no lock can be made": without_lock,
    "nothing can be written": all_modes(0o555, 0o444),
    "all can be written": all_modes(0o777, 0o666),
}  # fmt: skip
"""What is changed of the rights of a session whose files have 644 and 755."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A session that has all its rights; each command has been run once, and so has imported what it needs."""
    at = tmp_path_factory.mktemp("rights")
    place = Place(at / "session", at / "outside", at / "out")
    former = os.umask(0o022)
    with Session(place.session) as session:
        session.add_many(Task(jobname=f"t{n}") for n in range(10))
    os.umask(former)
    place.outside.mkdir()
    place.out.mkdir()
    (place.out / "task.jsonl").write_text('{"jobname": "new"}\n')
    with Session(place.session, read_only=True) as session:
        dump_session(session, place.out / "dump.jsonl")
    here, streams = copied(place, at / "used"), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with warnings.catch_warnings():
        look(here)
        for name in ("new.jsonl", "backup"):
            shutil.rmtree(here.out / name, ignore_errors=True)
        write_by_commands(here)
    sys.stdout, sys.stderr = streams
    return place


def copied(place: Place, to: Path) -> Place:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    return Place(*(Path(shutil.copytree(each, to / each.name)) for each in place))


def given_to(place: Place, user: int) -> None:
    for each in (place.session, *place.session.rglob("*")):
        os.chown(each, user, user)
    for each in (place.out, *place.out.rglob("*")):
        os.chown(each, NOBODY, NOBODY)


def as_nobody(uses: Callable[[Place], None], place: Place) -> list[str]:
    """Use the session as another user, in this process, which is a child; return what is wrong with what was said."""
    warnings.simplefilter("ignore")
    sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    become_nobody(place)
    uses(place)
    lines = sys.stderr.getvalue().splitlines()
    return [line for line in lines if not line.startswith("gc3session: ") or "Traceback" in line]


def can_be_written(path: Path, owner: int) -> bool:
    """Return whether nobody may change anything in the session."""
    shift = 6 if owner == NOBODY else 0
    return any(
        os.lstat(each).st_mode >> shift & stat.S_IWOTH
        for each in (path, *path.rglob("*"))
        if not each.is_symlink()
    )


@pytest.mark.parametrize("owner", [0, NOBODY])
@pytest.mark.parametrize("uses", [look, write, write_by_commands])
def test_missing_rights_give_documented_errors_and_nothing_changes(
    whole: Place, memory: Path, uses: Callable[[Place], None], owner: int
) -> None:
    failures = []
    for name, change in RIGHTS.items():
        place = copied(whole, memory / "used")
        given_to(place, owner)
        change(place.session)
        before, outside = contents_of(place.session), contents_of(place.outside)
        changeable = uses is not look and can_be_written(place.session, owner)
        try:
            failures += [f"{name}: {line}" for line in in_child(as_nobody, uses, place)]
        except Exception as error:
            failures.append(f"{name}: {error!r}")
        if not changeable and contents_of(place.session) != before:
            failures.append(f"{name}: it has changed")
        if contents_of(place.outside) != outside:
            failures.append(f"{name}: it has changed outside")
    assert not failures, "\n".join(failures)


def become_nobody(place: Place) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    tempfile.tempdir = str(place.out)


def read_all(place: Place) -> str:
    """Return what an opening says that fails."""
    become_nobody(place)
    try:
        with Session(place.session, read_only=True) as session:
            assert [task.jobname for task in session] == [f"t{n}" for n in range(10)]
    except OpenError as error:
        return str(error)
    return ""


def check_all(place: Place) -> str:
    become_nobody(place)
    try:
        check = check_session(place.session)
        findings = list(check)
    except OpenError as error:
        return str(error)
    assert findings or check.tasks == 10
    return " ".join(finding.message for finding in findings)


def test_what_another_user_may_read_is_read_and_what_he_may_not_is_told(whole: Place, memory: Path) -> None:
    """Each of the rights that are missing for reading is named, with the file that it is missing for."""
    expected = {
        "the directory has 755": "",
        "nothing can be written": "",
        "no lock can be made": "",
        "session_ids.txt has 0": "",
        "created has 0": "",
        "jobs/lock.mdb has 0": "",
        "the directory has 700": "used/session",
        "the directory has 704": "used/session",
        "jobs has 0": "jobs",
        "jobs/data.mdb has 0": "data.mdb",
        "store.url has 0": "store.url",
    }

    failures = []
    for name, says in expected.items():
        place = copied(whole, memory / "used")
        given_to(place, 0)
        RIGHTS[name](place.session)
        for looks in (read_all, check_all):
            message = in_child(looks, place)
            if name == "session_ids.txt has 0" and looks is check_all:
                says = "session_ids.txt"  # which only a check reads
            if bool(message) != bool(says) or says not in message or (says and "ermission denied" not in message):
                failures.append(f"{name}, {looks.__name__}: {message!r}")
    assert not failures, "\n".join(failures)


@pytest.fixture
def umask() -> Iterator[int]:
    former = os.umask(0o027)
    yield 0o027
    os.umask(former)


def test_all_that_is_made_has_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    """Sessions, dumps, backups, compacted and repaired stores, what a repair moves to `damaged`."""
    place = Place(tmp_path / "session", tmp_path / "outside", tmp_path / "out")
    place.outside.mkdir()
    place.out.mkdir()
    with Session(place.session) as session:
        session.add_many(Task(jobname=f"t{n}") for n in range(1000))
        session.set_end_timestamp()
        session.set_start_timestamp(5.0)
        session.backup(place.out / "copy")
        session.compact()
        dump_session(session, place.out / "dump.jsonl.gz")
    assert run(["load", str(place.out / "loaded"), str(place.out / "dump.jsonl.gz")]) == 0
    assert run(["migrate", str(place.out / "loaded"), f"lmdb://{place.out}/store"]) == 0
    damaged_data(place)
    (place.session / "created").unlink()
    (place.session / "session_ids.txt").write_text("spoilt")
    assert repair_session(place.session).quarantined
    for path in tmp_path.rglob("*"):
        allowed = (0o777 if path.is_dir() else 0o666) & ~umask
        if path.name in ("lock.mdb", "writer.lock"):  # for those who may write the store
            allowed = (allowed & 0o222) * 3
        assert path.stat().st_mode & 0o7777 == allowed, path


def test_without_a_place_for_temporary_files_a_check_says_so_and_finds_no_damage(
    whole: Place, memory: Path
) -> None:
    place = copied(whole, memory / "used")
    given_to(place, 0)
    RIGHTS["no lock can be made"](place.session)

    def look_elsewhere() -> str:
        become_nobody(place)
        tempfile.tempdir = str(place.outside)
        sys.stderr = io.StringIO()
        with pytest.raises(WriteError, match="TMPDIR"):
            list(check_session(place.session))
        assert run(["check", str(place.session)]) == 1
        return sys.stderr.getvalue()

    message = in_child(look_elsewhere)
    assert message.startswith("gc3session: ")
    assert message.count("\n") == 1
