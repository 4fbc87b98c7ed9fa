"""Others may write in the directory: a file that becomes a symbolic link at any instant leads nobody out of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gc3session.system.filesystem as filesystem
import gc3session.tables.lmdb.copying as copying
import gc3session.tables.lmdb.environment as environment
import gc3session.tables.lmdb.opening as opening
from children import Child
from consistency import check
from gc3session import Error, Session, Task, make_store

NAMES = ("jobs/lock.mdb", "jobs/data.mdb", "jobs/writer.lock", "jobs")


def state_of(path: Path) -> dict[str, Any]:
    return {str(file): (file.lstat().st_mode, file.is_file() and file.read_bytes()) for file in path.rglob("*")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A session in which others may write, and beside it what they want to have overwritten."""
    for name in ("s", "outside/other"):
        with Session(tmp_path / name) as session:
            session.add_many(Task() for _ in range(5))
    (tmp_path / "outside" / "precious").write_bytes(b"precious" * 10_000)
    (tmp_path / "outside" / "empty").touch()
    (tmp_path / "outside" / "directory").mkdir()
    for directory in (tmp_path / "s", tmp_path / "s" / "jobs"):
        directory.chmod(0o777)
    return tmp_path / "s"


def exchange(path: Path, name: str, target: str) -> None:
    """Put a link to something outside in the place of a file or directory of the session."""
    file = path / name
    if not file.is_symlink():
        link = Path(f"{file}.link")
        link.symlink_to(path.parent / "outside" / target)
        file.rename(f"{file}.former")
        link.replace(file)  # which the library may have made meanwhile


def put_back(path: Path, name: str) -> None:
    file = path / name
    if file.is_symlink():
        file.unlink()
        Path(f"{file}.former").rename(file)


def targets(name: str) -> Iterator[str]:
    if name == "jobs":
        yield from ("other/jobs", "directory", "none")
    else:
        yield from ("precious", "empty", "none", f"other/{name}")


def use(path: Path, read_only: bool) -> None:
    with Session(path, read_only=read_only) as session:
        list(session)
        if not read_only:
            session.add(Task())


INSTANTS: dict[str, tuple[Any, str]] = {
    "before the check": (environment, "check_before_opening"),
    "after the check": (environment, "open_files"),
    "before LMDB": (opening.lmdb, "open"),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("instant", INSTANTS)
@pytest.mark.parametrize("name", NAMES)
def test_file_that_is_exchanged_between_look_and_open(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, instant: str, read_only: bool
) -> None:
    owner, function = INSTANTS[instant]
    original = getattr(owner, function)
    for target in targets(name):
        with Session(path) as session:
            tasks = len(session)
        before = state_of(path.parent / "outside")

        def exchanged(*args: Any, target: str = target, **options: Any) -> Any:
            exchange(path, name, target)
            return original(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, function, exchanged)
            try:
                use(path, read_only)
            except Error:
                added = 0
            else:
                added = int(not read_only)
        assert state_of(path.parent / "outside") == before, target
        put_back(path, name)
        assert len(check(path)) == tasks + added


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "writer.lock", ""])
def test_store_that_is_exchanged_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, outside = tmp_path / "s", tmp_path / "outside"
    with Session(outside / "other") as session:
        session.add(Task())
    before = state_of(outside)
    session = Session(path)
    path.chmod(0o777)
    opened = opening.lmdb.open

    def exchanged(*args: Any, **options: Any) -> Any:
        [made] = path.glob("jobs.*.tmp")
        place = made / name if name else made
        place.rename(f"{place}.former")
        place.symlink_to(outside / "other" / "jobs" / name)
        return opened(*args, **options)

    former = os.umask(0)
    try:
        monkeypatch.setattr(opening.lmdb, "open", exchanged)
        with pytest.raises(Error):
            session.add(Task())
    finally:
        os.umask(former)
    assert state_of(outside) == before


@pytest.mark.parametrize("name", ["jobs/data.mdb", "jobs/compacted.tmp", "jobs/compacted.tmp/data.mdb"])
def test_store_that_is_exchanged_while_it_is_compacted(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outside = path.parent / "outside"
    before = state_of(outside)
    opened = copying.lmdb.open

    def exchanged(*args: Any, **options: Any) -> Any:
        if (path / name).exists():
            exchange(path, name, "other/jobs" if name.endswith("tmp") else "other/jobs/data.mdb")
        return opened(*args, **options)

    with Session(path) as session:
        ids = list(session.ids())
        len(session)
        with monkeypatch.context() as patch:
            patch.setattr(copying.lmdb, "open", exchanged)
            with contextlib.suppress(Error):
                session.compact()
    assert state_of(outside) == before
    put_back(path, name)
    assert check(path) == ids


def attack(path: Path, stop: Path) -> None:
    while not stop.exists():
        for name in NAMES:
            for target in targets(name):
                exchange(path, name, target)
                put_back(path, name)


def test_attack_without_end_changes_nothing_outside(path: Path, tmp_path: Path, long_form: bool) -> None:
    before = state_of(tmp_path / "outside")
    attacker = Child(attack, path, tmp_path / "stop")
    opened = 0
    try:
        for _ in range(2000 if long_form else 100):
            with contextlib.suppress(Error):
                use(path, read_only=False)
                opened += 1
    finally:
        (tmp_path / "stop").touch()
    attacker.result()
    assert state_of(tmp_path / "outside") == before
    Session(path).close()  # an add that found its file gone after the commit has left the mirror as it was
    assert len(check(path)) >= 5 + opened


def change_link(link: Path, stop: Path) -> None:
    while not stop.exists():
        link.symlink_to("place")
        link.unlink()


def test_a_link_that_comes_and_goes_is_followed_or_not(tmp_path: Path) -> None:
    changer = Child(change_link, tmp_path / "link", tmp_path / "stop")
    try:
        found = {filesystem.real_path(str(tmp_path / "link")) for _ in range(20_000)}
    finally:
        (tmp_path / "stop").touch()
    changer.result()
    assert found <= {str(tmp_path / "link"), str(tmp_path / "place")}


@pytest.mark.parametrize("others_may_write", [False, True])
def test_without_proc_only_a_directory_of_one_s_own_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch, others_may_write: bool
) -> None:
    monkeypatch.setattr(filesystem, "DESCRIPTORS", "/nowhere")
    if not others_may_write:
        for directory in (path, path / "jobs"):
            directory.chmod(0o755)
        use(path, read_only=False)
        assert len(check(path)) == 6
        return
    with pytest.raises(Error, match=r"others may write.*/proc"):
        use(path, read_only=False)


def test_without_a_private_directory_none_in_which_others_may_write_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No usable temporary directory")

    with monkeypatch.context() as patch:
        patch.setattr(opening.tempfile, "TemporaryDirectory", fails)
        with pytest.raises(Error, match=r"others may write.*TMPDIR"):
            use(path, read_only=False)
        for directory in (path, path / "jobs"):
            directory.chmod(0o755)
        use(path, read_only=False)
    assert len(check(path)) == 6


def test_store_that_is_a_symbolic_link_is_not_opened(tmp_path: Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task())
    (tmp_path / "link").symlink_to("s/jobs")
    before = state_of(tmp_path / "s")
    with pytest.raises(Error, match="symbolic link"):
        use_store(tmp_path / "link")
    assert state_of(tmp_path / "s") == before


def use_store(path: Path) -> None:
    with make_store(path) as store:
        store.save(Task())
