"""Values: whatever is stored comes back equal in type and value; what can't be stored is refused."""

from __future__ import annotations

import collections
import decimal
import functools
import math
import pathlib
import socket
import string
import sys
import types
import weakref
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from children import run_python
from examples import Access, Bits, Celsius, Colour, Grid, Level, Mode, Note, Outer, Point, Simulation, Sweep
from gc3session import Persistable, Session, Task, TaskCollection, UnstorableValue
from sameness import picture, same

ON_EVERY_STORE = True

# -- strategies ---------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates, too
fixed_zones = st.one_of(
    st.just(UTC),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
    st.builds(
        timezone,
        st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes)),
        st.text(string.ascii_letters, min_size=1),
    ),
)
zones = st.one_of(st.none(), fixed_zones, st.timezones())
paths = st.builds(
    lambda cls, parts: cls(*parts),
    st.sampled_from([PosixPath, PurePosixPath, PureWindowsPath]),
    st.lists(st.text(st.characters(exclude_characters="\0"))),
)
enums = st.one_of(
    st.sampled_from([*Colour, *Level, *Mode, *Outer.Inner, *Celsius]),
    st.integers(0, 7).map(Access),
    st.integers(0, 255).map(Bits),
)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**2000), 2**2000),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 2**127, -(2**127)]),
    st.floats(),
    st.complex_numbers(),
    any_text,
    st.binary(),
    st.datetimes(timezones=zones),
    st.builds(lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=zones), st.integers(0, 1)),
    st.dates(),
    st.times(timezones=st.one_of(st.none(), fixed_zones)),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    paths,
    enums,
)


