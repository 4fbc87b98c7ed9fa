"""Selecting: what is given is what a plain loop over all tasks would give, and only what may fit is read."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from children import run_python
from examples import Note, Simulation, Sweep
from gc3session import Condition, InvalidArgument, LoadError, Session, Task, TemporarySession
from gc3session.store.record_view import StoredTask, UnreadableTask
from raw_tables import damage

ON_EVERY_STORE = True
START = datetime(2026, 11, 25, tzinfo=UTC)

states = st.sampled_from(["NEW", "RUNNING", "DONE"])
held = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, float("nan"), "a", "ab", "", "2"])
times = st.integers(0, 4)


@st.composite
def tasks(draw: st.DrawFn) -> Any:
    """Return one of several classes, with few different values in its fields."""
    kind = draw(st.sampled_from([Task, Simulation, Sweep, Note]))
    if kind is Note:
        return Note(text=draw(st.sampled_from(["a", "b"])), about=draw(held))
    history = [[START.timestamp() + seconds, "NEW"] for seconds in sorted(draw(st.lists(times, max_size=2)))]
    extra = draw(st.dictionaries(st.sampled_from("xyz"), held))
    return kind(jobname=draw(st.text("ab", max_size=3)), state=draw(states), history=history, extra=extra)


COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
FIELDS = ["extra.x", "extra.y", "state", "jobname", "returncode", "about", "history.0.0"]
conditions = st.tuples(
    st.sampled_from(FIELDS), st.sampled_from([*COMPARE]), held.filter(lambda v: v == v)
) | st.tuples(st.just("state"), st.sampled_from(["=", "!="]), states)

MISSING = object()


def value_at(task: Any, path: str) -> Any:
    """Return what is at one of FIELDS, as a plain program would find it."""
    first, *rest = path.split(".")
    value = getattr(task, first, MISSING)
    for part in rest:
        if isinstance(value, dict):
            value = value.get(part, MISSING)
        elif isinstance(value, list) and value:
            value = value[int(part)]
        else:
            value = MISSING
    return value


def kind_of(value: Any) -> type:
    return float if type(value) is int else type(value)


def plainly(task: Any, path: str, sign: str, value: Any) -> bool:
    """Return whether a task fulfils a condition, in the plainest words."""
    found = value_at(task, path)
    if found is MISSING:
        return False
    if found is None or value is None:
        return {"=": found is value, "!=": found is not value}.get(sign, False)
    return kind_of(found) is kind_of(value) and bool(COMPARE[sign](found, value))


@st.composite
def asked(draw: st.DrawFn) -> tuple[dict[str, Any], Callable[[Any], bool]]:
    """Return arguments of `select`, and what they mean."""
    arguments: dict[str, Any] = {}
    tests: list[Callable[[Any], bool]] = []
    names = ["state", "name", "id", "kind", "where", "since", "before", "returncode"]
    wanted = draw(st.lists(st.sampled_from(names), max_size=3))

    def ask(name: str, strategy: st.SearchStrategy[Any], test: Callable[[Any, Any], bool]) -> None:
        if name in wanted:
            value = arguments[name] = draw(strategy)
            tests.append(lambda task: test(task, value))

    def since(task: Any, seconds: int, sign: Callable[[Any, Any], bool]) -> bool:
        history = getattr(task, "history", None)
        return bool(history) and sign(history[-1][0], START.timestamp() + seconds)

    ask("state", st.lists(states, max_size=2), lambda task, value: getattr(task, "state", None) in value)
    ask(
        "name",
        st.sampled_from(["a", "^b", "b$", ""]),
        lambda t, v: bool(re.search(v, getattr(t, "jobname", "\n"))) and hasattr(t, "jobname"),
    )
    ask("id", st.sampled_from(["1", "^Task", "[02468]$"]), lambda t, v: bool(re.search(v, t.persistent_id)))
    ask(
        "kind",
        st.sampled_from(["Task", "Simulation", "examples:Sweep", "Note"]),
        lambda t, v: v.endswith(type(t).__name__),
    )
    ask("where", st.lists(conditions, max_size=2), lambda t, v: all(plainly(t, *one) for one in v))
    ask("since", times, lambda t, v: since(t, v, operator.ge))
    ask("before", times, lambda t, v: since(t, v, operator.lt))
    ask("returncode", st.none(), lambda t, v: hasattr(t, "returncode"))
    for name in ("since", "before"):
        if name in arguments:
            arguments[name] = START + timedelta(seconds=arguments[name])
    if "where" in arguments:
        arguments["where"] = [Condition(*one) for one in arguments["where"]]
    return arguments, lambda task: all(test(task) for test in tests)


@given(data=st.data(), some=st.lists(tasks(), max_size=12), flush=st.booleans())
def test_select_gives_what_a_plain_filter_would(
    shared_session: Session, data: st.DataObject, some: list[Any], flush: bool
) -> None:
    session = TemporarySession(shared_session.store)
    session.add_many(some, flush=flush)
    expected = [task.persistent_id for task in some]
    assert [task.persistent_id for task in session] == expected
    for _ in range(3):
        arguments, fits = data.draw(asked())
        expected = [task.persistent_id for task in some if fits(task)]
        assert [task.persistent_id for task in session.select(**arguments)] == expected
        assert list(session.select(**arguments).ids()) == expected
        assert [task.persistent_id for task in session.select(**arguments).stored()] == expected
    session.close()


def test_several_states_come_in_the_order_of_adding_over_chunks(session: Session) -> None:
    given = "A" * 1500 + "ABC" * 500 + "C" * 700 + "AC" * 50
    ids = session.add_many(Task(state=state) for state in given)
    expected = [id_ for id_, state in zip(ids, given, strict=True) if state != "B"]
    assert list(session.select(state=["A", "C"]).ids()) == expected
    assert [task.persistent_id for task in session.select(where="state in A,C")] == expected


def test_only_records_in_the_states_are_read(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with Session(path) as session:
        bad, good = session.add_many([Task(state="BAD"), Task(state="GOOD", jobname="b")])
    damage(path, bad)
    session = Session(path, read_only=True)
    for arguments in (
        {"state": "GOOD"},
        {"where": "state = GOOD"},
        {"id": rf"^{good}$"},
        {"state": ["GOOD", "NEW"]},
    ):
        assert [task.persistent_id for task in session.select(**arguments)] == [good]
    assert list(session.select(state="BAD").ids()) == [bad]  # the index knows it
    selected = session.select(name="b")
    with pytest.raises(LoadError, match=bad):
        next(selected)
    assert next(selected).persistent_id == good
    ids = session.select(name="b").ids()
    with pytest.raises(LoadError, match=bad):
        next(ids)
    assert list(ids) == [good]
    unreadable, readable = session.select(name="b").stored()
    assert isinstance(unreadable, UnreadableTask)
    assert isinstance(readable, StoredTask)
    assert unreadable.persistent_id == bad
    session.close()


def test_a_persistable_with_a_field_state_is_found_by_a_condition(tmp_path: Path) -> None:
    script = """
        import sys, attrs
        from gc3session import Persistable, Session, Task
        @attrs.define
        class Light(Persistable):
            state: str = 'red'
        with Session(sys.argv[1]) as session:
            session.add_many([Light(), Task(state='red'), Light(state='green')])
            assert [t.persistent_id for t in session.select(where='state = red')] == ['Light.1', 'Task.2']
            assert list(session.select(where='state in red,blue').ids()) == ['Light.1', 'Task.2']
            assert list(session.select('red', where='state = red').ids()) == ['Task.2']
            assert list(session.select('red', where='state = green').ids()) == []
    """
    run_python(script, tmp_path / "session")


def test_select_by_class(session: Session) -> None:
    ids = session.add_many([Task(), Simulation(), Sweep(), Note(), Simulation()])
    for kind, places in {
        "Simulation": [1, 4],
        "examples:Simulation": [1, 4],
        Simulation: [1, 4],
        Task: [0],
        ("Note", Sweep): [2, 3],
        "nothing": [],
    }.items():
        assert list(session.select(kind=kind).ids()) == [ids[place] for place in places]  # type: ignore[arg-type]


def test_values_whose_comparison_is_no_yes_or_no_are_unlike(session: Session) -> None:
    numpy = pytest.importorskip("numpy")
    session.add(Task(jobname="array", extra={"x": numpy.arange(3)}))
    session.add(Task(jobname="void", extra={"x": numpy.zeros(3, "V8")}))
    session.add(Task(jobname="plain", extra={"x": 3}))
    assert [task.jobname for task in session.select(extra={"x": 3})] == ["plain"]


def test_wrong_arguments_are_told(session: Session) -> None:
    for arguments in (
        {"state": 5},
        {"state": [5]},
        {"name": "("},
        {"id": "["},
        {"kind": 5},
        {"kind": int},
        {"where": "nonsense"},
        {"where": [5]},
        {"since": "some day"},
        {"before": 5},
    ):
        with pytest.raises((InvalidArgument, TypeError)):
            session.select(**arguments)  # type: ignore[arg-type]


def test_stored_tasks_load_nothing_that_they_refer_to(session: Session) -> None:
    inner = [Task(jobname=str(i)) for i in range(5)]
    session.add(Sweep(tasks=[*inner]))
    ids = [task.persistent_id for task in inner]
    del inner
    session.store.invalidate_cache()
    (sweep,) = session.select(name="^$").stored()
    assert isinstance(sweep, StoredTask)
    assert [part.persistent_id for part in sweep.parts] == ids
    assert [part.read().fields["jobname"] for part in sweep.parts] == list("01234")
    assert session.store.loader.live == {}
