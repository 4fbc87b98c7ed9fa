"""Mirrors of one session in the directories of several machines: each lists all once it is written or opened again.

A machine is its boot ID; these tests are each of several machines in turn.
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


def test_mirror_that_is_behind_is_no_finding_and_is_rewritten_without_a_warning(
    places: list[Session], become: Become
) -> None:
    become("two")
    places[1].remove(next(iter(places[1].tasks)))
    become("one")
    behind = Path(mirror(places[0])).read_text()
    assert list(check_session(places[0].path)) == []
    assert Path(mirror(places[0])).read_text() == behind
    with warnings.catch_warnings():
        warnings.simplefilter("error", MirrorWarning)
        places[0].flush()
    assert read_mirror(places[0].path) == list(places[0].tasks)


def test_mirror_that_was_edited_is_rewritten(places: list[Session]) -> None:
    Path(mirror(places[0])).write_text("edited\n")
    places[0].flush()
    assert read_mirror(places[0].path) == list(places[0].tasks)


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
    if what == "add":
        session.add(Task())
    elif what == "many":
        session.add_many(Task() for _ in range(3))
    elif what in ("remove", "forget") and ids:
        getattr(session, what)(ids[which % len(ids)])
    elif what == "reopen":
        session.close()
        sessions[place] = session = Session(session.path)
    elif what == "edit" and ids:
        with Path(mirror(session)).open("a") as file:  # what leaves its size as it was is found by a check alone
            file.write("edited\n")
    elif what == "kill":  # after the commit, before the mirror is written
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(gc3session.index.mirror.Mirror, "write", lambda self: None)
            session.add(Task())
    elif what == "batch":
        session.add(Task(), flush=False)
    if what not in ("edit", "kill", "batch"):
        session.flush()
        assert read_mirror(session.path) == list(session.tasks)
