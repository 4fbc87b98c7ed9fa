"""What is on disk when, as far as a test can see without a power cut."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from children import in_child
from consistency import check, read_mirror
from examples import Simulation
from gc3session import Session, StoreFull, Task
from test_damage import Limit, data_of

MakeSession = Callable[..., Session]


def test_transactions_are_flushed_by_lmdb_itself(session: Session) -> None:
    session.add(Task())
    environment = session.store.tables._env.opened()
    flags = environment.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["writemap"]
    assert not flags["map_async"]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed and what gets its name, in order: ('fsync' or 'name', path)."""
    seen: list[tuple[str, str]] = []
    fsync = os.fsync

    def noting_fsync(fd: int) -> None:
        seen.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def noting(function: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            function(source, target)
            seen.append(("name", os.fspath(target)))

        return call

    monkeypatch.setattr(os, "fsync", noting_fsync)
    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    return seen


def before_and_after(events: list[tuple[str, str]], path: Path) -> tuple[set[str], set[str]]:
    """Return what was flushed before *path* got its name, and what was after."""
    place = events.index(("name", os.fspath(path)))
    return (
        {flushed for kind, flushed in events[:place] if kind == "fsync"},
        {flushed for kind, flushed in events[place:] if kind == "fsync"},
    )


def test_file_of_a_session_is_flushed_before_it_gets_its_name_and_its_directory_after(
    make_session: MakeSession, events: list[tuple[str, str]]
) -> None:
    path = Path(make_session().path)
    for name in ("created", "session_ids.txt", "store.url"):
        before, after = before_and_after(events, path / name)
        assert any(flushed.startswith(f"{path / name}.") for flushed in before), name
        assert os.fspath(path) in after, name
    assert os.fspath(path.parent) in {flushed for kind, flushed in events if kind == "fsync"}


def test_store_is_flushed_before_it_gets_its_name_and_its_directory_after(
    make_session: MakeSession, events: list[tuple[str, str]]
) -> None:
    session = make_session()
    session.add(Task())
    path = Path(session.path)
    before, after = before_and_after(events, path / "jobs")
    made = {Path(flushed) for flushed in before if Path(flushed).name.startswith("jobs.")}
    assert made, "the new directory was not flushed"
    assert {directory / "data.mdb" for directory in made} <= set(map(Path, before))
    assert os.fspath(path) in after


def test_names_above_a_new_session_are_flushed_before_it_is_there(
    make_session: MakeSession, events: list[tuple[str, str]]
) -> None:
    path = Path(make_session("some/new/session").path)
    before, _ = before_and_after(events, path / "store.url")
    assert {os.fspath(directory) for directory in list(path.parents)[:3]} <= before


def test_name_of_a_store_is_flushed_by_whoever_writes_to_it_first(
    make_session: MakeSession, events: list[tuple[str, str]]
) -> None:
    # Found by the crash kit: who had made the store had not come to flushing its name, another had written to it.
    with make_session() as maker:
        maker.add(Task())
    events.clear()
    session = make_session()
    session.add(Task())
    assert ("fsync", session.path) in events
    events.clear()
    session.add(Task())
    assert ("fsync", session.path) not in events


def test_time_of_the_end_is_there_with_the_name(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # Found by the crash kit: for an instant the file said that the session had ended now.
    seen: list[float | None] = []
    for name in ("open", "utime", "link"):
        function = getattr(os, name)

        def call(*args: Any, function: Callable[..., Any] = function, **options: Any) -> Any:
            try:
                return function(*args, **options)
            finally:
                seen.append(session.finished)

        monkeypatch.setattr(os, name, call)
    session.set_end_timestamp(1e9)
    assert set(seen) == {None, 1e9}
    session.set_end_timestamp(2e9)
    assert set(seen) == {None, 1e9, 2e9}


def test_destroyed_session_has_lost_its_name_on_disk_before_anything_in_it_goes(
    session: Session, events: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found by the crash kit: after a power cut it was there again, whole or in parts.
    session.add(Task())
    events.clear()
    unlink = os.unlink

    def noting_unlink(path: Any, **options: Any) -> None:
        events.append(("unlink", os.fspath(path)))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", noting_unlink)
    session.destroy()
    kinds = [kind for kind, path in events if kind != "fsync" or path == os.path.dirname(session.path)]
    assert kinds[:3] == ["name", "fsync", "unlink"]


def test_mirror_lists_nothing_that_is_not_committed(tmp_path: Path) -> None:
    path = tmp_path / "session"

    def fill() -> None:
        session = Session(path)
        kept = [session.add(Task()), session.add(Task())]
        with Limit(data_of(path).stat().st_size):
            with pytest.raises(StoreFull):
                session.add(Simulation(mesh="x" * 500_000))
            assert read_mirror(path) == kept
            with pytest.raises(StoreFull), session.transaction():
                session.remove(kept[0])
                session.add(Simulation(mesh="x" * 500_000))
            assert read_mirror(path) == kept
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing was edited, so there is nothing to warn of
            session.close()

    in_child(fill)
    assert len(check(path)) == 2


def test_mirror_is_written_only_after_the_commit(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    first = session.add(Task())
    seen: list[tuple[set[str], list[str]]] = []
    apply = session._mirror.write

    def noting_apply() -> None:
        with Session(session.path, read_only=True) as other:
            seen.append((other.list_ids(), read_mirror(session.path)))
        apply()

    monkeypatch.setattr(session._mirror, "write", noting_apply)
    second = session.add(Task())
    session.remove(first)
    assert seen == [({first, second}, [first]), ({second}, [first, second])]
    assert read_mirror(session.path) == [second]
