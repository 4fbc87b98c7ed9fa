"""Mirrors of one session in several directories, or of several machines in one: each lists all in the end.

A machine is its name and its boot ID; these tests are each of several machines in turn.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

import gc3session.index.mirror
import gc3session.session.session
from consistency import check, read_mirror
from gc3session import MirrorWarning, Session, Task, check_session

Become = Callable[[str], None]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Become:
    """Makes this process one of the machine of that name."""
    name = "one"
    monkeypatch.setattr(gc3session.index.mirror, "_host", lambda: name)
    monkeypatch.setattr(gc3session.index.mirror, "_boot_id", lambda: f"boot of {name}")

    def become(other: str) -> None:
        nonlocal name
        name = other

    return become


@pytest.fixture
def places(postgresql_url: str, tmp_path: Path, become: Become) -> Iterator[list[Session]]:
    """A session of three tasks in the directories `one` and `two`, on machines of these names."""
    with Session(tmp_path / "one", store_or_url=postgresql_url) as first:
        first.add_many(Task() for _ in range(3))
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        become("two")
        with Session(tmp_path / "two") as second:
            second.add(Task())
            become("one")
            first.add(Task())
            yield [first, second]


def mirror(session: Session) -> str:
    return os.path.join(session.path, "session_ids.txt")


def inode(session: Session) -> int:
    return os.stat(mirror(session)).st_ino


def test_what_another_machine_has_added_is_appended(places: list[Session], become: Become) -> None:
    files = list(map(inode, places))
    for _ in range(5):
        for session, name in zip(places, ("one", "two"), strict=True):
            become(name)
            session.add_many(Task() for _ in range(3))
            session.add(Task())
            assert read_mirror(session.path) == list(session.tasks)
    assert list(map(inode, places)) == files, "it was written anew"


def test_opening_appends_what_another_machine_has_added(places: list[Session], become: Become) -> None:
    file = inode(places[1])
    places[0].add(Task())
    become("two")
    with Session(places[1].path) as session:
        assert read_mirror(session.path) == list(session.tasks)
    assert inode(places[1]) == file


def test_what_another_machine_has_removed_is_blanked(places: list[Session], become: Become) -> None:
    become("two")
    places[1].remove(next(iter(places[1].tasks)))
    places[1].add(Task())
    become("one")
    places[0].add(Task())
    assert read_mirror(places[0].path) == list(places[0].tasks)


def test_one_that_another_machine_has_added_is_removed(places: list[Session], become: Become) -> None:
    file = inode(places[0])
    for which in (-1, 3, 0):
        become("two")
        places[1].add_many(Task() for _ in range(3))
        become("one")
        places[0].remove(list(places[0].tasks)[which])
        assert read_mirror(places[0].path) == list(places[0].tasks)
    assert inode(places[0]) == file, "it was written anew"


def test_mirror_that_is_behind_is_no_finding_and_one_that_was_edited_is_mended(
    places: list[Session], become: Become
) -> None:
    become("two")
    places[1].add(Task())
    become("one")
    behind = Path(mirror(places[0])).read_text()
    assert list(check_session(places[0].path)) == []
    assert Path(mirror(places[0])).read_text() == behind
    Path(mirror(places[0])).write_text("edited\n")
    places[0].add(Task())
    assert read_mirror(places[0].path) == list(places[0].tasks)


def test_machines_that_share_the_directory_append_to_one_file(
    postgresql_url: str, tmp_path: Path, become: Become
) -> None:
    with (
        Session(tmp_path / "shared", store_or_url=postgresql_url) as first,
        Session(tmp_path / "shared") as second,
    ):
        first.add(Task())
        file = inode(first)
        for _ in range(3):
            for session, name in ((first, "one"), (second, "two")):
                become(name)
                session.add(Task())
                assert read_mirror(session.path) == list(session.tasks)
                assert list(check_session(session.path)) == []
        assert inode(first) == file, "it was written anew"
        become("one")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MirrorWarning)
            os.utime(mirror(first))
            first.add(Task())
        assert inode(first) != file, "an edit was not noticed"


def test_mirror_on_a_filesystem_with_coarse_times_is_appended_to(session: Session) -> None:
    session.add(Task())
    file = inode(session)
    for unit in (1000, 10**9):
        time = os.stat(mirror(session)).st_mtime_ns
        os.utime(mirror(session), ns=(time, time - time % unit))
        session.add(Task())
        assert inode(session) == file, "it was written anew"


Step = tuple[int, str, int]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["add", "add", "add", "many", "remove", "forget", "reopen", "edit", "kill", "batch"]),
        st.integers(0, 30),
    ),
    min_size=2,
    max_size=25,
)


def test_any_walk_over_three_machines_leaves_mirrors_as_the_index_is(
    postgresql_url: str, tmp_path: Path, become: Become, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc3session.session.session, "_FULL_OF_BLANKS", 20)
    count = 0

    @hypothesis.settings(max_examples=hypothesis.settings.default.max_examples // 8)
    @hypothesis.given(STEPS)
    def walk(steps: list[Step]) -> None:
        nonlocal count
        count += 1
        paths = [tmp_path / str(count) / str(i) for i in range(3)]
        become("0")
        Session(paths[0], store_or_url=postgresql_url).close()
        for path in paths[1:]:
            shutil.copytree(paths[0], path)
        sessions = []
        for i, path in enumerate(paths):
            become(str(i))
            sessions.append(Session(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MirrorWarning)
            for place, what, which in steps:
                become(str(place))
                step(sessions, place, what, which)
            for i, session in enumerate(sessions):
                become(str(i))
                session.close()
            for i, path in enumerate(paths):
                become(str(i))
                Session(path).close()
                check(path)
        shutil.rmtree(tmp_path / str(count))

    walk()


def step(sessions: list[Session], place: int, what: str, which: int) -> None:
    session = sessions[place]
    ids = list(session.tasks)
    written = what in ("add", "many", "reopen") or (bool(ids) and what in ("remove", "forget"))
    if what == "add":
        session.add(Task())
    elif what == "many":
        session.add_many(Task() for _ in range(3))
    elif what in ("remove", "forget") and ids:
        getattr(session, what)(ids[which % len(ids)])
    elif what == "reopen":
        session.close()
        sessions[place] = session = Session(session.path)
    elif what == "edit":
        text = Path(mirror(session)).read_text()
        Path(mirror(session)).write_text(f"edited{text[6:]}")
    elif what == "kill":  # after the commit, before the mirror is written
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(gc3session.index.mirror.Mirror, "apply", lambda self: None)
            session.add(Task())
    elif what == "batch":
        session.add(Task(), flush=False)
    if written:
        assert read_mirror(session.path) == list(session.tasks)
