"""Damage, hostile files and full disks: a clear error, the process lives, nothing that had returned is lost."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

import gc3session
from children import HERE, in_child, run_python
from consistency import check, read_mirror
from examples import Simulation
from gc3session import (
    CorruptStore,
    DamagedSession,
    Error,
    MirrorWarning,
    NetworkFilesystemError,
    OpenError,
    ReadOnlyError,
    Session,
    StoreFull,
    Task,
    UnknownFormat,
)
from gc3session.system.filesystem import filesystem_of
from raw_tables import Raw

MakeSession = Callable[..., Session]


@pytest.fixture
def closed(tmp_path: Path) -> tuple[Path, list[str]]:
    """The path of a closed session of 301 tasks, and their IDs."""
    with Session(tmp_path / "closed") as session:
        ids = list(session.add_many(Simulation(mesh=f"m{i}" * 20) for i in range(300)))
        for id_ in ids[::7]:
            task = session.load(id_)
            task.state = "RUNNING"
        session.save_all()
        ids.append(session.add(Simulation(mesh="last")))
    return tmp_path / "closed", ids


def use(path: Path, read_only: bool = False) -> str:
    """Use a session in every way; return the name of the error, if there is one that says where it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        try:
            with Session(path, read_only=read_only) as session:
                list(session.tasks)
                session.stats()
                for id_ in session.list_ids():
                    try:
                        session.load(id_)
                    except Error:
                        continue
                list(session.store.list())
                if not read_only:
                    session.add(Task())
        except Error as error:
            return type(error).__name__ if str(path) in str(error) else f"an error of nowhere: {error}"
    return ""


def use_tasks(path: Path, **options: Any) -> None:
    """Open a session, look at its tasks, and add one."""
    with Session(path, **options) as session:
        list(session)
        if not options.get("read_only"):
            session.add(Task())


def data_of(path: Path) -> Path:
    return path / "jobs" / "data.mdb"


# -- the data file ------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data.unlink(), "missing"),
        (lambda data: data.write_bytes(b""), "empty"),
        (lambda data: data.write_bytes(b"garbage"), "too short"),
        (lambda data: data.write_bytes(random.Random(1).randbytes(100_000)), "not an LMDB"),
        (lambda data: data.write_bytes(bytes(100_000)), "not an LMDB"),
        (lambda data: data.write_text("SQLite format 3\0" * 5000), "not an LMDB"),
        (lambda data: shutil.rmtree(data.parent) or data.parent.mkdir(), "missing"),
        (lambda data: shutil.rmtree(data.parent) or data.parent.write_text("a file"), ""),
    ],
    ids=["missing", "empty", "short", "random", "zeros", "other format", "empty directory", "file for directory"],
)
def test_data_file_that_is_none_gives_a_clear_error(
    closed: tuple[Path, list[str]], damage: Callable[[Path], Any], says: str, read_only: bool
) -> None:
    path, _ = closed
    damage(data_of(path))

    def attempt() -> str:
        with pytest.raises(OpenError, match=says) as caught, Session(path, read_only=read_only) as session:
            list(session)
        assert str(path) in str(caught.value)
        return type(caught.value).__name__

    assert in_child(attempt) in ("CorruptStore", "DamagedSession")


def test_missing_store_of_a_session_with_tasks_is_never_silently_made_anew(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    shutil.rmtree(path / "jobs")
    for _ in range(2):
        with pytest.raises((DamagedSession, CorruptStore)), Session(path) as session:
            session.add(Task())
    assert read_mirror(path) == ids
    assert not (path / "jobs").exists()


def test_file_truncated_at_any_length_gives_an_error_or_opens_whole_and_the_process_lives(
    closed: tuple[Path, list[str]], long_form: bool
) -> None:
    path, _ = closed
    data = data_of(path)
    whole = data.read_bytes()
    chance = random.Random(0)
    lengths = {
        *range(0, len(whole), 4096),
        *(chance.randrange(len(whole)) for _ in range(500 if long_form else 40)),
        len(whole) - 1,
    }
    ends = set()
    for length in sorted(lengths):
        data.write_bytes(whole[:length])
        ends.add(in_child(use, path, chance.random() < 0.5))
    assert ends <= {"", "CorruptStore", "DamagedSession", "CorruptRecord"}
    assert "CorruptStore" in ends


def test_file_with_damaged_pages_does_not_end_the_process_when_it_is_short(closed: tuple[Path, list[str]]) -> None:
    path, _ = closed
    data = data_of(path)
    whole = data.read_bytes()
    chance = random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole[: chance.randrange(8192, len(whole))])
        for _ in range(3):
            place = chance.randrange(len(damaged))
            damaged[place] ^= 1 << chance.randrange(8)
        data.write_bytes(damaged)
        in_child(use, path)


