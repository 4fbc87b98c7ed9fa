"""A session whose files were moved, destroyed, replaced or made anew while it is open acknowledges nothing more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gc3session.session.session as module
from children import in_child, run_python
from consistency import check, read_mirror
from gc3session import ClosedError, Session, Task, TemporarySession, WriteError, make_store
from gc3session.index.index_writer import IndexWriter
from gc3session.store.store import Store

SAYS = "moved, destroyed or made anew"

Change = Callable[[Path], None]


def copied(path: Path) -> Path:
    return Path(shutil.copytree(path, path.parent / "copied"))


def replace_by_copy(name: str) -> Change:
    """Put a copy of a file or directory in its place by renaming, as a restoration from a backup does."""

    def change(path: Path) -> None:
        copy = copied(path) / name
        if copy.is_dir():
            (path / name).rename(path.parent / "former")
        copy.rename(path / name)

    return change


def delete(name: str) -> Change:
    return lambda path: (path / name).unlink()


def remade(path: Path) -> None:
    shutil.rmtree(path)
    Session(path).close()


def remade_by_another(path: Path) -> None:
    script = """
        import sys
        from gc3session import Session, Task
        Session(sys.argv[1]).destroy()
        with Session(sys.argv[1]) as session:
            session.add_many(Task(jobname="x") for _ in range(5))
    """
    run_python(script, path)


def moved_and_remade(path: Path) -> None:
    path.rename(path.parent / "moved")
    with Session(path) as session:
        session.add(Task())


def restored_over(path: Path) -> None:
    copy = copied(path)
    shutil.rmtree(path)
    copy.rename(path)


def made_anew(path: Path) -> None:
    Session(path, load=False).close()


DIRECTORY: dict[str, Change] = {
    "removed": shutil.rmtree,
    "removed and made again": remade,
    "destroyed and made again by another": remade_by_another,
    "moved": lambda path: path.rename(path.parent / "moved"),
    "moved and made again": moved_and_remade,
    "restored from a copy": restored_over,
    "made anew": made_anew,
    "store.url replaced": replace_by_copy("store.url"),
    "store.url deleted": delete("store.url"),
}
"""What can be done to a session that has no store yet."""

STORE: dict[str, Change] = {
    **DIRECTORY,
    **{f"{name} deleted": delete(f"jobs/{name}") for name in ("data.mdb", "lock.mdb", "writer.lock")},
    **{f"{name} replaced": replace_by_copy(f"jobs/{name}") for name in ("data.mdb", "lock.mdb", "writer.lock")},
    "jobs replaced": replace_by_copy("jobs"),
    "jobs moved": lambda path: (path / "jobs").rename(path / "former"),
    "jobs removed": lambda path: shutil.rmtree(path / "jobs"),
}


def files_of(path: Path, *, other_store: bool = False) -> dict[str, Any]:
    """Return all files but those that are only locked, with what is in them."""
    files: dict[str, Any] = {}
    for file in path.parent.rglob("*"):
        if other_store and file.name == "data.mdb":  # it may have got the schema of a task, but no task
            with make_store(file.parent, read_only=True) as store:
                files[str(file)] = list(store.list())
        elif file.is_file() and file.name not in ("lock.mdb", "writer.lock"):
            files[str(file)] = file.read_bytes()
    return files


def assert_refuses(
    session: Session, path: Path, add: Callable[[Session, Task], object], *, other_store: bool = False
) -> None:
    """Assert that nothing is acknowledged or written, however often it is tried."""
    before = files_of(path, other_store=other_store)
    for _ in range(2):
        task = Task(jobname="lost?")
        with pytest.raises(WriteError, match=SAYS):
            add(session, task)
        if add not in (ADDS["flush"], ADDS["add_many"]):  # what they were given is kept for another attempt
            assert task.persistent_id is None
    assert files_of(path, other_store=other_store) == before
    session.store.discard()


def add_and_flush(session: Session, task: Task) -> None:
    session.add(task, flush=False)
    session.flush()


def in_transaction(session: Session, task: Task) -> None:
    with session.transaction():
        session.add(task)


ADDS: dict[str, Callable[[Session, Task], object]] = {
    "add": lambda session, task: session.add(task),
    "add_many": lambda session, task: session.add_many([task]),
    "flush": add_and_flush,
    "transaction": in_transaction,
}


@pytest.mark.filterwarnings("ignore::gc3session.UnsavedWarning")
@pytest.mark.parametrize("add", ADDS)
@pytest.mark.parametrize("change", DIRECTORY)
def test_before_the_first_write(tmp_path: Path, change: str, add: str) -> None:
    path = tmp_path / "s"
    session = Session(path)
    DIRECTORY[change](path)
    assert_refuses(session, path, ADDS[add], other_store=True)


@pytest.mark.filterwarnings("ignore::gc3session.UnsavedWarning")
@pytest.mark.parametrize("add", ADDS)
@pytest.mark.parametrize("change", STORE)
def test_after_the_first_write(tmp_path: Path, change: str, add: str) -> None:
    path = tmp_path / "s"
    session = Session(path)
    session.add_many(Task() for _ in range(3))
    STORE[change](path)
    assert_refuses(session, path, ADDS[add])


def fork() -> None:
    in_child(lambda: None)


@pytest.mark.filterwarnings("ignore::gc3session.UnsavedWarning")
@pytest.mark.parametrize("in_the_child", [False, True])
@pytest.mark.parametrize("change", [*STORE])
def test_while_a_fork_has_closed_the_files(tmp_path: Path, change: str, in_the_child: bool) -> None:
    path = tmp_path / "s"
    session = Session(path)
    session.add_many(Task() for _ in range(3))
    if change in ("lock.mdb deleted", "lock.mdb replaced", "writer.lock deleted", "writer.lock replaced"):
        fork()
        STORE[change](path)  # nobody has them open, and they say nothing
        session.add(Task())
        session.close()
        assert len(check(path)) == 4
        return
    if in_the_child:
        STORE[change](path)

        def attempt() -> None:
            assert_refuses(session, path, ADDS["add"])

        in_child(attempt)
    else:
        fork()
        STORE[change](path)
    assert_refuses(session, path, ADDS["add"])


@pytest.mark.filterwarnings("ignore::gc3session.UnsavedWarning")
@pytest.mark.parametrize("instant", ["in the transaction", "after the commit"])
@pytest.mark.parametrize("change", ["removed", "removed and made again", "moved", "moved and made again", "restored from a copy", "made anew", "store.url replaced", "data.mdb replaced", "data.mdb deleted", "jobs replaced"])  # fmt: skip
def test_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, instant: str) -> None:
    path = tmp_path / "s"
    session = Session(path)
    session.add_many(Task() for _ in range(3))
    owner, name = (IndexWriter, "finish") if instant == "in the transaction" else (Store, "_after_commit")
    method = getattr(owner, name)
    after: dict[str, Any] = {}

    def changed(*args: Any, **options: Any) -> Any:
        monkeypatch.undo()
        STORE[change](path)
        after.update(files_of(path))
        return method(*args, **options)

    monkeypatch.setattr(owner, name, changed)
    task = Task()
    if instant == "after the commit" and "store.url" not in change and change != "made anew":
        pytest.skip("what happens once the commit is confirmed is as if it came after the call")
    with pytest.raises(WriteError, match=SAYS):
        session.add(task)
    assert task.persistent_id is None
    mirror = path / "session_ids.txt"
    if mirror.exists():
        assert mirror.read_bytes() == after[str(mirror)], "lines of the former session"
    session.store.discard()


def test_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`store.url` is read, and another session is made in its place."""
    path = tmp_path / "s"
    with Session(path) as session:
        session.add(Task())

    def open_existing(*args: Any) -> Any:
        opened = module_open(*args)
        made_anew(path)
        return opened

    module_open = module.open_existing
    monkeypatch.setattr(module, "open_existing", open_existing)
    with pytest.raises(Exception, match=SAYS):
        Session(path).add(Task())
    monkeypatch.undo()
    with Session(path) as session:
        assert len(session) == 0


