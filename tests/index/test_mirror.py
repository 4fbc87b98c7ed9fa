"""A mirror that is not as the index says is found and mended, whatever of it is wrong."""

from __future__ import annotations

import errno
import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import gc3session.index.mirror
from children import Died, in_child
from consistency import check, read_mirror
from gc3session import Error, MirrorWarning, Session, Task, check_session, repair_session
from gc3session.index.entries import MirrorNote, Row
from gc3session.tables import Writer
from mounts import bound

MakeSession = Callable[..., Session]


def write_with_its_time(mirror: Path, contents: bytes) -> None:
    """Change a mirror so that its time does not tell."""
    time = mirror.stat().st_mtime_ns
    mirror.write_bytes(contents)
    os.utime(mirror, ns=(time, time))


def test_mirror_of_another_size_is_mended_though_its_time_is_right(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = [session.add(Task()) for _ in range(5)]
    mirror = Path(session.path, "session_ids.txt")
    write_with_its_time(mirror, mirror.read_bytes()[:-7])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        session = make_session()
    assert read_mirror(session.path) == ids


def test_mirror_of_a_session_stays_while_others_only_change_its_tasks(tmp_path: Path) -> None:
    # Writing it anew takes longer the more lines it has: whoever adds next would wait for that.
    with Session(tmp_path / "one") as one, Session(tmp_path / "other", store_or_url=one.store_url) as other:
        id_ = one.add(Task())
        other.load(id_, add=True)
        mirror = Path(other.path, "session_ids.txt")
        before = mirror.stat()
        task = one[id_]
        task.state = "RUNNING"
        one.save(task)
        ids = [id_, other.add(Task())]
        assert mirror.stat().st_ino == before.st_ino
        assert read_mirror(other.path) == ids
        one.remove(id_)
        ids = [ids[1], other.add(Task())]
        assert mirror.stat().st_ino != before.st_ino
        assert read_mirror(other.path) == ids


def test_mirror_of_another_boot_is_mended_without_a_warning(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not flushed: after a power cut blocks may be lost, with size and time as they were.
    with make_session() as session:
        ids = [session.add(Task()) for _ in range(5)]
    mirror = Path(session.path, "session_ids.txt")
    write_with_its_time(mirror, bytes(mirror.stat().st_size))
    monkeypatch.setattr(gc3session.index.mirror, "_boot_id", lambda: "another boot")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = make_session()
    assert read_mirror(session.path) == ids
    monkeypatch.undo()
    session.close()
    make_session().close()
    assert check(session.path) == ids


def test_edited_mirror_is_mended_by_a_flush_of_nothing(session: Session) -> None:
    ids = [session.add(Task()) for _ in range(2)]
    mirror = Path(session.path, "session_ids.txt")
    mirror.write_text("Task.99\n")
    with pytest.warns(MirrorWarning):
        session.flush()
    assert read_mirror(session.path) == ids


def test_mirror_on_a_filesystem_with_coarse_times_is_appended_to(session: Session) -> None:
    session.add(Task())
    mirror = Path(session.path, "session_ids.txt")
    inode = mirror.stat().st_ino
    for unit in (1000, 10**9):
        time = mirror.stat().st_mtime_ns
        os.utime(mirror, ns=(time, time - time % unit))
        session.add(Task())
        assert mirror.stat().st_ino == inode, "it was written anew"


def be_killed_before_the_mirror_is_written(path: Path) -> None:
    gc3session.index.mirror.Mirror.write = lambda mirror: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    with Session(path) as session:  # which mends the mirror, if it is stale
        session.add(Task())


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_mirror_that_one_killed_process_after_another_has_left_stale_is_mended_without_a_word(
    tmp_path: Path, kills: int
) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        session.add(Task())
    for _ in range(kills):
        with pytest.raises(Died):
            in_child(be_killed_before_the_mirror_is_written, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MirrorWarning)
        with Session(path) as session:
            assert read_mirror(path) == list(session.tasks)
    # Each mends what the one before has left, and is killed as it does so or, if nothing is left, as it adds a task.
    assert len(check(path)) == 1 + (kills + 1) // 2


def add_without_descriptors(path: Path) -> list[str]:
    with Session(path) as session:
        session.add(Task())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                session.add(Task())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [each.category for each in warned] == [MirrorWarning]
        session.flush()
        assert len(session) == 2
        return read_mirror(path)


def test_add_where_no_file_can_be_opened_any_more_is_done_and_the_next_flush_mends_the_mirror(
    tmp_path: Path,
) -> None:
    path = tmp_path / "session"
    found = in_child(add_without_descriptors, path)
    assert found == check(path)


def test_session_whose_files_can_not_be_opened_raises_an_error_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task())
    real, tries = os.open, 0
    for failing in range(1, 100):
        calls = 0

        def open_(path: str, *args: int, failing: int = failing, **options: int) -> int:
            nonlocal calls
            if os.fspath(path).startswith(str(tmp_path)):
                calls += 1
                if calls == failing:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return real(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", open_)
            try:
                Session(tmp_path / "s").close()
            except Error:
                tries += 1
        if calls < failing:
            break
    assert tries > 1
    assert check(tmp_path / "s") == ["Task.1"]


@pytest.mark.parametrize("begin", [0, 1 << 39])
@pytest.mark.parametrize("way", ["open", "repair", "backup"])
def test_blank_lines_that_a_row_makes_up_do_not_fill_the_disk(tmp_path: Path, way: str, begin: int) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        session.add_many(Task() for _ in range(3))
        size, store = os.path.getsize(path / "session_ids.txt"), session.store

        def unit(writer: Writer) -> None:
            row = Row.read(writer, session._index.identity)
            assert row is not None
            blank = (1 << 40) - size
            note = MirrorNote(*row.mirror)._replace(size=1 << 40, blank=blank, begin=begin)
            row._replace(mirror=note).write(writer, session._index.identity)

        store.tables.write(unit)
        session._closed = True
        store.discard()
    if way == "open":
        Session(path).close()
    elif way == "repair":
        repair_session(path)
    else:
        with Session(path, read_only=True) as reading:
            reading.backup(tmp_path / "copy")
        path = tmp_path / "copy"
    assert os.path.getsize(path / "session_ids.txt") == size
    assert list(check_session(path)) == []


def test_mirror_of_another_mount_is_mended_without_a_warning(tmp_path: Path) -> None:
    # As after a disk has gone away, with what wasn't flushed, and come back without a boot.
    disk, place = tmp_path / "disk", tmp_path / "place"
    disk.mkdir()
    place.mkdir()
    path = place / "s"
    for length in (1, 2):
        with bound(disk, place):
            with Session(path) as session:
                session.add(Task())
                assert read_mirror(path) == list(session.ids())
                assert len(session) == length
            inode = (path / "session_ids.txt").stat().st_ino
            Session(path).close()
            assert (path / "session_ids.txt").stat().st_ino == inode, "it was mended on the same mount"
        mirror = disk / "s" / "session_ids.txt"
        write_with_its_time(mirror, bytes(mirror.stat().st_size))
    with bound(disk, place), warnings.catch_warnings():
        warnings.simplefilter("error")
        Session(path).close()
        assert len(check(path)) == 2
