"""Conditions: like is compared with like, whatever is in a task, and nothing that is in one makes them fail."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from children import run_python
from examples import Access, Colour, Note, Point, Simulation
from gc3session import Condition, InvalidArgument, Session, Task, TaskCollection
from gc3session.query.conditions import OPERATORS
from gc3session.query.field_path import MISSING, FieldPath
from gc3session.query.times import aware, duration, moment
from gc3session.store.record_view import StoredTask
from test_values import values

MOMENT = 1_600_000_000.25  # 2020-09-13 12:26:40.250 UTC
WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=2)))

TASK: dict[str, Any] = {
    "jobname": "17",
    "state": "RUNNING",
    "returncode": 3,
    "history": [[0.0, "NEW"], [MOMENT, "RUNNING"]],
    "mesh": "null",
    "extra": {
        "n": None,
        "flag": True,
        "half": 0.5,
        "tenth": Decimal("0.1"),
        "third": Fraction(1, 3),
        "nan": float("nan"),
        "snan": Decimal("sNaN"),
        "huge": 10**5000,
        "text": "two words, and more",
        "empty": "",
        "bytes": b"abc",
        "complex": 1 + 2j,
        "aware": WHEN,
        "naive": datetime(2026, 3, 4, 5, 6, 7),
        "date": date(2026, 3, 4),
        "time": time(5, 6),
        "span": timedelta(minutes=90),
        "path": Path("/data/a.dat"),
        "uuid": UUID(int=5),
        "colour": Colour.RED,
        "access": Access.READ | Access.WRITE,
        "point": Point(1, {"deep": [10, 20, 30]}),
        "list": [1, "two", None, [3]],
        "tuple": (1, 2),
        "set": {"a", "b"},
        "a.b": {"c d": 1, "=": 2},
        5: "five",
        "6": "text six",
        6: "number six",
        "array": None,
    },
}

FITTING = """
    jobname = 17
    jobname == '17'
    jobname != 18
    jobname < 2
    NAME ~ ^1
    state = RUNNING
    STATE=RUNNING
    state in NEW, RUNNING
    state in 'RUNNING'
    state not in NEW,'TERMINATED'
    state !~ TERM
    returncode = 3
    returncode = 3.0
    returncode > 2.5
    returncode >= 3
    returncode <= 3
    returncode < 1e3
    returncode in 1,3
    returncode not in 1, 2
    returncode != null
    mesh = null
    mesh != 'nil'
    history.-1.1 = RUNNING
    history.0.0 = 0
    extra.n = null
    extra.flag = true
    extra.flag != false
    extra.half = 0.5
    extra.tenth = 0.1
    extra.tenth < 0.2
    extra.third = 1/3
    extra.third < 0.34
    extra.huge > 5
    extra.text has words
    extra.text lacks three
    extra.text = 'two words, and more'
    extra.text = two words, and more
    extra.text in 'two words, and more', x
    extra.text ~ "and more$"
    extra.empty = ''
    extra.empty != x
    extra.bytes = abc
    extra.complex = 1+2j
    extra.aware > 2026-03-04
    extra.aware = 2026-03-04T03:06:07+00:00
    extra.naive = 2026-03-04T05:06:07
    extra.naive < 2026-03-05
    extra.date = 2026-03-04
    extra.date != 2026-03-05
    extra.time < 06:00
    extra.span = 1h30m
    extra.span > 90s
    extra.path ~ [.]dat$
    extra.path = /data/a.dat
    extra.uuid ~ 5$
    extra.colour = RED
    extra.colour in RED,GREEN
    extra.access = 3
    extra.point.x = 1
    extra.point.y.deep.-1 = 30
    extra.point.y has deep
    extra.list has two
    extra.list has 1
    extra.list has null
    extra.list lacks 3
    extra.list.3.0 = 3
    extra.tuple.1 = 2
    extra.tuple has 2
    extra.set has a
    extra.set lacks c
    extra has a.b
    extra has 5
    extra."a.b"."c d" = 1
    extra.'a.b'."=" = 2
    extra.5 = five
    extra.6 = text six
    ID ~ Simulation
    CLASS = examples:Simulation
    LAST EVENT > 2020-09-13
    LAST EVENT < 2 days ago
