"""What another process does between two steps of a call, made to happen there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gc3session import Session, Task
from gc3session.directory import SessionDirectory

MakeSession = Callable[..., Session]


def test_store_that_another_process_makes_while_a_session_is_opened_is_not_missing(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_session()
    check_no_tasks = SessionDirectory.check_no_tasks

    def add_and_check(directory: SessionDirectory, url: str) -> None:
        if not len(first):
            first.add(Task())
        check_no_tasks(directory, url)

    monkeypatch.setattr(SessionDirectory, "check_no_tasks", add_and_check)
    second = make_session()
    assert list(second.tasks) == list(first.tasks)
    assert len(second) == 1
