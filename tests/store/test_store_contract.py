"""What every store must do: a suite for each kind of store in KINDS."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from children import in_child
from examples import Note, Simulation, Sweep
from gc3session import (
    ClosedError,
    ConflictError,
    InvalidArgument,
    LoadError,
    NotFound,
    Persistable,
    ReadOnlyError,
    Store,
    Task,
    TemporarySession,
    Unreadable,
    UnstorableValue,
    make_store,
    register,
)
from gc3session.store.changes import HELD
from gc3session.tables.lmdb.tables import LmdbTables
from sameness import picture

KINDS: dict[str, Callable[[Path, pytest.FixtureRequest], Any]] = {
    "lmdb path": lambda directory, request: str(directory / "store"),
    "lmdb Path": lambda directory, request: directory / "store",
    "lmdb URL": lambda directory, request: f"lmdb://{directory}/store",
    "postgresql": lambda directory, request: request.getfixturevalue("postgresql_url"),
}
"""Name -> what makes the URL of a new, empty store; a kind may call pytest.skip."""

MakeStore = Callable[..., Store]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return KINDS[request.param](tmp_path, request)


@pytest.fixture
def open_store(url: Any) -> Iterator[MakeStore]:
    """A function that opens the store; each has a mind of its own, as in another process."""
    opened: list[Store] = []

    def open_(**options: Any) -> Store:
        opened.append(make_store(url, **options))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: MakeStore) -> Store:
    return open_store()


@pytest.fixture
def other(store: Store, open_store: MakeStore) -> Store:
    """The same store, opened once more."""
    return open_store()


# -- save and load ------------------------------------------------------------


def test_saved_object_is_loaded_with_its_fields_by_another(store: Store, other: Store) -> None:
    task = Simulation(mesh="m", inputs={"k": [1, (2.5, None)]}, jobname="j", state="RUNNING", returncode=3)
    id_ = store.save(task)
    assert picture(other.load(id_)) == picture(task)


def test_saved_object_is_there_after_closing(store: Store, open_store: MakeStore) -> None:
    id_ = store.save(Simulation(mesh="m"))
    store.close()
    assert open_store().load(id_).mesh == "m"


def test_id_is_the_class_name_and_a_number(store: Store) -> None:
    for obj in (Simulation(), Sweep(), Note(), Task(), Persistable()):
        name, _, number = store.save(obj).rpartition(".")
        assert name == type(obj).__name__
        assert number.isdigit()
        assert obj.persistent_id == f"{name}.{number}"


def test_ids_are_never_used_twice(store: Store, open_store: MakeStore) -> None:
    ids = [store.save(Note()) for _ in range(50)]
    for id_ in ids:
        store.remove(id_)
    store.close()
    again = open_store()
    ids += [again.save(Note()) for _ in range(50)]
    assert len(set(ids)) == 100


def test_saving_again_keeps_the_id_and_replaces_the_fields(store: Store, other: Store) -> None:
    task = Simulation(mesh="a")
    id_ = store.save(task)
    task.mesh = "b"
    assert store.save(task) == id_
    assert other.load(id_).mesh == "b"
    assert list(other.list()) == [id_]


def test_saving_resets_changed(store: Store) -> None:
    task = Simulation()
    store.save(task)
    assert not task.changed


@pytest.mark.parametrize("value", [3, "text", None, {"a": 1}, object(), Task], ids=type)
def test_saving_what_is_no_persistable_is_refused(store: Store, value: Any) -> None:
    with pytest.raises(InvalidArgument):
        store.save(value)
    assert list(store.list()) == []


def test_refused_value_writes_nothing(store: Store) -> None:
    id_ = store.save(Note(text="a"))
    with pytest.raises(UnstorableValue, match=r"Note\.about"):
        store.save(Note(about=object()))
    assert list(store.list()) == [id_]


@pytest.mark.parametrize("id_", ["Simulation.999", "Other.1", "", ".", "1", "Simulation", "Simulation.", ".1",
                                 "Simulation.-1", "Simulation.01", "Simulation.1x", "Simulation.0",
                                 f"Simulation.{2**63}", f"Simulation.{10**30}", "Simulation.\u0661", "a\ud800.1"])  # fmt: skip
def test_loading_what_is_not_there_raises(store: Store, id_: str) -> None:
    assert store.save(Simulation()) == "Simulation.1"
    with pytest.raises(NotFound) as caught:
        store.load(id_)
    assert isinstance(caught.value, LoadError)
    assert isinstance(caught.value, KeyError)
    with pytest.raises(NotFound):
        store.remove(id_)


def test_loading_from_a_store_that_was_never_written_raises_and_makes_nothing(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        store.load("Task.1")
    assert list(store.list()) == []
    assert list(tmp_path.iterdir()) == []


# -- identity -----------------------------------------------------------------


def test_same_id_is_the_same_object_while_one_is_alive(store: Store) -> None:
    task = Simulation()
    id_ = store.save(task)
    assert store.load(id_) is task
    del task
    gc.collect()
    again = store.load(id_)
    assert store.load(id_) is again


def test_object_is_freed_when_its_user_drops_it(store: Store) -> None:
    task = Simulation()
    id_ = store.save(task)
    gone = weakref.ref(task)
    del task
    assert gone() is None
    loaded = store.load(id_)
    gone = weakref.ref(loaded)
    del loaded
    load_others(store)
    assert gone() is None


def test_object_of_a_store_that_is_only_read_is_freed_at_once(store: Store, open_store: MakeStore) -> None:
    id_ = store.save(Simulation())
    reading = open_store(read_only=True)
    gone = weakref.ref(reading.load(id_))
    assert gone() is None


def load_others(store: Store) -> None:
    """Load so many objects that one which was loaded before is no longer held for the changes inside its values."""
    other = store.save(Note())
    for _ in range(2 * HELD):
        store.load(other)


def test_object_with_unsaved_changes_is_kept_alive_until_saved(store: Store) -> None:
    task = Simulation()
    id_ = store.save(task)
    task.mesh = "unsaved"
    gone = weakref.ref(task)
    del task
    gc.collect()
    assert gone() is not None
    again = store.load(id_)
    assert again.mesh == "unsaved"
    store.save(again)
    del again
    load_others(store)
    gc.collect()
    assert gone() is None


def test_loaded_object_sees_what_another_has_stored_since(store: Store, other: Store) -> None:
    task = Simulation(mesh="a")
    id_ = store.save(task)
    theirs = other.load(id_)
    theirs.mesh = "b"
    other.save(theirs)
    assert store.load(id_) is task
    assert task.mesh == "b"


# -- replace, remove, list ----------------------------------------------------


def test_replace_stores_another_object_under_the_id(store: Store, other: Store) -> None:
    id_ = store.save(Simulation(mesh="a"))
    new = Simulation(mesh="b")
    store.replace(id_, new)
    assert other.load(id_).mesh == "b"
    assert store.load(id_).mesh == "b"
    assert list(other.list()) == [id_]
    assert new.persistent_id == id_


def test_replace_of_what_is_not_there_raises(store: Store) -> None:
    with pytest.raises(NotFound):
        store.replace("Simulation.5", Simulation())
    assert list(store.list()) == []


def test_removed_object_is_gone(store: Store, other: Store) -> None:
    ids = [store.save(Note(text=str(i))) for i in range(3)]
    store.remove(ids[1])
    for each in (store, other):
        assert list(each.list()) == [ids[0], ids[2]]
        with pytest.raises(NotFound):
            each.load(ids[1])
    with pytest.raises(NotFound):
        store.remove(ids[1])


def test_removed_object_can_be_saved_anew_under_a_new_id(store: Store, other: Store) -> None:
    task = Simulation(mesh="m")
    id_ = store.save(task)
    store.remove(id_)
    assert task.persistent_id is None
    new = store.save(task)
    assert new != id_
    assert other.load(new).mesh == "m"


def test_list_gives_every_id_in_the_order_of_saving(store: Store, other: Store) -> None:
    ids = [store.save(Note(text=str(i))) for i in range(700)]
    assert list(store.list()) == ids == list(other.list())


def test_list_bears_changes_while_it_runs(store: Store) -> None:
    ids = [store.save(Note()) for _ in range(600)]
    seen = []
    for i, id_ in enumerate(store.list()):
        seen.append(id_)
        if i == 0:
            store.remove(ids[-1])
            store.remove(ids[1])
            store.save(Note())
    assert set(ids[2:-1]) <= set(seen)
    assert len(seen) == len(set(seen))


# -- references ---------------------------------------------------------------


def test_persistable_inside_another_is_a_record_of_its_own(store: Store, other: Store) -> None:
    note = Note(text="inside")
    id_ = store.save(Simulation(inputs={"note": note}))
    assert note.persistent_id is not None
    assert set(store.list()) == {id_, note.persistent_id}
    back = other.load(id_)
    assert back.inputs["note"] is other.load(note.persistent_id)


def test_shared_object_stays_one(store: Store, other: Store) -> None:
    note = Note(text="shared")
    ids = [store.save(Simulation(inputs={"note": note})) for _ in range(2)]
    a, b = map(other.load, ids)
    assert a.inputs["note"] is b.inputs["note"]
    assert len(list(store.list())) == 3


def test_cycle_works(store: Store, other: Store) -> None:
    a, b = Note(text="a"), Note(text="b")
    a.about, b.about = b, a
    back = other.load(store.save(a))
    assert back.about.about is back
    assert back.about.text == "b"


def test_loaded_cycle_is_freed(store: Store, other: Store) -> None:
    a, b = Note(text="a"), Note(text="b")
    a.about, b.about = b, a
    back = other.load(store.save(a))
    gone = weakref.ref(back)
    del back
    load_others(other)
    gc.collect()
    assert gone() is None


@pytest.mark.slow_on_servers
def test_very_long_chain_is_saved_and_loaded(store: Store, other: Store, long_form: bool) -> None:
    length = 100_000 if long_form else 30_000
    head = chain(length)
    id_ = store.save(head)
    link, count = other.load(id_), 0
    while link is not None:
        assert link.text == str(length - 1 - count)
        link, count = link.about, count + 1
    assert count == length


def chain(length: int) -> Note:
    link = None
    for i in range(length):
        link = Note(text=str(i), about=link)
    assert link is not None
    return link


def test_reference_to_a_removed_object_is_unreadable_and_the_rest_loads(store: Store, other: Store) -> None:
    note = Note()
    task = Simulation(mesh="m", inputs={"note": note})
    id_, gone = store.save(task), store.save(note)
    store.remove(gone)
    back = other.load(id_)
    assert back.mesh == "m"
    assert isinstance(back.inputs["note"], Unreadable)
    assert back.inputs["note"].persistent_id is not None


def test_changed_object_is_saved_with_the_one_that_refers_to_it_or_stays_changed(
    store: Store, other: Store
) -> None:
    note = Note(text="a")
    task = Simulation(inputs={"note": note})
    id_ = store.save(task)
    note.text = "b"
    task.mesh = "m"
    store.save(task)
    assert (other.load(id_).inputs["note"].text == "b") != note.changed


# -- conflicts ----------------------------------------------------------------


@pytest.fixture
def conflict(store: Store, other: Store) -> tuple[Simulation, Simulation]:
    """A task of `store`, changed, and its twin of `other`, which has been saved meanwhile."""
    mine = Simulation(mesh="before")
    theirs = other.load(store.save(mine))
    mine.mesh, theirs.mesh = "mine", "theirs"
    other.save(theirs)
    return mine, theirs


def test_saving_what_another_has_saved_since_raises_and_writes_nothing(
    store: Store, other: Store, conflict: tuple[Simulation, Simulation]
) -> None:
    mine, theirs = conflict
    for _ in range(2):
        with pytest.raises(ConflictError) as caught:
            store.save(mine)
        assert caught.value.ids == (mine.persistent_id,)
        assert str(mine.persistent_id) in str(caught.value)
    other.invalidate_cache()
    assert other.load(str(theirs.persistent_id)).mesh == "theirs"
    assert mine.mesh == "mine"
    assert mine.changed


def test_refresh_takes_over_the_stored_state(store: Store, conflict: tuple[Simulation, Simulation]) -> None:
    mine, _ = conflict
    store.refresh(mine)
    assert mine.mesh == "theirs"
    assert not mine.changed
    mine.mesh = "mine again"
    store.save(mine)


def test_records_are_found_in_any_order_with_any_gaps(store: Store) -> None:
    numbers = [store.number_of(store.save(Task(jobname=str(i)))) for i in range(9)]
    store.remove(f"Task.{numbers[4]}")
    first, last = numbers[0], numbers[-1]
    with store.reading() as reader:
        stored = {n: reader.get("records", n.to_bytes(8, "big")) for n in [*numbers, last + 1, 1 << 62]}
        assert sum(record is not None for record in stored.values()) == 8
        for wanted in (
            *(numbers, numbers[::-1], numbers[:3], numbers[5:], numbers[3:5], [*numbers, last + 1], [last]),
            *([first, numbers[2], numbers[1], numbers[3]], [first] * 2, [first, last, last, first], []),
            *([first, 1 << 62], [1 << 62, first], [last + 1, last + 2]),
        ):
            assert reader.records(wanted) == [stored.get(n) for n in wanted]


def test_force_overwrites(store: Store, open_store: MakeStore, conflict: tuple[Simulation, Simulation]) -> None:
    mine, _ = conflict
    store.save(mine, force=True)
    assert not mine.changed
    assert open_store().load(str(mine.persistent_id)).mesh == "mine"


def test_loser_of_a_force_finds_the_conflict(
    store: Store, other: Store, conflict: tuple[Simulation, Simulation]
) -> None:
    mine, theirs = conflict
    store.save(mine, force=True)
    theirs.mesh = "theirs again"
    with pytest.raises(ConflictError):
        other.save(theirs)


def test_saving_what_another_has_removed_raises(store: Store, other: Store) -> None:
    task = Simulation()
    id_ = store.save(task)
    other.remove(id_)
    task.mesh = "changed"
    with pytest.raises((ConflictError, NotFound)):
        store.save(task)
    assert list(other.list()) == []


def test_saving_twice_oneself_is_no_conflict(store: Store) -> None:
    task = Simulation()
    for i in range(5):
        task.steps = i
        store.save(task)


def test_refresh_of_what_was_never_saved_raises(store: Store) -> None:
    with pytest.raises(InvalidArgument):
        store.refresh(Simulation())


def test_object_of_another_store_is_never_taken_for_ones_own(store: Store, tmp_path: Path) -> None:
    elsewhere = make_store(str(tmp_path / "elsewhere"))
    task = Simulation(mesh="m")
    first, twin = elsewhere.save(task), Simulation(mesh="twin")
    assert store.save(twin) == first
    try:
        id_ = store.save(task)
    except InvalidArgument:
        id_ = first
    assert store.load(first).mesh == "twin"
    assert elsewhere.load(first).mesh == "m"
    assert store.load(id_).mesh in ("m", "twin")
    elsewhere.close()


# -- the rest -----------------------------------------------------------------


def test_invalidate_cache_loses_nothing(store: Store, other: Store) -> None:
    task = Simulation(mesh="a")
    id_ = store.save(task)
    theirs = other.load(id_)
    theirs.mesh = "b"
    other.save(theirs)
    store.invalidate_cache()
    assert store.load(id_).mesh == "b"
    assert list(store.list()) == [id_]
    unsaved = store.load(id_)
    unsaved.mesh = "c"
    store.invalidate_cache()
    store.save(unsaved)
    other.invalidate_cache()
    assert other.load(id_).mesh == "c"


def test_store_works_on_both_sides_of_a_fork(store: Store) -> None:
    id_ = store.save(Note(text="before"))
    store.pre_fork()
    ids = in_child(_save_in_child, store, id_)
    store.post_fork()
    mine = store.save(Note(text="after"))
    assert len({id_, mine, *ids}) == 2 + len(ids)
    assert set(store.list()) == {id_, mine, *ids}
    assert store.load(ids[0]).text == "child 0"


def _save_in_child(store: Store, id_: str) -> list[str]:
    store.post_fork()
    assert store.load(id_).text == "before"
    return [store.save(Note(text=f"child {i}")) for i in range(20)]


def test_fork_without_warning_is_safe(store: Store) -> None:
    id_ = store.save(Note(text="before"))

    def child() -> str:
        assert store.load(id_).text == "before"
        return store.save(Note(text="child"))

    theirs = in_child(child)
    assert store.load(theirs).text == "child"
    assert set(store.list()) == {id_, theirs}
    assert store.save(Note()) not in (id_, theirs)


def test_closed_store_refuses_and_closing_twice_does_nothing(store: Store) -> None:
    task = Simulation()
    id_ = store.save(task)
    store.close()
    store.close()
    for attempt in (lambda: store.load(id_), lambda: store.save(Note()), lambda: store.remove(id_)):
        with pytest.raises(ClosedError):
            attempt()


def test_read_only_store_reads_and_refuses_to_write(store: Store, open_store: MakeStore) -> None:
    id_ = store.save(Note(text="t"))
    reader = open_store(read_only=True)
    note = reader.load(id_)
    assert note.text == "t"
    note.text = "u"
    for attempt in (lambda: reader.save(note), lambda: reader.save(Note()), lambda: reader.remove(id_)):
        with pytest.raises(ReadOnlyError):
            attempt()
    assert list(store.list()) == [id_]


def test_url_opens_the_same_store(store: Store) -> None:
    id_ = store.save(Note(text="t"))
    again = make_store(store.url)
    assert again.load(id_).text == "t"
    assert again.url == store.url
    again.close()


def test_unknown_argument_is_refused(url: Any) -> None:
    with pytest.raises((TypeError, InvalidArgument), match="readonly"):
        make_store(url, readonly=True)


def test_temporary_session_works_on_any_store(url: Any, store: Store) -> None:
    with TemporarySession(url) as session:
        id_ = session.add(Simulation(mesh="m"))
        assert [task.mesh for task in session] == ["m"]
        assert session.stats() == {"NEW": 1}
    assert store.load(id_).mesh == "m"


# -- make_store and register --------------------------------------------------


def test_unknown_scheme_is_refused_and_named() -> None:
    with pytest.raises(InvalidArgument, match="nosuchscheme"):
        make_store("nosuchscheme://host/database")


@pytest.mark.parametrize("value", [None, 3, b"bytes", "", "lmdb://"], ids=repr)
def test_what_is_no_url_is_refused(value: Any) -> None:
    with pytest.raises((InvalidArgument, TypeError)):
        make_store(value)


def test_registered_scheme_is_used(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def constructor(url: str, *, read_only: bool = False) -> LmdbTables:
        seen.append((url, read_only))
        return LmdbTables(tmp_path / "registered", read_only=read_only)

    register("mine", constructor)
    with contextlib.closing(make_store("mine://somewhere/else")) as made:
        id_ = made.save(Note(text="t"))
    with contextlib.closing(make_store("mine://somewhere/else", read_only=True)) as made:
        assert made.load(id_).text == "t"
    assert seen == [("mine://somewhere/else", False), ("mine://somewhere/else", True)]


def test_path_with_any_characters_makes_a_store(tmp_path: Path) -> None:
    for name in ("with space", "ünï", "per%20cent", "ques?tion", "ha#sh", "new\nline", "a:b", "plus+"):
        made = make_store(tmp_path / name)
        id_ = made.save(Note(text=name))
        again = make_store(made.url)
        assert again.load(id_).text == name
        again.close()
        made.close()
        assert (tmp_path / name / "data.mdb").exists()
