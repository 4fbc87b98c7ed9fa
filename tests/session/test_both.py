"""Two sessions on one directory do the same thing, one of them in a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consistency import check, number_of
from gc3session import ConflictError, Session, Task

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True


def agree(session: Session, ids: list[str], stats: dict[str, int]) -> None:
    """Assert that whatever tells what is in a session says the same, each ID once and in order."""
    ids = sorted(ids, key=number_of)
    assert list(session.tasks) == ids
    assert [task.persistent_id for task in session] == ids
    assert len(session) == len(ids)
    assert session.stats() == stats
    for state in ("NEW", "RUNNING", "STOPPED"):
        selected = [task.persistent_id for task in session.select(state=state)]
        assert len(selected) == stats.get(state, 0)
        assert selected == [id_ for id_ in ids if id_ in selected]
    assert [id_ in session for id_ in ids] == [True] * len(ids)


@pytest.mark.parametrize("change", [False, True])
def test_what_another_session_has_added_too_is_there_once(make_session: MakeSession, change: bool) -> None:
    mine, other = make_session(), make_session()
    stored = mine.save(Task(state="RUNNING"))
    first = mine.add(Task())
    mine.load(stored, add=True, flush=False)
    if change:
        mine.load(stored).state = "STOPPED"
        mine.save_all(flush=False)
    expected = {"NEW": 1, "STOPPED" if change else "RUNNING": 1}
    agree(mine, [first, stored], expected)
    other.load(stored, add=True)
    agree(mine, [first, stored], expected)
    mine.flush()
    for session in (mine, other):
        agree(session, [first, stored], expected)


@pytest.mark.parametrize("others", [0, 600])
def test_it_is_there_once_however_far_its_two_places_are_apart(make_session: MakeSession, others: int) -> None:
    mine, other = make_session(), make_session()
    stored = mine.save(Task(state="RUNNING"))
    mine.load(stored, add=True, flush=False)
    ids = list(other.add_many(Task() for _ in range(others)))
    other.load(stored, add=True)
    ids.append(stored)
    expected = {"NEW": others, "RUNNING": 1} if others else {"RUNNING": 1}
    agree(mine, ids, expected)
    mine.flush()
    agree(mine, ids, expected)
    mine.close()
    assert check(mine.path) == sorted(ids, key=number_of)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("leave", [Session.forget, Session.remove])
def test_what_two_sessions_have_added_leaves_when_one_says_so(
    make_session: MakeSession, leave: Callable[..., None], flush: bool
) -> None:
    mine, other = make_session(), make_session()
    stored = mine.save(Task(state="RUNNING"))
    mine.load(stored, add=True, flush=False)
    other.load(stored, add=True)
    leave(mine, stored, flush=flush)
    agree(mine, [], {})
    assert stored not in mine
    mine.flush()
    for session in (mine, other):
        agree(session, [], {})
        assert stored not in session


def test_state_that_another_session_stores_is_seen_for_what_the_batch_adds(make_session: MakeSession) -> None:
    mine, other = make_session(), make_session()
    stored = mine.save(Task(state="RUNNING"))
    mine.load(stored, add=True, flush=False)
    agree(mine, [stored], {"RUNNING": 1})
    other.load(stored).state = "STOPPED"
    other.save_all()
    agree(mine, [stored], {"STOPPED": 1})
    mine.flush()
    agree(mine, [stored], {"STOPPED": 1})
    agree(other, [stored], {"STOPPED": 1})


def test_what_another_session_has_taken_away_too_is_counted_once(make_session: MakeSession) -> None:
    mine, other = make_session(), make_session()
    ids = [mine.add(Task(state=state)) for state in ("NEW", "RUNNING", "RUNNING", "STOPPED")]
    mine.forget(ids[1], flush=False)
    mine.remove(ids[3], flush=False)
    agree(mine, [ids[0], ids[2]], {"NEW": 1, "RUNNING": 1})
    other.forget(ids[1])
    other.forget(ids[3])
    agree(mine, [ids[0], ids[2]], {"NEW": 1, "RUNNING": 1})
    mine.flush()
    for session in (mine, other):
        agree(session, [ids[0], ids[2]], {"NEW": 1, "RUNNING": 1})


def test_what_is_taken_away_and_added_again_in_one_batch_is_counted_once(make_session: MakeSession) -> None:
    mine, other = make_session(), make_session()
    first, second = mine.add(Task(state="RUNNING")), mine.add(Task())
    mine.forget(first, flush=False)
    mine.load(first, add=True, flush=False)
    agree(mine, [second, first], {"NEW": 1, "RUNNING": 1})
    mine.load(first).state = "STOPPED"
    mine.save_all(flush=False)
    agree(mine, [second, first], {"NEW": 1, "STOPPED": 1})
    agree(other, [first, second], {"NEW": 1, "RUNNING": 1})
    mine.flush()
    for session in (mine, other):
        agree(session, [second, first], {"NEW": 1, "STOPPED": 1})


def test_batch_stands_at_its_place_among_what_others_add(make_session: MakeSession) -> None:
    mine, other = make_session(), make_session()
    batch = [mine.add(Task(), flush=False) for _ in range(40)]  # more than a block of the sequence
    theirs = list(other.add_many(Task(state="RUNNING") for _ in range(1030)))
    seen = list(mine.tasks)
    assert sorted(seen) == sorted(batch + theirs)
    assert [id_ for id_ in seen if id_ in batch] == batch
    agree(mine, seen, {"NEW": 40, "RUNNING": 1030})
    mine.flush()
    for session in (mine, other):
        agree(session, theirs + batch, {"NEW": 40, "RUNNING": 1030})


def test_record_that_another_removes_while_a_batch_adds_it_is_a_conflict(make_session: MakeSession) -> None:
    mine, other = make_session(), make_session()
    stored = mine.save(Task(state="RUNNING"))
    first = mine.add(Task())
    mine.load(stored, add=True, flush=False)
    batch = mine.add(Task(), flush=False)
    other.store.remove(stored)
    with pytest.raises(ConflictError):
        mine.flush()
    agree(other, [first], {"NEW": 1})
    mine.forget(stored, flush=False)
    mine.flush()
    for session in (mine, other):
        agree(session, [first, batch], {"NEW": 2})
    mine.close()
    assert check(mine.path) == [first, batch]


def test_loading_again_keeps_unsaved_changes_and_the_conflict_is_still_found(make_session: MakeSession) -> None:
    mine, other = make_session(), make_session()
    task = Task(jobname="before")
    id_ = mine.add(task)
    task.jobname = "mine"
    other.load(id_).jobname = "theirs"
    other.save_all()
    assert mine.load(id_) is task
    assert next(iter(mine)) is task
    assert mine[id_].jobname == "mine"
    assert task.changed
    with pytest.raises(ConflictError):
        mine.save_all()
    assert task.jobname == "mine"
    mine.refresh(task)
    assert task.jobname == "theirs"
