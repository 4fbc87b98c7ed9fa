"""A transaction that fails leaves nothing of it, in memory either: what the other suites don't look at."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consistency import check
from examples import Simulation
from gc3session import NotInSession, Session, Task

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True


def fail(session: Session, *steps: Callable[[], object]) -> None:
    """Do some steps in a transaction that then fails."""
    with pytest.raises(ZeroDivisionError), session.transaction():
        for step in steps:
            step()
        raise ZeroDivisionError


def test_stored_task_that_was_added_in_a_failed_transaction_is_not_in_the_session(session: Session) -> None:
    id_ = session.add(Task())
    session.forget(id_)
    fail(session, lambda: session.load(id_, add=True))
    assert id_ not in session
    assert session.load(id_) not in session
    with pytest.raises(NotInSession):
        session.forget(id_)
    assert len(session) == 0
    session.load(id_, add=True)
    assert list(session.tasks) == [id_]


def test_task_removed_in_a_failed_transaction_stays_the_one_object_of_its_id(session: Session) -> None:
    task = Task(jobname="kept")
    id_ = session.add(task)
    fail(session, lambda: session.remove(id_))
    assert session.load(id_) is task
    assert list(session) == [task]
    assert next(iter(session)) is task


def test_state_of_a_failed_transaction_is_not_taken_for_that_of_the_record(session: Session) -> None:
    task = Simulation(state="NEW")
    id_ = session.add(task)
    session.forget(id_)

    def change() -> None:
        task.state = "RUNNING"
        session.save(task)

    fail(session, change)
    session.refresh(task)
    session.load(id_, add=True, flush=False)
    assert session.stats() == {"NEW": 1}
    assert list(session.select(state="RUNNING")) == []
    session.flush()
    assert session.stats() == {"NEW": 1}
    assert check(session.path) == [id_]
