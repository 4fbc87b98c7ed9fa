"""More than one read at a time takes, several sessions, both modes: where one thing ends and another begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from consistency import check, check_tables, read_mirror, read_tables
from examples import Simulation
from gc3session import (
    ConflictError,
    Error,
    ReadOnlyError,
    Session,
    Task,
    TemporarySession,
    make_store,
)
from test_session import warns_of_mirror

MakeSession = Callable[..., Session]

ON_EVERY_STORE = True

STATES = ["NEW", "RUNNING"]


@pytest.mark.parametrize("place", [0, 510, 511, 512, 1023, 1199])
def test_conflict_is_found_among_very_many_saved_at_once(make_session: MakeSession, place: int) -> None:
    mine, other = make_session(), make_session()
    ids = mine.add_many(Simulation() for _ in range(1200))
    tasks = list(mine)
    theirs = other.load(ids[place])
    theirs.mesh = "theirs"
    other.save_all()
    for task in tasks:
        task.mesh = "mine"
    with pytest.raises(ConflictError) as caught:
        mine.save_all()
    assert caught.value.ids == (ids[place],)
    assert [task.mesh for task in other] == ["theirs" if id_ == ids[place] else "" for id_ in ids]


@pytest.mark.parametrize("late", [False, True])
def test_closed_temporary_session_leaves_nothing_of_its_index(tmp_path: Path, late: bool) -> None:
    with make_store(tmp_path / "store") as store:
        stored = store.save(Task(jobname="before"))
        session = TemporarySession(store)
        ids = [session.add(Task(state="NEW")), session.add(Task(state="RUNNING"))]
        if late:
            session.load(stored, add=True)
        session.close()
        held = check_tables(read_tables(tmp_path / "store"))  # which looks for entries of no session
        assert held.sessions == {}
        assert list(store.list()) == [stored, *ids]
        fresh = TemporarySession(store)
        assert fresh.list_ids() == set()
        assert fresh.add(Task()) not in ids
        fresh.close()


def test_read_only_session_in_the_same_process_does_not_hinder_a_writer(make_session: MakeSession) -> None:
    with make_session() as session:
        first = session.add(Task())
    reader = make_session(read_only=True)
    assert list(reader.tasks) == [first]
    writer = make_session()
    second = writer.add(Task())
    assert list(reader.tasks) == list(writer.tasks) == [first, second]
    with pytest.raises(ReadOnlyError):
        reader.add(Task())
    reader.close()
    third = writer.add(Task())
    assert list(writer.tasks) == [first, second, third]


def test_tables_that_are_read_only_refuse_to_write_themselves(make_session: MakeSession) -> None:
    with make_session() as session:
        session.add(Task())
    reader = make_session(read_only=True)
    writer = make_session()  # so that the environment itself could be written
    writer.add(Task())
    with pytest.raises(ReadOnlyError):
        reader.store.tables.write(lambda writer: None)


def test_mirror_that_became_a_link_is_replaced_and_its_target_left_alone(
    make_session: MakeSession, tmp_path: Path
) -> None:
    with make_session() as session:
        first = session.add(Task())
    mirror, elsewhere = Path(session.path, "session_ids.txt"), tmp_path / "elsewhere"
    os.rename(mirror, elsewhere)  # which keeps its size and its time
    mirror.symlink_to(elsewhere)
    with warns_of_mirror(session):
        session = make_session()
    second = session.add(Task())
    session.flush()
    assert not mirror.is_symlink()
    assert read_mirror(session.path) == [first, second]
    assert elsewhere.read_text() == f"{first}\n"


def test_mirror_is_never_written_through_a_planted_link(make_session: MakeSession, tmp_path: Path) -> None:
    with make_session() as session:
        ids = [session.add(Task()) for _ in range(3)]
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(session.path, "session_ids.txt.tmp").symlink_to(victim)
    Path(session.path, "session_ids.txt").unlink()
    with warns_of_mirror(session):
        make_session().flush()
    assert victim.read_text() == "precious"
    assert check(session.path) == ids


def test_record_of_three_sessions_moves_and_leaves_in_all_of_them(
    make_session: MakeSession, tmp_path: Path, store_options: dict[str, str]
) -> None:
    shared = {"store_or_url": tmp_path / "store", **store_options}
    sessions = [make_session(name, **shared) for name in "abc"]
    for session in sessions[1:]:  # so that none of them is the first that the store knows
        session.add(Task(state="OTHER"))
    stays, goes = sessions[0].add(Task(state="NEW")), sessions[0].add(Task(state="NEW"))
    for session in sessions[1:]:
        session.load(stays, add=True)
        session.load(goes, add=True)
    task = sessions[0].load(stays)
    task.state = "RUNNING"
    sessions[0].save_all()
    for session in sessions:
        assert session.stats()["RUNNING"] == 1
        assert list(session.select(state="RUNNING")) == [session.load(stays)]
    sessions[0].remove(goes)
    for session in sessions:
        assert goes not in session
        assert session.stats().get("NEW") is None
        session.close()
        assert stays in check(session.path)


@pytest.mark.parametrize("name", ["created", "finished"])
def test_time_is_never_set_through_a_link(session: Session, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    before = victim.stat().st_mtime_ns
    Path(session.path, name).unlink(missing_ok=True)
    Path(session.path, name).symlink_to(victim)
    with pytest.raises(Error):
        session.set_start_timestamp(5) if name == "created" else session.set_end_timestamp(5)
    assert victim.stat().st_mtime_ns == before
    Path(session.path, name).unlink()
    session.set_start_timestamp()


COUNTS = [511, 512, 513, 1023, 1024, 1025]
"""Of entries; the index and the store's list are read 512 at a time, and the batch is merged in."""