"""
FITTING = FITTING.replace("    extra.aware < '2026\n", "").replace(
    "    LAST EVENT < '2 days ago\n", "    LAST EVENT < 2 days ago\n"
)

UNFITTING = """
    jobname = ' 17'
    jobname > 2
    state = running
    state not in RUNNING,NEW
    returncode != 3
    returncode = three
    returncode != three
    returncode = '3'
    returncode < null
    returncode not in a,b
    returncode ~ 3
    returncode !~ 4
    returncode has 3
    returncode lacks 3
    returncode = true
    steps > 0
    nothing = null
    nothing != null
    nothing.at.all = 1
    extra.nothing != 5
    extra.nothing lacks 5
    extra.n = 0
    extra.n != null
    extra.flag = 1
    extra.flag = yes
    extra.nan = nan
    extra.nan < 1
    extra.nan >= 1
    extra.snan < 1
    extra.snan != 1
    extra.complex < 2j
    extra.complex > 0
    extra.aware > yesterday
    extra.aware = noon
    extra.naive > tomorrow
    extra.date > 5
    extra.span > 2026-01-01
    extra.point = 1
    extra.point != 1
    extra.point.z = 1
    extra.list = 1
    extra.list.9 = 1
    extra.list.-9 = 1
    extra.list.two = two
    extra.list.'0' = 1
    extra.tuple has 3
    extra.set.0 = a
    extra.text.0 = t
    extra.6 = number six
    extra.a.b = 1
    ID.x = 1
    LAST EVENT > 2020-09-14
"""


@pytest.fixture
def task(session: Session) -> Simulation:
    task = Simulation(steps=0, **TASK)
    session.add(task)
    return task


def stored(session: Session) -> StoredTask:
    """Return the session's task as its record has it."""
    (found,) = session.select().stored()
    assert isinstance(found, StoredTask)
    return found


@pytest.mark.parametrize("text", [line.strip() for line in FITTING.strip().splitlines()])
def test_condition_fits(session: Session, task: Simulation, text: str) -> None:
    assert Condition.parse(text).fits(task)
    assert Condition.parse(text).fits(stored(session))


@pytest.mark.parametrize("text", [line.strip() for line in UNFITTING.strip().splitlines()])
def test_condition_does_not_fit(session: Session, task: Simulation, text: str) -> None:
    assert not Condition.parse(text).fits(task)
    assert not Condition.parse(text).fits(stored(session))


def test_conditions_fit_as_well_without_the_classes(session: Session, task: Simulation) -> None:
    session.close()
    script = """
        import sys
        from gc3session import Condition, GenericTask, Session
        with Session(sys.argv[1], read_only=True) as session:
            (task,), (stored,) = session, session.select().stored()
            assert type(task) is GenericTask
            for text in sys.argv[2:]:
                condition = Condition.parse(text)
                print(condition.fits(task), condition.fits(stored))
    """
    texts = [line.strip() for part in (FITTING, UNFITTING) for line in part.strip().splitlines()]
    fitting = len(FITTING.strip().splitlines())
    printed = run_python(script, session.path, *texts).splitlines()
    assert [text for text, line in zip(texts[:fitting], printed, strict=False) if line != "True True"] == []
    assert [
        text for text, line in zip(texts[fitting:], printed[fitting:], strict=True) if line != "False False"
    ] == []


def test_condition_of_values_compares_exactly(task: Simulation) -> None:
    def fits(path: str, operator: str, value: Any) -> bool:
        return Condition(path, operator, value).fits(task)

    assert fits("returncode", "=", 3)
    assert not fits("returncode", "=", "3")
    assert not fits("jobname", "=", 17)
    assert fits("extra.aware", "<", datetime.now(UTC))
    assert not fits("extra.naive", "<", datetime.now(UTC))
    assert fits("extra.list", "=", [1, "two", None, [3]])
    assert not fits("extra.list", "!=", [1, "two", None, [3]])
    assert not fits("extra.list", "!=", (1, 2))
    assert fits("extra.n", "=", None)
    assert fits("returncode", "in", {1, 2, 3})
    assert fits("extra.colour", "=", Colour.RED)
    assert fits("extra.list", "has", None)
    assert not fits("extra.list", "has", True)  # which is 1 elsewhere
    assert fits("extra.text", "~", "^two")


def test_path_leads_through_references(session: Session) -> None:
    child = Task(jobname="child", extra={"seconds": 40})
    parent = TaskCollection(tasks=[child])
    note = Note(about=parent)
    session.add(note)
    for text, fits in {
        "about.tasks.0.extra.seconds > 30": True,
        "about.tasks.0.jobname = other": False,
        "about.tasks.1.jobname != x": False,
        f"about.tasks has {child.persistent_id}": True,
        f"about = {parent.persistent_id}": True,
        "text = ''": True,
        "LAST EVENT > 1970-01-01": False,
        "NAME != x": False,
    }.items():
        assert Condition.parse(text).fits(note) is fits, text
        assert Condition.parse(text).fits(stored(session)) is fits, text


