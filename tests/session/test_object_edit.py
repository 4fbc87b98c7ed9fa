"""Changing very many tasks: `edit`, `update`; and the small ones: `set_state`, `get`, `load` of a kind, `save(flush=False)`."""

from __future__ import annotations

import gc
import math
import re
import time
import tracemalloc
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest

from children import in_child
from examples import Note, Simulation, Sweep
from gc3session import (
    ClosedError,
    ConflictError,
    GenericTask,
    InvalidArgument,
    LoadError,
    NotFound,
    NotInSession,
    ReadOnlyError,
    Session,
    Task,
    UnstorableValue,
)
from gc3session.session.editing import PART

ON_EVERY_STORE = True

MakeSession = Callable[..., Session]


def on_disk(session: Session) -> dict[str, Any]:
    """Return the tasks as another program has them, by their IDs."""
    with Session(session.path, read_only=True) as other:
        return {str(task.persistent_id): task for task in other}


def steps_on_disk(session: Session) -> list[int]:
    return [task.steps for task in on_disk(session).values()]


@pytest.fixture
def ids(session: Session) -> list[str]:
    return list(session.add_many(Simulation(jobname=f"job-{n}", steps=n) for n in range(10)))


# -- edit ---------------------------------------------------------------------


def test_edit_saves_what_the_loop_changed_and_nothing_else(session: Session, ids: list[str]) -> None:
    with Session(session.path, read_only=True) as other:
        revisions = {id_: other.load(id_)._stamp.revision for id_ in ids}
    with session.edit() as tasks:
        for task in tasks:
            if task.steps % 3 == 0:
                task.mesh = "assigned"
            elif task.steps % 3 == 1:
                task.inputs["inside"] = [1]
    del task
    for id_, task in on_disk(session).items():
        n = task.steps
        expected = ("assigned", {}) if n % 3 == 0 else ("", {"inside": [1]} if n % 3 == 1 else {})
        assert (task.mesh, task.inputs) == expected
        assert task._stamp.revision == revisions[id_] + (n % 3 < 2)
    session.save_all()
    assert [task._stamp.revision for task in on_disk(session).values()] == [1 + (n % 3 < 2) for n in range(10)]


def test_change_in_the_last_round_of_the_loop_is_saved(session: Session, ids: list[str]) -> None:
    def loop(tasks: Any) -> None:  # nothing but the loop ever holds the task
        for task in tasks:
            task.extra["x"] = 1

    with session.edit() as tasks:
        loop(tasks)
        gc.collect()
    assert all(task.extra == {"x": 1} for task in on_disk(session).values())


FILTERS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "state": ({"state": "RUNNING"}, [0, 4, 8]),
    "states": ({"state": ["RUNNING", "NEW"]}, [0, 1, 2, 4, 5, 6, 8, 9]),
    "name": ({"name": "job-[12]$"}, [1, 2]),
    "pattern": ({"name": re.compile("JOB-3", re.IGNORECASE)}, [3]),
    "id": ({"id": r"\.[45]$"}, [3, 4]),
    "kind": ({"kind": Note}, []),
    "kinds": ({"kind": ["Simulation", Note]}, list(range(10))),
    "where": ({"where": "steps > 7"}, [8, 9]),
    "conditions": ({"where": ["steps > 2", "inputs.a lacks x", "steps < 5"]}, [3, 4]),
    "field": ({"steps": 5}, [5]),
    "fields": ({"steps": 5, "mesh": "m"}, []),
    "since": ({"since": timedelta(hours=1)}, list(range(10))),
    "before": ({"before": timedelta(hours=1)}, []),
    "together": ({"state": "RUNNING", "where": "steps > 0", "name": "job"}, [4, 8]),
    "nothing": ({}, list(range(10))),
}