def test_damaged_meta_page_gives_an_error_or_the_other_one_is_used(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    data = data_of(path)
    whole = data.read_bytes()
    failures = {}
    for place in (*range(0, 152, 2), *range(4096, 4096 + 152, 2)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        data.write_bytes(damaged)
        try:
            end = in_child(use, path)
        except Exception as error:
            end = repr(error)
        if end not in ("", "CorruptStore", "UnknownFormat", "DamagedSession"):
            failures[place] = end
    assert failures == {}
    data.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)  # `use` has added tasks, whose data file is gone now
        Session(path).close()
    assert check(path)[: len(ids)] == ids


@pytest.mark.parametrize("version", [msgpack.packb(999), msgpack.packb("x"), b"999", b"", b"\xc1"], ids=repr)
def test_store_of_an_unknown_version_is_refused(closed: tuple[Path, list[str]], version: bytes) -> None:
    path, _ = closed
    with Raw(path) as raw:
        raw.put("meta", b"format", version)
    for read_only in (False, True):
        with pytest.raises(UnknownFormat) as caught, Session(path, read_only=read_only) as session:
            len(session)
        assert str(path) in str(caught.value)


def test_lmdb_environment_of_another_program_is_refused(tmp_path: Path) -> None:
    import lmdb

    (tmp_path / "store").mkdir()
    with (
        lmdb.open(os.fspath(tmp_path / "store"), map_size=1 << 24, lib_version=0) as env,
        env.begin(write=True) as transaction,
    ):
        transaction.put(b"key", b"value")
    before = (tmp_path / "store" / "data.mdb").read_bytes()
    with pytest.raises(OpenError):
        use_tasks(tmp_path / "session", store_or_url=str(tmp_path / "store"))
    assert (tmp_path / "store" / "data.mdb").read_bytes() == before


# -- hostile directories ------------------------------------------------------


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "FIFO", "directory"])
def test_what_is_no_regular_file_is_never_opened(
    closed: tuple[Path, list[str]], tmp_path: Path, name: str, kind: str
) -> None:
    path, _ = closed
    file, target = path / "jobs" / name, tmp_path / "target"
    file.rename(target)
    if kind == "link":
        file.symlink_to(target)
    elif kind == "dangling link":
        file.symlink_to(tmp_path / "nothing")
    elif kind == "FIFO":
        os.mkfifo(file)
    else:
        file.mkdir()
    before = target.read_bytes()

    def attempt() -> str:
        signal.alarm(60)  # a FIFO may hang
        return use(path)

    assert in_child(attempt) == "CorruptStore"
    assert target.read_bytes() == before
    assert not (tmp_path / "nothing").exists()


def test_links_in_the_session_directory_are_not_written_through(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        session.add(Task())
    precious = tmp_path / "precious"
    for name in ("session_ids.txt", "finished", "created"):
        precious.write_text("precious\n")
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(precious)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MirrorWarning)
            try:
                with Session(path) as session:
                    session.add(Task())
                    session.set_end_timestamp()
            except Error:
                pass
        assert precious.read_text() == "precious\n", name
        (path / name).unlink(missing_ok=True)
        (path / name).touch()


# -- the other files ----------------------------------------------------------