def test_store_elsewhere_that_was_replaced_is_not_written_either(tmp_path: Path) -> None:
    place = tmp_path / "store"
    with make_store(place) as store:
        task = Task()
        store.save(task)
        shutil.copytree(place, tmp_path / "copy")
        place.rename(tmp_path / "former")
        (tmp_path / "copy").rename(place)
        task.jobname = "changed"
        with pytest.raises(WriteError, match=SAYS):
            store.save(task)
        store.discard()
    with TemporarySession(place) as session:
        assert session.load("Task.1").jobname == ""


def test_session_of_a_shared_store_goes_on_when_another_one_was_destroyed(tmp_path: Path) -> None:
    with make_store(tmp_path / "store") as store:
        one = Session(tmp_path / "one", store_or_url=store)
        other = Session(tmp_path / "other", store_or_url=store)
        one.add(Task())
        other.add(Task())
        shutil.rmtree(tmp_path / "other")
        one.add(Task())
        with pytest.raises(WriteError, match=SAYS):
            other.add(Task())
        one.add(Task())
        assert read_mirror(tmp_path / "one") == list(one.ids())
        assert len(one) == 3
        store.indexes.clear()


@pytest.mark.parametrize("files", ["the same", "copied"])
def test_what_looks_the_same_is_told_apart(tmp_path: Path, files: str) -> None:
    """A session that is moved away and back is the same one; a copy that is put in its place isn't."""
    path = tmp_path / "s"
    session = Session(path)
    session.add(Task())
    path.rename(tmp_path / "away")
    if files == "the same":
        (tmp_path / "away").rename(path)
        session.add(Task())
        session.close()
        assert len(check(path)) == 2
    else:
        shutil.copytree(tmp_path / "away", path)
        assert_refuses(session, path, ADDS["add"])


@pytest.mark.parametrize("name", ["jobs", "jobs/data.mdb", "jobs/lock.mdb"])
def test_session_is_closed_even_if_its_mirror_can_not_be_mended_any_more(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s"
    session = Session(path)
    session.add(Task())
    with open(path / "session_ids.txt", "a") as mirror:
        mirror.write("Task.7\n")
    replace_by_copy(name)(path)
    with pytest.raises(WriteError, match=SAYS):
        session.close()
    with pytest.raises(ClosedError):
        len(session)
    session.close()
    with Session(path) as again:  # of the files that are there now
        again.add(Task())
    assert len(check(path)) == 2