def hashable(value: Any) -> bool:
    """Return whether *value* can be a key; a signalling nan can't, nor what holds one."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


keys = st.recursive(
    plain.filter(hashable),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple), st.frozensets(inner, max_size=4), st.builds(Point, inner, inner)
    ),
    max_leaves=6,
)
values = st.recursive(
    st.one_of(plain, keys),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(keys, inner, max_size=5),
        st.sets(keys, max_size=5),
        st.builds(Point, inner, inner),
        st.builds(Grid, st.text(), st.lists(inner, max_size=3)),
    ),
    max_leaves=20,
)

ONE_OF_EACH: list[Any] = [
    None, True, 0, -1, 2**64, -(2**64), 10**400, 0.1, -0.0, math.inf, -math.inf, 1e-320, 1 - 2j, complex(-0.0, math.inf),
    "", "naïve ☃ \U0001f40d", "\ud800 alone", "nul \0", b"", b"\0\xff", [], [[1], (2,)], (), ((), []), {}, set(),
    frozenset(), {1, "a", None, (2, b"b")}, frozenset({frozenset(), frozenset({1})}),
    {None: 1, True: 2, 2.5: 3, b"k": 4, "k": 5, (1, (2,)): 6, frozenset({7}): 7, Point(8): 8, Colour.RED: 9, 2j: 10},
    datetime(2024, 2, 29, 23, 59, 59, 999999), datetime.min, datetime.max, datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Zurich")),
    datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Zurich")),
    datetime(1900, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30, seconds=15, microseconds=3), "odd")),
    date(1, 1, 1), time(1, 2, 3, 4, fold=1), time(1, tzinfo=UTC), time(1, tzinfo=ZoneInfo("Asia/Kathmandu")),
    timedelta.min, timedelta.max, timedelta(microseconds=-1),
    Decimal("1.10"), Decimal("-0"), Decimal("1E+999999"), Decimal("NaN"), Decimal("-sNaN123"), Decimal("-Infinity"),
    Fraction(-22, 7), UUID(int=1), PosixPath("/a/b"), PurePosixPath("a"), PureWindowsPath("c:\\x"), PosixPath("\udcff"),
    Colour.GREEN, Colour.ALSO_RED, Level.HIGH, Mode.SLOW, Access.READ | Access.RUN, Access(0), Bits(9), Outer.Inner.NESTED,
    Celsius.BODY, Point([1], {2: 3}), Grid("g", [Point(1), Grid("h")], 8),
]  # fmt: skip


# -- fixtures -----------------------------------------------------------------


@pytest.fixture(scope="module")
def again(shared_session: Session) -> Callable[[Any], Any]:
    """A function that stores a value and gives what is loaded in its place."""

    def stored_and_loaded(value: Any) -> Any:
        task = Task(extra={"value": value})
        id_ = shared_session.add(task)
        gone = weakref.ref(task)
        del task
        assert gone() is None, "the saved object is still alive: what is loaded may be itself"
        return shared_session.load(id_).extra["value"]

    return stored_and_loaded


# -- what can be stored -------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@given(value=values)
@example(value=[math.nan, {math.nan: math.nan}, {math.nan}, (math.nan,), complex(math.nan, -math.nan)])
@example(value={1: {2: {3: {(4, (5, (6,))): frozenset({Point(Point(frozenset({7})))})}}}})
def test_any_value_comes_back_equal_in_type_and_value(again: Callable[[Any], Any], value: Any) -> None:
    assert picture(again(value)) == picture(value)


@given(key=keys)
def test_any_hashable_value_can_be_a_key(again: Callable[[Any], Any], key: Any) -> None:
    assert picture(again({key: key})) == picture({key: key})


@pytest.mark.parametrize("number", range(len(ONE_OF_EACH)))
def test_one_of_each_type_comes_back(again: Callable[[Any], Any], number: int) -> None:
    value = ONE_OF_EACH[number]
    assert picture(again(value)) == picture(value)


def test_values_are_the_same_for_another_process(tmp_path: pathlib.Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task(extra={"values": ONE_OF_EACH}))
    script = """
        import sys
        from gc3session import Session
        from sameness import picture
        from test_values import ONE_OF_EACH
        [task] = Session(sys.argv[1], read_only=True)
        for stored, expected in zip(task.extra["values"], ONE_OF_EACH, strict=True):
            assert picture(stored) == picture(expected), (stored, expected)
        print("the same")
    """
    assert run_python(script, tmp_path / "s") == "the same"


def test_order_of_a_dict_is_kept(again: Callable[[Any], Any]) -> None:
    assert list(again({"b": 1, "a": 2, "c": 3})) == ["b", "a", "c"]


def test_enum_members_are_the_members_themselves(again: Callable[[Any], Any]) -> None:
    for member in (*Colour, *Level, *Mode, *Access, *Celsius):
        assert again(member) is member


def test_hash_that_an_attrs_object_caches_is_made_again(again: Callable[[Any], Any]) -> None:
    value = CachesItsHash("x")
    assert hash(again(value)) == hash(value)
    assert again({value: 1}) == {value: 1}


@attrs.frozen(cache_hash=True)
class CachesItsHash:
    text: str


def test_attrs_object_is_given_back_without_running_its_code(again: Callable[[Any], Any]) -> None:
    Watched.calls = 0
    value = Watched(3)
    back = again(value)
    assert (back.number, Watched.calls) == (3, 1)


@attrs.define
class Watched:
    calls = 0
    number: int

    def __attrs_post_init__(self) -> None:
        Watched.calls += 1


def test_attrs_object_of_a_class_inside_a_function_comes_back(again: Callable[[Any], Any]) -> None:
    @attrs.define
    class Local:
        x: int

    assert again(Local(5)) == Local(5)


def test_attrs_subclass_comes_back_as_itself_with_all_fields(again: Callable[[Any], Any]) -> None:
    value = Point3(1, 2, 3)
    assert type(again(value)) is Point3
    assert again(value) == value


@attrs.frozen
class Point3(Point):
    z: int = 0


def test_attrs_exception_comes_back_or_is_refused(again: Callable[[Any], Any]) -> None:
    try:
        back = again(Failure("text", 3))
    except UnstorableValue:
        return
    assert same(back, Failure("text", 3))
    assert back.args == Failure("text", 3).args


@attrs.define
class Failure(Exception):
    text: str
    code: int


def test_depth_of_ordinary_nesting_is_no_limit(again: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(60):
        value = [{"k": (value,)}]
    assert picture(again(value)) == picture(value)


def test_large_values_come_back(again: Callable[[Any], Any]) -> None:
    value = {"bytes": bytes(5_000_000), "text": "ä" * 2_000_000, "list": list(range(200_000)), "int": 7**100_000}
    assert again(value) == value


# -- references ---------------------------------------------------------------


def reload(session: Session, id_: str) -> Any:
    """Return the object as another session reads it."""
    with Session(session.path, read_only=True) as other:
        return other.load(id_)


def test_shared_reference_stays_one_object(session: Session) -> None:
    note = Note(text="shared")
    id_ = session.add(Task(extra={"a": note, "b": [note, (note,)], "c": {note: 1}}))
    extra = reload(session, id_).extra
    assert extra["a"] is extra["b"][0] is extra["b"][1][0] is next(iter(extra["c"]))
    assert extra["a"].text == "shared"


def test_object_that_refers_to_itself_comes_back(session: Session) -> None:
    task = Simulation(mesh="m")
    task.inputs["self"] = task
    back = reload(session, session.add(task))
    assert back.inputs["self"] is back
    assert back.mesh == "m"


def test_cycle_through_three_objects_comes_back(session: Session) -> None:
    a, b, c = Note(text="a"), Note(text="b"), Note(text="c")
    a.about, b.about, c.about = (b,), {"next": c}, [a, a]
    back = reload(session, session.save(a))
    assert [back.text, back.about[0].text, back.about[0].about["next"].text] == ["a", "b", "c"]
    assert back.about[0].about["next"].about[0] is back


def test_references_work_inside_every_container(session: Session) -> None:
    notes = [Note(text=str(i)) for i in range(8)]
    value = [
        notes[0],
        (notes[1],),
        {notes[2]},
        frozenset({notes[3]}),
        {notes[4]: notes[5]},
        Point(notes[6]),
        Grid("g", [notes[7]]),
    ]
    back = reload(session, session.add(Task(extra={"value": value}))).extra["value"]
    found = [back[0], back[1][0], *back[2], *back[3], *back[4], *back[4].values(), back[5].x, back[6].points[0]]
    assert [note.text for note in found] == [str(i) for i in range(8)]


@st.composite
def graphs(draw: st.DrawFn) -> list[Note]:
    """Up to six notes that refer to each other in any way."""
    notes = [Note(text=f"{i}") for i in range(draw(st.integers(1, 6)))]
    reference = st.sampled_from(notes)
    about = st.recursive(
        reference | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(), inner, max_size=3)
        ),
        max_leaves=5,
    )
    for note in notes:
        note.about = draw(about)
    return notes


@given(notes=graphs())
def test_any_graph_of_objects_comes_back_the_same(shared_session: Session, notes: list[Note]) -> None:
    id_ = shared_session.add(Task(extra={"notes": notes}))
    assert picture(reload(shared_session, id_).extra["notes"]) == picture(notes)


# -- NumPy --------------------------------------------------------------------

numpy = pytest.importorskip("numpy")
hnp = pytest.importorskip("hypothesis.extra.numpy")

dtypes = st.one_of(
    hnp.scalar_dtypes(),
    hnp.nested_dtypes(max_leaves=4),
    hnp.nested_dtypes(hnp.scalar_dtypes(), max_leaves=4),
)
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4))
)


@given(array=arrays)
def test_any_array_comes_back_equal_in_type_shape_and_bytes(again: Callable[[Any], Any], array: Any) -> None:
    back = again(array)
    assert type(back) is numpy.ndarray
    assert back.dtype == array.dtype
    assert picture(back) == picture(array)


@given(scalar=dtypes.flatmap(lambda dtype: hnp.arrays(dtype, (1,))).map(lambda array: array[0]))
def test_any_numpy_scalar_comes_back_equal_in_type_and_bytes(again: Callable[[Any], Any], scalar: Any) -> None:
    if not isinstance(scalar, numpy.generic):  # of a subarray dtype
        return
    assert picture(again(scalar)) == picture(scalar)


def numpy_samples() -> list[Any]:
    np = numpy
    return [
        np.float64("nan"), np.float32(-0.0), np.longdouble(1) / 3, np.clongdouble(1j), np.float16(1.5), np.bool_(True),
        np.int8(-1), np.uint64(2**64 - 1), np.complex64(1 - 2j), np.str_("a\0"), np.str_("\ud800"), np.bytes_(b"a\0\0"),
        np.datetime64("2024-02-29T12:00:00.000000001"), np.datetime64("NaT"), np.datetime64("NaT", "ns"),
        np.datetime64("2024", "25Y"), np.timedelta64(5), np.timedelta64(5, "h"), np.void(b"abc"),
        np.array(3), np.array([]), np.zeros((0, 3)), np.zeros((2, 0), "U0"), np.array(["ab\0", "c"]), np.array([b"a\0b"]),
        np.array([1, 2], ">i4"), np.array([1.5], "<f8"), np.array(["x"], ">U3"), np.arange(6).reshape(2, 3).T,
        np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(10)[::3], np.arange(10)[::-1],
        np.array([(1, 2.5)], [("a", "<i2"), ("b", ">f8")]), np.array([(1, [[1, 2], [3, 4]])], [("a", "i1"), ("m", "f4", (2, 2))]),
        np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.zeros(2, np.dtype({"names": ["a", "b"], "formats": ["i2", "i2"], "offsets": [0, 4], "itemsize": 16})),
        np.array([((1, 2), 3)], [("in", [("x", "i4"), ("y", "i4")]), ("z", "i4")])[0],
        np.array(["2024-01-01", "NaT"], "M8[D]"), np.array([1, 2], "m8[ms]"), np.array(b"\0\0", "V2"),
        np.array([True, False]), np.zeros(3, "V0"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(numpy_samples())))
def test_numpy_samples_come_back(again: Callable[[Any], Any], number: int) -> None:
    value = numpy_samples()[number]
    back = again([value, {"k": value}])
    assert picture(back[0]) == picture(value) == picture(back[1]["k"])
    assert back[0].dtype == value.dtype


def test_array_that_was_loaded_can_be_changed(again: Callable[[Any], Any]) -> None:
    array = again(numpy.arange(3))
    array[0] = 7
    assert array.tolist() == [7, 1, 2]


def test_numpy_scalar_is_a_key_like_any_other(again: Callable[[Any], Any]) -> None:
    assert again({numpy.int64(3): "x", numpy.str_("k"): "y"}) == {3: "x", "k": "y"}
    assert [type(key) for key in again({numpy.int64(3): 0, numpy.str_("k"): 0})] == [numpy.int64, numpy.str_]


def test_numpy_types_that_would_change_come_back_or_are_refused(again: Callable[[Any], Any]) -> None:
    records = numpy.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    disordered = numpy.dtype({"names": ["a", "b"], "formats": ["i2", "i2"], "offsets": [4, 0]})
    overlapping = numpy.dtype({"names": ["a", "b"], "formats": ["i2", "i2"], "offsets": [0, 1]})
    titled = numpy.dtype([(("title", "a"), "i2")])
    values = [records, records[0], numpy.ma.array([1], mask=[1]), numpy.char.array(["a"])]
    values += [numpy.zeros(2, dtype) for dtype in (disordered, overlapping, titled)]
    for value in values:
        try:
            back = again(value)
        except UnstorableValue:
            continue
        assert type(back) is type(value)
        assert picture(back) == picture(value)


def test_numpy_is_not_imported_for_a_record_that_holds_it(tmp_path: pathlib.Path) -> None:
    with Session(tmp_path / "s") as session:
        session.add(Task(jobname="np", extra={"array": numpy.arange(3)}))
    script = """
        import sys
        from gc3session import Opaque, Session
        with Session(sys.argv[1]) as session:
            [task] = session
            assert type(task.extra["array"]) is Opaque, task.extra
            assert "numpy" not in sys.modules
            task.jobname = "saved without numpy"
            session.save(task)
    """
    run_python(script, tmp_path / "s")
    with Session(tmp_path / "s") as session:
        [task] = session
        assert task.jobname == "saved without numpy"
        assert picture(task.extra["array"]) == picture(numpy.arange(3))


# -- what can't be stored -----------------------------------------------------


class Pair(NamedTuple):
    a: int
    b: int


class MyInt(int):
    pass


class MyStr(str):
    __slots__ = ()


class MyList(list):  # type: ignore[type-arg]
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


class MyDatetime(datetime):
    pass


class MyPath(pathlib.PurePosixPath):
    pass


class MyFraction(Fraction):
    pass


class Zone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)


class SubPoint(Point):
    """Not decorated itself: what it has of its own would be lost."""


@attrs.define
class Unfinished:
    given: int = 0
    later: int = attrs.field(init=False)


def containing_itself() -> list[Any]:
    value: list[Any] = []
    value.append([{"k": value}])
    return value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = (value,)
    return value


UNSTORABLE: dict[str, Callable[[], Any]] = {
    "object": object,
    "function": lambda: nested,
    "lambda": lambda: lambda: 0,
    "builtin": lambda: len,
    "method": lambda: [].append,
    "class": lambda: Point,
    "module": lambda: math,
    "generator": lambda: (i for i in ()),
    "range": lambda: range(3),
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(b"x"),
    "namedtuple": lambda: Pair(1, 2),
    "int subclass": lambda: MyInt(1),
    "str subclass": lambda: MyStr("x"),
    "list subclass": lambda: MyList([1]),
    "dict subclass": lambda: MyDict(a=1),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "defaultdict": lambda: collections.defaultdict(int),
    "Counter": lambda: collections.Counter("a"),
    "deque": lambda: collections.deque([1]),
    "datetime subclass": lambda: MyDatetime(2024, 1, 1),
    "datetime of an own zone": lambda: datetime(2024, 1, 1, tzinfo=Zone()),
    "time of an own zone": lambda: time(1, tzinfo=Zone()),
    "path subclass": lambda: MyPath("x"),
    "Fraction subclass": lambda: MyFraction(1, 2),
    "partial": lambda: functools.partial(int),
    "namespace": lambda: types.SimpleNamespace(a=1),
    "mappingproxy": lambda: types.MappingProxyType({}),
    "dict view": lambda: {}.keys(),
    "iterator": lambda: iter([]),
    "exception": lambda: ValueError("x"),
    "NotImplemented": lambda: NotImplemented,
    "Ellipsis": lambda: ...,
    "decimal context": decimal.Context,
    "weak reference": lambda: weakref.ref(Point),
    "undecorated attrs subclass": lambda: SubPoint(1),
    "attrs object with a field that isn't set": Unfinished,
    "list that contains itself": containing_itself,
    "nesting without end": lambda: nested(100_000),
    "array of objects": lambda: numpy.array([None]),
    "structured array with objects": lambda: numpy.zeros(1, [("o", "O")]),
    "dtype": lambda: numpy.dtype("i4"),
}


@pytest.mark.parametrize("make", UNSTORABLE.values(), ids=UNSTORABLE)
def test_anything_else_is_refused_naming_its_place_with_nothing_written(
    session: Session, make: Callable[[], Any]
) -> None:
    other, value = Note(text="is not written either"), make()
    task = Simulation(inputs={"first": other, "mesh": [0, 1, 2, value]})
    before = stored(session)
    for attempt in (session.add, session.save, lambda task: session.add(task, flush=False)):
        with pytest.raises(UnstorableValue) as caught:
            attempt(task)
        assert "Simulation.inputs['mesh'][3]" in str(caught.value)
        session.flush()
        assert stored(session) == before
        assert task.persistent_id is None
        assert other.persistent_id is None
    del value
    task.inputs["mesh"][3] = "storable"
    assert session.load(session.add(task)) is task
    assert other.persistent_id is not None


def stored(session: Session) -> tuple[int, list[str], dict[str, int]]:
    return len(session), sorted(session.store.list()), session.stats()


def test_message_says_what_and_where(session: Session) -> None:
    with socket.socket() as value, pytest.raises(UnstorableValue, match=r"a socket can't be stored") as caught:
        session.add(Simulation(inputs={"mesh": [0, 1, 2, value]}))
    assert str(caught.value).startswith("Simulation.inputs['mesh'][3]: a socket can't be stored")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": (0, object())}}, "Task.extra['a']['b'][1]"),
        ({"a": Grid("g", [object()])}, "Task.extra['a'].points[0]"),
        ({"a": Point(1, object())}, "Task.extra['a'].y"),
        ({1: {(2, 3): object()}}, "Task.extra[1][(2, 3)]"),
    ],
    ids=["tuple", "attrs in list", "attrs", "keys"],
)
def test_place_is_written_as_one_would_write_it_in_python(session: Session, value: Any, place: str) -> None:
    with pytest.raises(UnstorableValue) as caught:
        session.add(Task(extra=value))
    assert str(caught.value).startswith(f"{place}: an object can't be stored")


def test_unstorable_key_and_set_item_are_refused(session: Session) -> None:
    for value in ({object(): 1}, {object()}, frozenset({object()}), {(1, object()): 2}, {Pair(1, 2): 3}):
        with pytest.raises(UnstorableValue, match=r"Task\.extra"):
            session.add(Task(extra={"k": value}))
    assert stored(session) == (0, [], {})


def test_unstorable_value_in_a_child_is_refused_with_nothing_of_the_collection_written(session: Session) -> None:
    children = [Simulation(mesh="good"), Simulation(inputs={"bad": object()}), Simulation(mesh="good, too")]
    sweep = Sweep(tasks=list(children))
    with pytest.raises(UnstorableValue, match=r"Simulation\.inputs\['bad'\]"):
        session.add(sweep)
    session.flush()
    assert stored(session) == (0, [], {})
    assert [task.persistent_id for task in (sweep, *children)] == [None] * 4
    assert all(task.changed for task in (sweep, *children))


def test_unstorable_new_value_leaves_the_stored_one(session: Session) -> None:
    task = Simulation(inputs={"k": 1})
    id_ = session.add(task)
    task.inputs = {"k": object()}
    with pytest.raises(UnstorableValue):
        session.save(task)
    with pytest.raises(UnstorableValue):
        session.save_all()
    assert reload(session, id_).inputs == {"k": 1}
    assert task.changed
    task.inputs = {"k": 2}
    session.save_all()
    assert reload(session, id_).inputs == {"k": 2}


def test_refused_value_does_not_disturb_what_is_stored_next(session: Session) -> None:
    good = [1, (2, {3}), "\ud800", Point(4)]
    for make in UNSTORABLE.values():
        with pytest.raises(UnstorableValue):
            session.add(Task(extra={"v": (make(), "\ud800")}))
        id_ = session.add(Task(extra={"v": good}), flush=False)
        assert session.load(id_).extra["v"] == good
    session.flush()
    with Session(session.path, read_only=True) as other:
        assert all(task.extra["v"] == good for task in other)
        assert len(other) == len(UNSTORABLE)


def test_sizes_at_the_borders_of_the_format_come_back(again: Callable[[Any], Any]) -> None:
    for size in (15, 16, 31, 32, 255, 256, 65535, 65536):
        value = ["a" * size, b"b" * size, [0] * size, dict.fromkeys(range(size)), tuple(range(size)), 1 << size]
        assert again(value) == value


def test_members_of_a_collection_are_any_persistables(session: Session) -> None:
    collection = TaskCollection(tasks=[Note(text="n"), Task(), TaskCollection(tasks=[Persistable()])])
    back = reload(session, session.add(collection))
    assert [type(task) for task in back.tasks] == [Note, Task, TaskCollection]
    assert type(back.tasks[2].tasks[0]) is Persistable


def test_recursion_limit_is_left_alone(session: Session) -> None:
    limit = sys.getrecursionlimit()
    with pytest.raises(UnstorableValue):
        session.add(Task(extra={"v": nested(100_000)}))
    assert sys.getrecursionlimit() == limit


def test_deep_value_that_looks_like_packed_bytes_comes_back(session: Session) -> None:
    value: Any = [b"x", 2.0**0.5]
    for _ in range(900):
        value = [value]
    id_ = session.add(Task(extra={"deep": value}))
    session.store.invalidate_cache()
    back = session.load(id_).extra["deep"]
    for _ in range(900):
        (back,) = back
    assert back == [b"x", 2.0**0.5]


def test_deep_bytearray_is_refused(session: Session) -> None:
    value: Any = bytearray(b"x")
    for _ in range(900):
        value = [value]
    with pytest.raises(UnstorableValue):
        session.add(Task(extra={"deep": value}))
    assert len(session) == 0