@pytest.mark.parametrize("name", FILTERS)
def test_edit_takes_the_filters_of_select(session: Session, name: str) -> None:
    filters, expected = FILTERS[name]
    if name == "conditions":
        filters = {"where": ["steps > 2", "steps < 5"]}
    states = ["RUNNING", "NEW", "SUBMITTED", "STOPPED"]
    states[2] = "NEW"
    session.add_many(Simulation(jobname=f"job-{n}", steps=n, state=states[n % 4]) for n in range(10))
    chosen = [task.steps for task in session.select(**filters)]
    with session.edit(**filters) as tasks:
        for task in tasks:
            task.mesh = "edited"
    assert chosen == expected
    assert [task.steps for task in on_disk(session).values() if task.mesh == "edited"] == expected


@pytest.mark.parametrize("argument", [{"name": "("}, {"where": "??"}, {"state": 3}, {"kind": 3}])
def test_edit_refuses_filters_that_can_not_be_understood(session: Session, argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        session.edit(**argument)


def test_leaving_the_loop_by_break_saves_what_was_changed(session: Session, ids: list[str]) -> None:
    with session.edit() as tasks:
        for task in tasks:
            task.extra["seen"] = True
            if task.steps == 4:
                break
    assert [task.extra for task in on_disk(session).values()] == [{"seen": True}] * 5 + [{}] * 5


def test_loop_in_a_function_and_next_and_return_are_saved(session: Session, ids: list[str]) -> None:
    def first_above(tasks: Any, steps: int) -> str:
        for task in tasks:
            if task.steps > steps:
                task.extra["found"] = True
                return str(task.persistent_id)
        raise AssertionError

    with session.edit() as tasks:
        assert first_above(tasks, 3) == ids[4]
        iterator = iter(tasks)
        next(iterator).extra["first"] = True
        next(iterator).steps += 100
    tasks_there = list(on_disk(session).values())
    assert tasks_there[4].extra == {"found": True}
    assert tasks_there[0].extra == {"first": True}
    assert tasks_there[1].steps == 101


def test_nested_loops_save_what_both_changed(session: Session, ids: list[str]) -> None:
    with session.edit() as tasks:
        for outer in tasks:
            for inner in tasks:
                inner.steps += 1
                if inner is outer:
                    outer.extra["inner"] = inner.jobname
                    break
    there = list(on_disk(session).values())
    assert [task.steps for task in there] == [n + 10 - n for n in range(10)]
    assert [task.extra for task in there] == [{"inner": f"job-{n}"} for n in range(10)]


def test_two_loops_in_one_block_see_and_save_what_each_other_changed(session: Session, ids: list[str]) -> None:
    with session.edit() as tasks:
        total = 0
        for task in tasks:
            task.steps += 1
            total += task.steps
        for task in tasks:
            task.extra["share"] = task.steps / total
    there = on_disk(session).values()
    assert [task.steps for task in there] == list(range(1, 11))
    assert math.isclose(sum(task.extra["share"] for task in there), 1)


def test_two_blocks_at_once_save_what_each_changed(session: Session, ids: list[str]) -> None:
    with session.edit(where="steps < 6") as low, session.edit(where="steps > 3") as high:
        for task in low:
            task.extra["low"] = True
        for task in high:
            task.extra["high"] = True
    assert [len(task.extra) for task in on_disk(session).values()] == [1, 1, 1, 1, 2, 2, 1, 1, 1, 1]


def test_tasks_that_are_held_are_the_same_objects_and_saved(session: Session, ids: list[str]) -> None:
    held = session.load(ids[3])
    with session.edit() as tasks:
        for task in tasks:
            task.steps += 1
    assert held.steps == 4
    assert not held.changed


def test_changes_of_members_are_saved(session: Session) -> None:
    shared = Note(text="s", about={})
    ids = session.add_many(Simulation(inputs={"shared": shared, "own": Task()}, steps=n) for n in range(1300))
    shared_id = str(shared.persistent_id)
    for keep in (True, False):
        if not keep:
            del shared
            gc.collect()
        with session.edit() as tasks:
            for task in tasks:
                task.inputs["shared"].about[task.steps] = keep  # of several pages, and the tasks hold it
                task.inputs["own"].extra["kept"] = keep
                task.state = f"{keep}"
            del task
        gc.collect()
        with Session(session.path, read_only=True) as other:
            assert other.load(shared_id).about == dict.fromkeys(range(1300), keep)
            assert all(other.load(id_).inputs["own"].extra == {"kept": keep} for id_ in ids[::100])


def test_changes_of_state_by_which_the_filter_selects_skip_and_repeat_nothing(session: Session) -> None:
    session.add_many(Task(jobname=str(n)) for n in range(2 * PART + 700))
    seen: list[str] = []
    with session.edit(state=["NEW", "RUNNING"]) as tasks:
        for task in tasks:
            task.state = "RUNNING" if len(seen) % 2 else "TERMINATED"
            seen.append(task.jobname)
    assert seen == [str(n) for n in range(2 * PART + 700)]
    assert session.stats() == {"RUNNING": PART + 350, "TERMINATED": PART + 350}
    with Session(session.path, read_only=True) as other:
        assert other.stats() == session.stats()


def test_what_is_added_while_the_loop_runs_is_no_endless_loop(session: Session, ids: list[str]) -> None:
    with session.edit(where="steps >= 0") as tasks:
        for n, task in enumerate(tasks):
            task.steps = -1
            if n < 20:
                session.add(Simulation(steps=-2))
    assert set(steps_on_disk(session)) == {-1, -2}


def test_exception_gives_up_what_is_not_saved_yet_and_says_up_to_where(session: Session) -> None:
    ids = session.add_many(Simulation(steps=n) for n in range(PART + 2000))
    held = session.load(ids[-1])
    with pytest.raises(RuntimeError, match="on purpose") as raised, session.edit() as tasks:
        for task in tasks:
            task.steps = -1
            task.extra["x"] = 1
            if task is held:
                raise RuntimeError("on purpose")
    del task
    there = on_disk(session)
    saved = [id_ for id_, task in there.items() if task.steps == -1]
    assert saved == list(ids[: len(saved)])
    assert PART <= len(saved) < len(ids)
    assert [task.extra for task in there.values()] == [{"x": 1}] * len(saved) + [{}] * (len(ids) - len(saved))
    (note,) = raised.value.__notes__
    assert f"all up to {saved[-1]} is saved" in note
    assert f"{len(ids) - len(saved)} tasks" in note
    assert (held.steps, held.extra, held.changed) == (len(ids) - 1, {}, False)
    session.save_all()
    assert steps_on_disk(session).count(-1) == len(saved)


def test_exception_in_the_first_part_saves_nothing(session: Session, ids: list[str]) -> None:
    with pytest.raises(RuntimeError) as raised, session.edit() as tasks:
        for task in tasks:
            task.steps = -1
            if task.jobname == "job-5":
                raise RuntimeError
    assert "nothing is saved" in raised.value.__notes__[0]
    assert "6 tasks" in raised.value.__notes__[0]
    session.save_all()
    assert steps_on_disk(session) == list(range(10))
    with session.edit() as tasks:
        for task in tasks:
            task.steps += 1
    assert steps_on_disk(session) == list(range(1, 11))


def test_task_that_can_not_be_stored_saves_nothing_of_its_part(session: Session, ids: list[str]) -> None:
    with pytest.raises(UnstorableValue, match="extra") as raised, session.edit() as tasks:
        for task in tasks:
            task.steps = -1
            if task.jobname == "job-5":
                task.extra["bad"] = print
    assert "nothing is saved" in raised.value.__notes__[0]
    session.save_all()
    assert steps_on_disk(session) == list(range(10))


def test_conflict_in_the_middle_gives_up_the_part(session: Session) -> None:
    ids = session.add_many(Simulation(steps=n) for n in range(PART + 1500))

    def other_program() -> None:
        with Session(session.path) as other:
            other.load(ids[-5]).mesh = "theirs"
            other.save_all()

    with pytest.raises(ConflictError) as raised, session.edit() as tasks:
        for task in tasks:
            if task.persistent_id == ids[-5]:
                in_child(other_program)
            task.steps = -1
    del task
    assert raised.value.ids == (ids[-5],)
    assert "all up to" in raised.value.__notes__[0]
    there = on_disk(session)
    count = [task.steps for task in there.values()].count(-1)
    assert PART <= count < len(ids)
    assert (there[ids[-5]].mesh, there[ids[-5]].steps) == ("theirs", len(ids) - 5)
    session.save_all()
    assert steps_on_disk(session).count(-1) == count
    with session.edit() as tasks:  # and again, from the state that is there now
        for task in tasks:
            task.steps = -1
    assert set(steps_on_disk(session)) == {-1}
    assert on_disk(session)[ids[-5]].mesh == "theirs"


def test_task_removed_by_another_program_after_it_was_changed_is_a_conflict(
    session: Session, ids: list[str]
) -> None:
    def other_program() -> None:
        with Session(session.path) as other:
            other.remove(ids[2])

    with pytest.raises(ConflictError, match="removed") as raised, session.edit() as tasks:
        for task in tasks:
            task.steps = -1
            if task.persistent_id == ids[5]:
                in_child(other_program)
    assert raised.value.ids == (ids[2],)
    assert "nothing is saved" in raised.value.__notes__[0]
    with session.edit() as tasks:
        for task in tasks:
            task.steps = -1
    assert steps_on_disk(session) == [-1] * 9


def test_task_removed_in_the_loop_stays_removed(session: Session) -> None:
    ids = session.add_many(Simulation(steps=n) for n in range(1500))
    held = session.load(ids[3])
    with session.edit() as tasks:
        for task in tasks:
            task.mesh = "edited"
            if task.steps in (0, 3, 700):
                session.remove(str(task.persistent_id))
            if task.steps == 1400:
                session.remove(ids[600])  # of a page that is done with
            if task.steps == 1401:
                session.remove(ids[1450])
            if task.steps == 1402:
                session.forget(ids[100])
    there = on_disk(session)
    assert there.keys() == {*ids} - {ids[n] for n in (0, 3, 700, 600, 1450, 100)}
    assert {task.mesh for task in there.values()} == {"edited"}
    assert held.persistent_id is None
    with Session(session.path, read_only=True) as other:
        assert other.load(ids[100]).mesh == "edited"
        assert len(list(other.store.list())) == 1495


def test_edit_inside_a_transaction_is_part_of_it(session: Session) -> None:
    count = PART + 700
    session.add_many(Simulation(steps=n) for n in range(count))
    with pytest.raises(RuntimeError), session.transaction():
        with session.edit() as tasks:
            for task in tasks:
                task.steps = -1
        assert set(steps_on_disk(session)) == {*range(count)}
        raise RuntimeError
    assert set(steps_on_disk(session)) == {*range(count)}
    with session.transaction():
        with session.edit() as tasks:
            for task in tasks:
                task.steps = -2
        session.add(Simulation(steps=-2))
        assert set(steps_on_disk(session)) == {*range(count)}
    assert steps_on_disk(session) == [-2] * (count + 1)


def test_note_of_an_exception_inside_a_transaction_does_not_say_saved(session: Session) -> None:
    session.add_many(Simulation(steps=n) for n in range(PART + 700))
    with pytest.raises(RuntimeError) as raised, session.transaction(), session.edit() as tasks:
        for task in tasks:
            task.extra["x"] = 1
            if task.steps == PART + 600:
                raise RuntimeError
    assert "is in the transaction" in raised.value.__notes__[0]
    assert all(task.extra == {} for task in on_disk(session).values())


def test_edit_is_seen_by_others_part_by_part(session: Session) -> None:
    session.add_many(Simulation(steps=0) for _ in range(3 * PART))
    seen = set()
    with session.edit() as tasks:
        for n, task in enumerate(tasks):
            task.steps = 1
            if n % 1000 == 999:
                with Session(session.path, read_only=True) as other:
                    seen.add(sum(1 for _ in other.select(steps=1).ids()))
    assert len(seen) >= 3
    assert steps_on_disk(session) == [1] * (3 * PART)


def test_batch_of_the_session_goes_along(session: Session, ids: list[str]) -> None:
    session.add(Simulation(steps=100), flush=False)
    with session.edit() as tasks:
        for task in tasks:
            task.steps += 1
    assert steps_on_disk(session) == [*range(1, 11), 101]


def test_edit_of_nothing_writes_nothing(session: Session, ids: list[str]) -> None:
    before = [task._stamp.revision for task in on_disk(session).values()]
    with session.edit():
        pass
    with session.edit(name="no such") as tasks:
        assert list(tasks) == []
    with session.edit() as tasks:
        for task in tasks:
            assert task.steps >= 0
    assert [task._stamp.revision for task in on_disk(session).values()] == before


def test_edit_without_with_is_refused(session: Session, ids: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="with"):
        for task in session.edit():
            task.steps = -1
    with session.edit() as tasks:
        pass
    with pytest.raises(InvalidArgument, match="with"):
        list(tasks)


def test_loop_that_outlives_its_block_is_an_ordinary_one(session: Session, ids: list[str]) -> None:
    with session.edit() as tasks:
        iterator = iter(tasks)
        next(iterator).extra["x"] = 1
    for task in iterator:
        task.extra["x"] = 2
    del task, iterator
    gc.collect()
    assert [task.extra for task in on_disk(session).values()] == [{"x": 1}] + [{}] * 9
    session.save_all()
    assert [task.extra for task in on_disk(session).values()] == [{"x": 1}] + [{"x": 2}] * 9


def test_edit_of_a_session_that_can_not_be_written_is_refused(session: Session, ids: list[str]) -> None:
    with Session(session.path, read_only=True) as other, pytest.raises(ReadOnlyError), other.edit():
        pass
    with pytest.raises(ClosedError):
        other.edit()


def test_damaged_or_unreadable_class_raises_and_loop_may_go_on(session: Session) -> None:
    @attrs.define
    class Upgraded(Task):
        class_tag = "Upgraded"
        size: int = 0

    session.add_many([Simulation(), Upgraded(), Simulation()])
    is_broken = [True]

    @attrs.define
    class Later(Task):  # its name is another one, and its tag the same
        class_tag = "Upgraded"
        other: int = 0

        @classmethod
        def upgrade_record(cls, fields: dict[str, Any]) -> dict[str, Any]:
            if is_broken:
                raise ValueError("on purpose")
            return fields

    del Upgraded
    gc.collect()
    failures = 0
    with session.edit() as tasks:
        iterator = iter(tasks)
        while True:
            try:
                task = next(iterator)
            except StopIteration:
                break
            except LoadError:
                failures += 1
                continue
            task.extra["x"] = 1
    assert failures == 1
    with Session(session.path, read_only=True) as other:
        assert [task.extra for task in other.select(kind=Simulation)] == [{"x": 1}] * 2
    is_broken.clear()


@pytest.mark.slow_on_servers
@pytest.mark.parametrize("inside", [True, False])
def test_edit_holds_no_memory_for_tasks_that_are_saved(session: Session, long_form: bool, inside: bool) -> None:
    count = 100_000 if long_form else 10_000
    session.add_many(Simulation(steps=n) for n in range(count))
    alive: weakref.WeakSet[Task] = weakref.WeakSet()
    most = 0
    gc.collect()
    tracemalloc.start()
    try:
        with session.edit() as tasks:
            for n, task in enumerate(tasks):
                alive.add(task)
                if inside:
                    task.extra["x"] = n
                else:
                    task.mesh = "edited"
                if n % 500 == 0:
                    most = max(most, len(alive))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < PART + 2000
    assert peak < 40 << 20
    assert not session.store.changes.objects
    assert not session.store.changes.records
    with Session(session.path, read_only=True) as other:
        for n, task in enumerate(other):
            assert (task.extra == {"x": n}) if inside else (task.mesh == "edited")


def test_loops_that_are_left_hold_no_memory(session: Session) -> None:
    session.add_many(Simulation(steps=n) for n in range(1500))
    alive: weakref.WeakSet[Task] = weakref.WeakSet()
    with session.edit() as tasks:
        for _ in range(300):
            for task in tasks:
                alive.add(task)
                break
            else:
                raise AssertionError
        del task
        gc.collect()
        assert len(alive) < 10


# -- update -------------------------------------------------------------------


def test_update_sets_fields_of_a_selection(session: Session, ids: list[str]) -> None:
    held = session.load(ids[1])
    assert session.update(session.select(where="steps < 3"), state="RUNNING", mesh="m") == 3
    assert (held.state, held.mesh, held.changed) == ("RUNNING", "m", False)
    there = list(on_disk(session).values())
    assert [task.mesh for task in there] == ["m"] * 3 + [""] * 7
    assert [[event.state for event in task.events] for task in there[:4]] == [["NEW", "RUNNING"]] * 3 + [["NEW"]]
    assert session.stats() == {"NEW": 7, "RUNNING": 3}
    assert session.update(session.select(state="RUNNING"), state="NEW") == 3
    assert session.update(session.select(name="no such"), state="NEW") == 0
    assert session.stats() == {"NEW": 10}


def test_update_refuses_what_a_task_has_not_got(session: Session, ids: list[str]) -> None:
    session.add(Task(jobname="no mesh"))
    with pytest.raises(InvalidArgument, match="meshh") as raised:
        session.update(session.select(), meshh="m")
    assert "nothing is saved" in raised.value.__notes__[0]
    with pytest.raises(InvalidArgument, match=r"mesh"):
        session.update(session.select(), mesh="m")
    for name in ("persistent_id", "events", "set_state", "changed", "__class__", "_stamp"):
        with pytest.raises(InvalidArgument, match=name):
            session.update(session.select(), **{name: "m"})
    with pytest.raises(InvalidArgument, match="state"):
        session.update(session.select(), state="")
    session.save_all()
    assert all(getattr(task, "mesh", "") == "" for task in on_disk(session).values())


def test_update_takes_a_selection_of_this_session_alone(make_session: MakeSession, session: Session) -> None:
    other = make_session("other", store_or_url=None)
    other.add(Task())
    for wrong in (other.select(), session, list(session), "Task.1", None):
        with pytest.raises(InvalidArgument, match="select"):
            session.update(wrong, state="RUNNING")  # type: ignore[arg-type]
    assert other.stats() == {"NEW": 1}


def test_update_of_many_is_whole_inside_a_transaction(session: Session) -> None:
    session.add_many(Simulation() for _ in range(PART + 100))
    with pytest.raises(RuntimeError), session.transaction():
        session.update(session.select(), steps=1)
        raise RuntimeError
    assert set(steps_on_disk(session)) == {0}
    assert session.update(session.select(), steps=1) == PART + 100
    assert set(steps_on_disk(session)) == {1}


def test_update_of_placeholders_sets_their_fields(session: Session) -> None:
    gone = attrs.make_class("Gone", {"size": attrs.field(default=1)}, bases=(Task,), slots=True, eq=False)
    id_ = session.add(gone())
    del gone
    session.store.invalidate_cache()
    with Session(session.path) as other:
        gc.collect()
        assert other.update(other.select(), size=2) == 1
    assert on_disk(session)[id_].size == 2


# -- set_state ----------------------------------------------------------------


WHEN = datetime(2031, 5, 1, 12, 30, 15, 250000, tzinfo=UTC)


@pytest.mark.parametrize(
    "when",
    [
        WHEN,
        WHEN.astimezone(timezone(timedelta(hours=5))),
        WHEN.astimezone().replace(tzinfo=None),
        WHEN.timestamp(),
    ],
    ids=["UTC", "other zone", "naive", "seconds"],
)
def test_set_state_notes_the_time_that_it_is_told(session: Session, when: datetime | float) -> None:
    task = Simulation()
    id_ = session.add(task)
    task.set_state("RUNNING", time=when)
    assert task.changed
    session.save_all()
    back = on_disk(session)[id_]
    assert back.state == "RUNNING"
    assert [event.state for event in back.events] == ["NEW", "RUNNING"]
    assert back.events[1].time == WHEN
    assert session.stats() == {"RUNNING": 1}


def test_set_state_without_a_time_is_now_and_notes_the_same_state_again() -> None:
    task = Task(history=[[1.0, "NEW"]])
    before = time.time()
    task.set_state("NEW")
    task.set_state("NEW", 5)
    assert [state for _, state in task.history] == ["NEW"] * 3
    assert before <= task.history[1][0] <= time.time()
    assert task.history[2] == [5.0, "NEW"]
    assert type(task.history[2][0]) is float
    task.state = "NEW"
    assert len(task.history) == 3


@pytest.mark.parametrize("state", ["", None, 3, b"RUNNING"])
def test_set_state_refuses_what_is_no_state(state: Any) -> None:
    task = Task()
    history = [list(event) for event in task.history]
    with pytest.raises(InvalidArgument, match="state"):
        task.set_state(state)
    assert (task.state, task.history) == ("NEW", history)


@pytest.mark.parametrize("when", ["now", True, object(), math.nan, math.inf, 1e20, timedelta(1), b""])
def test_set_state_refuses_what_is_no_time(when: Any) -> None:
    task = Task()
    history = [list(event) for event in task.history]
    with pytest.raises(InvalidArgument, match="time"):
        task.set_state("RUNNING", time=when)
    assert (task.state, task.history) == ("NEW", history)


def test_set_state_runs_the_hooks_of_a_class(session: Session) -> None:
    seen: list[str] = []

    def hook(task: Any, attribute: attrs.Attribute[str], value: str) -> str:
        seen.append(value)
        return value

    @attrs.define
    class Hooked(Task):
        state: str = attrs.field(default="NEW", on_setattr=hook, kw_only=True)

    task = Hooked()
    id_ = session.add(task)
    task.set_state("RUNNING", time=7)
    assert seen == ["RUNNING"]
    session.save_all()
    back = session.load(id_)
    assert (back.state, back.history[-1]) == ("RUNNING", [7.0, "RUNNING"])
    assert session.stats() == {"RUNNING": 1}


# -- get, load ----------------------------------------------------------------


def test_get_gives_a_task_of_the_session_or_the_default(session: Session, ids: list[str]) -> None:
    task = session.load(ids[0])
    assert session.get(ids[0]) is task
    assert session.get(ids[0], "default") is task
    outside = session.save(Task())
    session.forget(ids[1])
    session.remove(ids[2])
    for id_ in (
        "Task.99999",
        "no ID",
        "",
        outside,
        ids[1],
        ids[2],
        "Simulation." + outside.partition(".")[2],
        None,
        3,
    ):
        assert session.get(id_) is None  # type: ignore[arg-type]
        assert session.get(id_, "default") == "default"  # type: ignore[arg-type]
    with pytest.raises(NotInSession):
        session[outside]
    session.close()
    with pytest.raises(ClosedError):
        session.get(ids[0], None)


def test_load_of_a_kind_gives_that_kind_or_raises(session: Session) -> None:
    ids = {cls: session.save(cls()) for cls in (Task, Simulation, Sweep, Note)}
    for cls, id_ in ids.items():
        assert type(session.load(id_, cls)) is cls
        assert type(session.load(id_, kind=cls)) is cls
    assert type(session.load(ids[Simulation], Task)) is Simulation
    for cls, id_ in ((Sweep, ids[Simulation]), (Simulation, ids[Task]), (Task, ids[Note])):
        with pytest.raises(LoadError, match=f"{id_} is a .*not a {cls.__name__}"):
            session.load(id_, cls, add=True)
    assert len(session) == 0
    session.load(ids[Simulation], Simulation, add=True)
    assert list(session.ids()) == [ids[Simulation]]
    with pytest.raises(NotFound):
        session.load("Task.99999", Task)


def test_load_of_a_kind_refuses_a_placeholder(session: Session) -> None:
    gone = attrs.make_class("Gone", {}, bases=(Task,), slots=True, eq=False)
    with Session(session.path) as other:
        id_ = other.add(gone())
    del gone, other
    gc.collect()
    assert type(session.load(id_, Task)) is GenericTask
    with pytest.raises(LoadError, match="GenericTask"):
        session.load(id_, Simulation)


@pytest.mark.parametrize("kind", ["Simulation", 3, int, (Simulation, Task)])
def test_load_of_what_is_no_kind_is_refused(session: Session, ids: list[str], kind: Any) -> None:
    with pytest.raises(InvalidArgument, match="kind"):
        session.load(ids[0], kind)


# -- save(flush=False) --------------------------------------------------------


def test_save_without_flush_is_seen_here_at_once_and_there_after_the_flush(
    session: Session, ids: list[str]
) -> None:
    task = session.load(ids[0])
    task.steps, task.state = 7, "RUNNING"
    assert session.save(task, flush=False) == ids[0]
    assert not task.changed
    assert session.stats() == {"NEW": 9, "RUNNING": 1}
    del task
    gc.collect()
    assert session.load(ids[0]).steps == 7
    assert on_disk(session)[ids[0]].steps == 0
    session.flush()
    assert on_disk(session)[ids[0]].steps == 7


def test_save_without_flush_of_a_new_object_gives_it_an_id_and_adds_it_to_no_session(session: Session) -> None:
    note = Note(text="t")
    id_ = session.save(note, flush=False)
    assert note.persistent_id == id_
    assert session.load(id_) is note
    assert note not in session
    session.close()
    with Session(session.path, read_only=True) as other:
        assert other.load(id_).text == "t"
        assert len(other) == 0


def test_saves_without_flush_follow_one_another(session: Session, ids: list[str]) -> None:
    task = session.load(ids[0])
    for n in range(5):
        task.steps = n
        session.save(task, flush=False)
    session.save(task, flush=False)
    session.flush()
    assert on_disk(session)[ids[0]].steps == 4


def test_save_without_flush_that_fails_stages_nothing(session: Session, ids: list[str]) -> None:
    task = session.load(ids[0])
    task.steps = 7
    session.save(task, flush=False)
    task.steps, task.extra = 8, {"bad": print}
    with pytest.raises(UnstorableValue):
        session.save(task, flush=False)
    session.flush()
    assert on_disk(session)[ids[0]].steps == 7
    assert task.changed
    session.refresh(task)
    assert (task.steps, task.extra) == (7, {})


def test_conflict_of_a_save_without_flush_comes_with_the_flush(session: Session, ids: list[str]) -> None:
    task = session.load(ids[0])
    task.steps = 7
    session.save(task, flush=False)
    with Session(session.path) as other:
        other.load(ids[0]).mesh = "theirs"
        other.save_all()
    with pytest.raises(ConflictError) as raised:
        session.flush()
    assert raised.value.ids == (ids[0],)
    session.refresh(task)
    assert (task.mesh, task.steps) == ("theirs", 0)
    session.flush()
    task.steps = 8
    session.save(task, flush=False, force=True)
    session.flush()
    assert (on_disk(session)[ids[0]].mesh, on_disk(session)[ids[0]].steps) == ("theirs", 8)
