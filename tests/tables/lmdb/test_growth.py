"""A store that grows while other processes use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gc3session.tables.lmdb.opening as opening
import lmdb
from children import run_python
from gc3session import Session, Task
from gc3session.tables.lmdb.environment import Environment

SMALL = 1 << 17
GROW = """
    import sys
    from gc3session import Session, Task
    with Session(sys.argv[1]) as session:
        session.add_many(Task(jobname="x" * 1000) for _ in range(500))
"""


def test_writer_that_begins_again_has_given_up_what_it_planned(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.add(Task())
    prepare, begin = session._mirror.plan, Environment.begin
    full = [lmdb.MapFullError("as it comes at a commit, after the mirror was opened")]

    def prepare_and_find_no_room(*args: Any) -> Any:
        mark = prepare(*args)
        if full:
            raise full.pop()
        return mark

    def noting_begin(self: Environment, write: bool = False) -> Any:
        assert not (write and session._mirror._file >= 0)
        return begin(self, write)

    monkeypatch.setattr(session._mirror, "plan", prepare_and_find_no_room)
    monkeypatch.setattr(Environment, "begin", noting_begin)
    session.add(Task())
    assert not full
    assert len(session) == 2


def test_store_that_another_process_grows_during_the_opening_opens(
    tmp_path: Path, make_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the crash kit: MDB_MAP_RESIZED came out as a WriteError."""
    monkeypatch.setattr(opening, "_SMALLEST_MAP", SMALL)
    first = make_session(map_size=SMALL)
    first.add(Task())
    first.close()
    opened = lmdb.open
    grown: list[bool] = []

    def open_and_let_grow(*args: Any, **options: Any) -> Any:
        env = opened(*args, **options)
        if not grown:
            grown.append(True)
            run_python(GROW, tmp_path / "session")
        return env

    monkeypatch.setattr(opening.lmdb, "open", open_and_let_grow)
    second = make_session(map_size=SMALL)
    assert grown
    assert len(second) == 501