@pytest.mark.parametrize(
    "contents", [None, b"", b"garbage", b"\xff\xfe\0", b"nosuchscheme://x\n", b"lmdb://\n", b"\n\n"], ids=repr
)
def test_store_url_that_is_missing_or_garbage_gives_a_clear_error(
    closed: tuple[Path, list[str]], contents: bytes | None
) -> None:
    path, ids = closed
    file = path / "store.url"
    good = file.read_bytes()
    file.unlink()
    if contents is not None:
        file.write_bytes(contents)
    before = data_of(path).read_bytes()
    for options in ({}, {"create": False}, {"read_only": True}):
        with pytest.raises(Error, match=r"store\.url"):
            Session(path, **options)
    assert file.exists() == (contents is not None)
    assert data_of(path).read_bytes() == before
    file.write_bytes(good)
    assert check(path) == ids


def test_missing_created_file_does_not_hinder(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    (path / "created").unlink()
    with Session(path) as session:
        assert list(session.tasks) == ids
        assert session.created is None or session.created > 0


EDITS: dict[str, Callable[[list[bytes]], bytes]] = {
    "emptied": lambda lines: b"",
    "cut in the middle": lambda lines: b"".join(lines)[:1000],
    "line removed": lambda lines: b"".join(lines[:10] + lines[11:]),
    "line added": lambda lines: b"".join([*lines, b"Task.99999\n"]),
    "line in the middle added": lambda lines: b"".join([*lines[:5], b"Task.99999\n", *lines[5:]]),
    "last line changed": lambda lines: b"".join([*lines[:-1], b"Simulation.9\n"]),
    "bytes that are no text": lambda lines: b"\xff\0\xfe" * 100,
    "blank lines added": lambda lines: b"\n\n" + b"\n".join(lines),
    "Windows newlines": lambda lines: b"".join(lines).replace(b"\n", b"\r\n"),
    "very long": lambda lines: b"".join(lines) * 50,
}
CUTS: dict[str, Callable[[list[bytes]], bytes]] = {
    "last line removed": lambda lines: b"".join(lines[:-1]),
    "last line cut": lambda lines: b"".join(lines)[:-3],
    "newline at the end cut": lambda lines: b"".join(lines)[:-1],
}
"""What a writer that was killed may leave, too: no warning is needed."""


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_cut_mirror_is_repaired_at_the_next_opening(
    closed: tuple[Path, list[str]], cut: Callable[[list[bytes]], bytes]
) -> None:
    path, ids = closed
    mirror = path / "session_ids.txt"
    good = mirror.read_bytes()
    mirror.write_bytes(cut(good.splitlines(keepends=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        Session(path).close()
    assert mirror.read_bytes() == good
    assert check(path) == ids


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_mirror_is_reported_and_repaired_at_the_next_opening(
    closed: tuple[Path, list[str]], edit: Callable[[list[bytes]], bytes]
) -> None:
    path, ids = closed
    mirror = path / "session_ids.txt"
    good = mirror.read_bytes()
    mirror.write_bytes(edit(good.splitlines(keepends=True)))
    with pytest.warns(MirrorWarning, match="session_ids"):
        Session(path).close()
    assert mirror.read_bytes() == good
    assert check(path) == ids
    with warnings.catch_warnings():
        warnings.simplefilter("error", MirrorWarning)
        Session(path).close()


def test_deleted_mirror_is_made_again(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    (path / "session_ids.txt").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        Session(path).close()
    assert check(path) == ids


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edit_under_an_open_session_is_repaired_at_the_next_write(
    closed: tuple[Path, list[str]], edit: Callable[[list[bytes]], bytes]
) -> None:
    path, ids = closed
    mirror = path / "session_ids.txt"
    with Session(path) as session:
        first = session.add(Task())
        mirror.write_bytes(edit(mirror.read_bytes().splitlines(keepends=True)))
        with pytest.warns(MirrorWarning):
            second = session.add(Task())
        assert read_mirror(path) == [*ids, first, second]
    check(path)


def test_mirror_that_is_a_directory_gives_a_clear_error_or_a_warning(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    (path / "session_ids.txt").unlink()
    (path / "session_ids.txt").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        try:
            with Session(path) as session:
                assert list(session.tasks) == ids
        except Error as error:
            assert "session_ids.txt" in str(error)  # noqa: PT017


def test_mirror_restored_from_a_backup_of_the_whole_session_is_no_edit(
    closed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, ids = closed
    shutil.copytree(path, tmp_path / "backup")
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "backup", path)
    with Session(path) as session:
        session.add(Task())
        assert list(session.tasks)[:-1] == ids
    check(path)


# -- no room ------------------------------------------------------------------


class Limit:
    """A limit to the size of files in this process: what a full disk looks like to it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("flush", [True, False], ids=["durable", "in batches"])
@pytest.mark.parametrize("size", [1, 5000, 40_000, 200_000, 1_000_000])
def test_full_disk_loses_nothing_that_had_returned_and_the_batch_can_be_flushed_later(
    tmp_path: Path, size: int, flush: bool
) -> None:
    path = tmp_path / "session"

    def fill() -> tuple[list[str], list[str]]:
        session = Session(path)
        returned: list[str] = []
        batch: list[str] = []
        with Limit(size):
            while True:
                try:
                    batch.append(session.add(Simulation(mesh="x" * 900), flush=flush))
                    if not flush and len(batch) % 40 == 0:
                        session.flush()
                except StoreFull:
                    break
                if flush or len(batch) % 40 == 0:
                    returned += batch
                    batch = []
                assert len(returned) < 20_000, "the limit was never felt"
            with pytest.raises(StoreFull):  # it is still full
                session.add(Simulation(mesh="x" * 2000 * 1000))
                session.flush()
            assert set(returned) <= session.list_ids()
        with Session(path, read_only=True) as other:
            assert other.list_ids() == set(returned)
        session.flush()
        assert {*returned, *batch} <= session.list_ids()
        last = session.add(Task())
        session.close()
        return returned, [*batch, last]

    returned, later = in_child(fill)
    with Session(path) as session:
        ids = check(path)
        assert set(returned) | set(later) <= set(ids)
        assert all(session.load(id_).mesh == "x" * 900 for id_ in returned)


def test_object_of_a_failed_durable_call_can_be_added_again(tmp_path: Path) -> None:
    path = tmp_path / "session"

    def fill() -> tuple[str, int]:
        session = Session(path)
        session.add(Task())
        task = Simulation(mesh="x" * 500_000)
        with Limit(data_of(path).stat().st_size), pytest.raises(StoreFull):
            session.add(task)
        id_ = session.add(task)
        session.close()
        return id_, len(session.path)

    id_, _ = in_child(fill)
    ids = check(path)
    assert id_ in ids
    assert len(ids) == 2


def test_full_disk_in_a_transaction_leaves_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "session"

    def fill() -> None:
        with Session(path) as session:
            first = session.add(Task())
            large = Simulation(mesh="x" * 1_000_000)
            with Limit(300_000), pytest.raises(StoreFull), session.transaction():
                session.add(Task())
                session.add(large)
            assert list(session.tasks) == [first]
            assert large.persistent_id is None
            session.add(large)

    in_child(fill)
    assert len(check(path)) == 2


def test_full_disk_while_the_session_is_made_leaves_one_that_can_be_made_later(tmp_path: Path) -> None:
    path = tmp_path / "session"

    def fill() -> None:
        with Limit(0), pytest.raises((Error, OSError)):
            Session(path)

    in_child(fill)
    with Session(path) as session:
        session.add(Task())
    check(path)


def test_full_disk_under_the_mirror_alone_is_mended(tmp_path: Path) -> None:
    # The mirror grows past the limit before the data file does: `data.mdb` has had its room.
    path = tmp_path / "session"
    with Session(path) as session:
        ids = list(session.add_many(Task() for _ in range(3000)))
        session.remove_many(ids[:2900])
    size = (path / "session_ids.txt").stat().st_size

    def fill() -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MirrorWarning)
            session = Session(path)
            added = []
            with Limit(max(size, 1000)):
                for _ in range(400):
                    try:
                        added.append(session.add(Task()))
                    except Error:
                        break
            session.close()
        return added

    added = in_child(fill)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        Session(path).close()
    assert {*ids[2900:], *added} <= set(check(path))


def test_limited_address_space_is_enough(tmp_path: Path) -> None:
    script = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_AS, (4_000_000 * 1024, 4_000_000 * 1024))
        from gc3session import Session, Task
        with Session(sys.argv[1]) as session:
            session.add_many(Task(extra={"bytes": bytes(100_000)}) for _ in range(300))
            session.add(Task())
        with Session(sys.argv[1]) as session:
            assert len(list(session)) == len(session) == 301
        print("fine")
    """
    assert run_python(script, tmp_path / "session") == "fine"
    assert (
        run_python(script.replace("range(300)", "range(0)").replace("301", "302"), tmp_path / "session") == "fine"
    )
    check(tmp_path / "session")


def test_address_space_that_is_too_small_gives_a_clear_error(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    script = """
        import resource, sys
        from gc3session import Session, Task, StoreFull
        session = Session(sys.argv[1])
        session.add(Task())
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000, size + 50_000_000))
        import os
        os.chdir("/")
        try:
            for _ in range(100):
                session.add(Task(extra={"bytes": bytes(100_000)}))
            print("fine")
        except StoreFull as error:
            print("full", len(str(error)) > 0)
    """
    assert run_python(script, path).split()[0] in ("fine", "full")
    assert check(path)[: len(ids)] == ids


def test_limited_address_space_opens_what_was_made_without_limit(closed: tuple[Path, list[str]]) -> None:
    path, ids = closed
    script = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_AS, (4_000_000 * 1024, 4_000_000 * 1024))
        from gc3session import Session, Task
        with Session(sys.argv[1]) as session:
            print(len(list(session)), session.add(Task()))
    """
    assert run_python(script, path).split()[0] == str(len(ids))
    check(path)


# -- rights -------------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that a user without rights can reach."""
    directory = Path(tempfile.mkdtemp(prefix="gc3session-test-"))
    directory.chmod(0o755)
    yield directory
    subprocess.run(["chmod", "-R", "u+rwX", directory], check=True)  # only root can do without
    shutil.rmtree(directory)


def as_nobody(function: Callable[[], Any]) -> Any:
    """Run *function* in a child process without rights."""

    def run() -> Any:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return function()

    return in_child(run)


def forbid_writing(path: Path) -> None:
    for each in (*path.rglob("*"), path):
        each.chmod(each.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


@pytest.mark.parametrize("with_lock", [True, False])
def test_session_without_rights_to_write_is_read_and_refuses_to_write(reachable: Path, with_lock: bool) -> None:
    path = reachable / "session"
    with Session(path) as session:
        id_ = session.add(Simulation(mesh="m"))
    if not with_lock:
        (path / "jobs" / "lock.mdb").unlink()
    forbid_writing(path)

    def read() -> tuple[list[str], str]:
        with Session(path, read_only=True) as session:
            return list(session.tasks), session.load(id_).mesh

    def write() -> None:
        with Session(path) as session:
            session.add(Task())

    files = sorted(os.listdir(path / "jobs"))
    assert as_nobody(read) == ([id_], "m")
    with pytest.raises(ReadOnlyError) as caught:
        as_nobody(write)
    assert str(path) in str(caught.value)
    assert "read_only" in str(caught.value)
    assert sorted(os.listdir(path / "jobs")) == files
    assert check(path) == [id_]


def test_session_in_a_directory_without_rights_can_not_be_made(reachable: Path) -> None:
    forbid_writing(reachable)
    with pytest.raises(Error) as caught:
        as_nobody(lambda: Session(reachable / "session"))
    assert str(reachable) in str(caught.value)
    assert os.listdir(reachable) == []


def test_session_that_may_not_even_be_read_gives_a_clear_error(reachable: Path) -> None:
    path = reachable / "session"
    with Session(path) as session:
        session.add(Task())
    for closed in (path / "jobs" / "data.mdb", path / "jobs", path / "store.url", path):
        closed.chmod(0)
        for read_only in (True, False):
            with pytest.raises(Error) as caught:
                as_nobody(lambda read_only=read_only: len(Session(path, read_only=read_only)))
            assert str(path) in str(caught.value)


def test_mirror_without_rights_does_not_lose_a_task(reachable: Path) -> None:
    path = reachable / "session"

    def work() -> list[str]:
        with Session(path) as session:
            first = session.add(Task())
        (path / "session_ids.txt").chmod(0o444)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MirrorWarning)
            with Session(path) as session:
                return [first, session.add(Task())]

    reachable.chmod(0o777)
    try:
        ids = as_nobody(work)
    except Error as error:
        assert "session_ids.txt" in str(error)  # noqa: PT017
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        Session(path).close()
    assert check(path) == ids


# -- filesystems --------------------------------------------------------------


def mountinfo(tmp_path: Path, *mounts: tuple[str, str]) -> str:
    """Return the path of a file in the format of proc(5) with these mounts (place, type)."""
    lines = [
        f"{36 + i} 35 98:{i} / {place} rw,noatime shared:1 - {kind} /dev/root rw"
        for i, (place, kind) in enumerate(mounts)
    ]
    file = tmp_path / "mountinfo"
    file.write_text("\n".join(lines) + "\n")
    return os.fspath(file)


def test_filesystem_is_that_of_the_longest_prefix(tmp_path: Path) -> None:
    info = mountinfo(
        tmp_path, ("/", "ext4"), ("/home", "nfs4"), ("/home/local", "xfs"), ("/with\\040space", "lustre"), ("/a", "ext4"),
        ("/a", "nfs"),
    )  # fmt: skip
    for path, kind in {
        "/": "ext4", "/homes/x": "ext4", "/home": "nfs4", "/home/user/session": "nfs4", "/home/local/x": "xfs",
        "/home/localx": "nfs4", "/with space/x": "lustre", "/a/b": "nfs",
    }.items():  # fmt: skip
        assert filesystem_of(path, info) == kind, path


def test_filesystem_of_a_link_is_that_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    info = mountinfo(tmp_path, ("/", "ext4"), (os.fspath(tmp_path / "far"), "nfs"))
    assert filesystem_of(os.fspath(tmp_path / "link" / "session"), info) == "nfs"


NETWORK_SCRIPT = """
    import sys
    import gc3session.system.filesystem
    path, info, allow = sys.argv[1:]
    gc3session.system.filesystem._MOUNTINFO = info
    gc3session.system.filesystem.filesystem_of.__defaults__ = (info,)
    from gc3session import NetworkFilesystemError, Session, Task
    try:
        with Session(path, allow_network_filesystem=bool(allow)) as session:
            print(session.add(Task()))
    except NetworkFilesystemError as error:
        print(error)
"""


def test_network_filesystem_is_refused_with_the_way_out_and_can_be_overridden(tmp_path: Path) -> None:
    info = mountinfo(tmp_path, ("/", "ext4"), (os.fspath(tmp_path), "nfs4"))
    message = run_python(NETWORK_SCRIPT, tmp_path / "session", info, "")
    for part in ("nfs4", os.fspath(tmp_path / "session"), "allow_network_filesystem=True", "store_or_url"):
        assert part in message
    assert not (tmp_path / "session").exists()
    assert run_python(NETWORK_SCRIPT, tmp_path / "session", info, "yes") == "Task.1"
    assert issubclass(NetworkFilesystemError, OpenError)


def test_session_on_a_network_filesystem_may_have_its_store_on_a_local_one(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    info = mountinfo(tmp_path, ("/", "ext4"), (os.fspath(tmp_path / "far"), "nfs4"))
    script = NETWORK_SCRIPT.replace("allow_network_filesystem=bool(allow)", "store_or_url=allow")
    assert run_python(script, tmp_path / "far" / "session", info, f"lmdb://{tmp_path}/near") == "Task.1"


def test_suites_run_on_the_library_beside_them() -> None:
    assert Path(gc3session.__file__).parent.parent == HERE.parent or "site-packages" in gc3session.__file__