@pytest.mark.parametrize(
    ("text", "why"),
    {
        "": "FIELD OPERATOR VALUE",
        "state": "FIELD OPERATOR VALUE",
        "= 5": "FIELD OPERATOR VALUE",
        "a b = 5": "FIELD OPERATOR VALUE",
        "a..b = 5": "FIELD OPERATOR VALUE",
        "state inNEW": "FIELD OPERATOR VALUE",
        "state =": "no value after '='",
        "state in ": "no value after 'in'",
        "state in NEW,,OLD": "between commas",
        "state in NEW,": "between commas",
        "jobname ~ (": "not a regular expression",
    }.items(),
)
def test_wrong_condition_is_told(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        Condition.parse(text)


def test_wrong_operators_and_operands_are_told() -> None:
    for arguments in (("state", "is", 1), ("state", "in", "RUNNING"), ("state", "~", 5), ("a b", "=", 1)):
        with pytest.raises(InvalidArgument):
            Condition(*arguments)


def test_conditions_are_values() -> None:
    assert Condition.parse("a  =  5") == Condition.parse("a=5") != Condition.parse("a=6")
    assert Condition("state", "==", "NEW") == Condition("state", "=", "NEW")


@given(
    st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10),
    st.sampled_from([op for op in OPERATORS if op not in ("~", "!~")]),
    st.one_of(
        st.text(min_size=1).filter(lambda t: t.strip()), st.sampled_from(["null", "5", "true", "2026-01-01", "2h"])
    ),
    values,
)
def test_no_value_makes_a_condition_fail(held: Any, operator: str, text: str, value: Any) -> None:
    task = Task(extra={"v": held, "w": [held]})
    several = operator in ("in", "not in")
    for path in ("extra.v", "extra.v.0", "extra.w", "extra"):
        assert Condition(path, operator, [value] if several else value).fits(task) in (True, False)
        quoted = "'" + text.replace("'", "") + "x'"
        for written in (quoted, *([] if several or not text.strip() else [text])):
            assert Condition.parse(f"{path} {operator} {written}").fits(task) in (True, False)


@given(
    st.integers() | st.floats() | st.text() | st.none() | st.booleans(), st.integers() | st.floats(allow_nan=False)
)
def test_an_order_and_its_contrary_never_both_fit(held: Any, value: Any) -> None:
    task = Task(extra={"v": held})
    for one, other in (("=", "!="), ("<", ">="), (">", "<="), ("has", "lacks")):
        both = [Condition("extra.v", operator, value).fits(task) for operator in (one, other)]
        assert both != [True, True]
        if type(held) in (int, float) and held == held and one not in ("has",):
            assert any(both)


# -- times --------------------------------------------------------------------

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    {
        "now": 0,
        "2h": 7200,
        "2 hours ago": 7200,
        "90 min": 5400,
        "1h30m": 5400,
        "1 day 2 hours ago": 93600,
        "1.5d": 129600,
        "3 WEEKS ago": 3 * 604800,
    }.items(),
)
def test_time_ago(text: str, ago: int) -> None:
    assert moment(text, NOW) == NOW - timedelta(seconds=ago)


def test_dates_and_words_are_local() -> None:
    assert moment("2026-11-24", NOW) == datetime(2026, 11, 24)
    assert aware("2026-11-24 18:30", NOW) == datetime(2026, 11, 24, 18, 30).astimezone()
    assert aware("2026-11-24T18:30:00+05:00", NOW) == datetime(2026, 11, 24, 13, 30, tzinfo=UTC)
    today = NOW.astimezone().replace(hour=0, minute=0)
    assert aware("today", NOW) == today
    assert aware("yesterday", NOW) == today - timedelta(days=1)
    assert aware(timedelta(hours=1), NOW) == NOW - timedelta(hours=1)


@pytest.mark.parametrize("text", ["", "ago", "2", "2 moons ago", "h", "25:00", "9" * 20 + "w", "2h ago now"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(InvalidArgument, match="2 hours ago"):
        moment(text, NOW)
    with pytest.raises(InvalidArgument):
        duration(text)
    with pytest.raises(InvalidArgument):
        aware(5, NOW)  # type: ignore[arg-type]


def test_a_path_that_leads_nowhere_is_missing(task: Simulation) -> None:
    assert FieldPath.parse("extra.nothing").of(task) is MISSING
    assert FieldPath.parse("extra.list.0").of(task) == 1
    for text in ("", "a b", "a.", ".a", "a,b"):
        with pytest.raises(InvalidArgument):
            FieldPath.parse(text)