@pytest.mark.parametrize("count", COUNTS)
def test_all_entries_are_given_once_and_in_order_beside_a_batch(make_session: MakeSession, count: int) -> None:
    session = make_session()
    ids = list(session.add_many(Task() for _ in range(count)))
    ids += [session.add(Task(), flush=False) for _ in range(3)]
    assert list(session.tasks) == list(session.store.list()) == ids
    assert [task.persistent_id for task in session.select(state="NEW")] == ids
    session.remove_many(ids[:510], flush=False)
    del ids[:510]
    assert list(session.tasks) == list(session.store.list()) == ids
    assert [task.persistent_id for task in session.select(state="NEW")] == ids
    assert session.stats() == {"NEW": len(ids)}
    session.flush()
    assert check(session.path) == ids


@pytest.mark.parametrize("count", COUNTS)
def test_a_batch_of_any_size_is_given_once_and_in_order(session: Session, count: int) -> None:
    ids = [session.add(Task(), flush=False) for _ in range(count)]
    assert list(session.tasks) == list(session.store.list()) == ids
    assert [task.persistent_id for task in session.select(state="NEW")] == ids
    assert [task.persistent_id for task in session] == ids


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("flush", [True, False])
def test_tasks_that_change_their_state_are_selected_once_and_in_order(
    session: Session, count: int, flush: bool
) -> None:
    ids = list(session.add_many(Task() for _ in range(count)))
    tasks = list(session)
    moved = [*range(0, count, 7), 509, 510, count - 1]
    for place in moved:
        tasks[place].state = "RUNNING"
    session.save_all(flush=flush)
    expected = {
        state: [id_ for id_, task in zip(ids, tasks, strict=True) if task.state == state] for state in STATES
    }
    for state in STATES:
        assert [task.persistent_id for task in session.select(state=state)] == expected[state]
    assert session.stats() == {state: len(expected[state]) for state in STATES}
    for place in range(count - 2):  # the others leave: those that stay are in the last chunk
        tasks[place].state = "RUNNING"
    session.save_all(flush=flush)
    stay = [id_ for id_, task in zip(ids, tasks, strict=True) if task.state == "NEW"]
    assert [task.persistent_id for task in session.select(state="NEW")] == stay


@pytest.mark.parametrize("count", COUNTS)
def test_all_but_the_last_entries_may_have_left(session: Session, count: int) -> None:
    ids = list(session.add_many(Task() for _ in range(count)))
    session.remove_many(ids[:-1], flush=False)
    assert list(session.tasks) == list(session.store.list()) == ids[-1:]
    assert [task.persistent_id for task in session.select(state="NEW")] == ids[-1:]


def test_mirror_of_more_entries_than_are_read_at_once_is_written_anew(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = list(session.add_many(Task() for _ in range(4096)))
    for _ in range(2):
        Path(session.path, "session_ids.txt").unlink()
        with warns_of_mirror(session):
            session = make_session()
        session.flush()
        assert read_mirror(session.path) == ids
        ids.append(session.add(Task()))
        session.close()
    assert check(session.path) == ids
