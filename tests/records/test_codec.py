"""Records and schemas: damage is found, classes change, and nothing is dropped."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

import lmdb
from children import run_python, run_script
from consistency import check, data_file, range_of, read_tables, unsealed
from examples import Note, Simulation, Sweep
from gc3session import (
    CorruptRecord,
    GenericCollection,
    GenericPersistable,
    GenericTask,
    LoadError,
    Opaque,
    Session,
    Task,
    TaskCollection,
    Unreadable,
)
from gc3session.format.frame import seal, unseal, values_of
from sameness import same

MakeSession = Callable[..., Session]


def raw_record(session: Session, id_: str) -> bytes:
    """Return the bytes of a record as they are on disk."""
    return dict(read_tables(jobs(session))["records"])[key_of(id_)]


def jobs(session: Session) -> Path:
    file = data_file(session.path, session.store_url)
    assert file is not None
    return file.parent


def key_of(id_: str) -> bytes:
    return struct.pack(">Q", int(id_.rpartition(".")[2]))


def overwrite(directory: Path, table: str, items: dict[bytes, bytes]) -> None:
    """Put items into a table of a store that nobody has open."""
    with (
        lmdb.open(os.fspath(directory), create=False, map_size=1 << 30) as env,
        env.begin(write=True) as transaction,
    ):
        for key, value in items.items():
            transaction.put(range_of(table) + key, value)


# -- checksum -----------------------------------------------------------------


def test_every_flipped_bit_of_a_record_is_found(session: Session) -> None:
    id_ = session.add(Simulation(mesh="m", inputs={"a": [1, 2.5, (3,)]}, extra={"b": b"bytes"}))
    record, number = raw_record(session, id_), int(id_.rpartition(".")[2])
    assert unseal(number, record) == record[:-5]
    for bit in range(8 * len(record)):
        flipped = bytearray(record)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecord):
            unseal(number, bytes(flipped))


def test_record_that_is_cut_or_longer_is_found(session: Session) -> None:
    record = raw_record(session, session.add(Simulation(mesh="m")))
    for length in range(len(record)):
        with pytest.raises(CorruptRecord):
            values_of(1, record[:length])
    with pytest.raises(CorruptRecord):
        values_of(1, record + b"\0")


def test_record_in_the_place_of_another_is_found() -> None:
    sealed = seal(1, b"body")
    assert unseal(1, sealed) == b"body"
    for number in (0, 2, 2**31, 2**32):
        with pytest.raises(CorruptRecord):
            unseal(number, sealed)


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[str]]:
    """A closed session of nine tasks; one bit of each of the middle three is flipped, at different places."""
    with Session(tmp_path / "damaged") as session:
        ids = list(session.add_many(Simulation(mesh=f"m{i}", state="RUNNING") for i in range(9)))
        directory = jobs(session)
    records = dict(read_tables(directory)["records"])
    flipped = {}
    for i in (3, 4, 5):
        record = bytearray(records[key_of(ids[i])])
        record[{3: 6, 4: len(record) // 2, 5: len(record) - 1}[i]] ^= 0x10
        flipped[key_of(ids[i])] = bytes(record)
    overwrite(directory, "records", flipped)
    return tmp_path / "damaged", ids


def test_damaged_record_raises_for_itself_alone_and_stays_in_the_index(damaged: tuple[Path, list[str]]) -> None:
    path, ids = damaged
    with Session(path) as session:
        for i, id_ in enumerate(ids):
            if i in (3, 4, 5):
                with pytest.raises(LoadError, match=id_):
                    session.load(id_)
                with pytest.raises(LoadError):
                    session[id_]
            else:
                assert session.load(id_).mesh == f"m{i}"
            assert id_ in session
        assert session.list_ids() == set(ids) == set(session.store.list())
        assert len(session) == 9
        assert session.stats() == {"RUNNING": 9}
    check(path, damaged=ids[3:6])


def test_session_with_a_damaged_record_goes_on(damaged: tuple[Path, list[str]]) -> None:
    path, ids = damaged
    with Session(path) as session:
        new = session.add(Simulation(mesh="new"))
        task = session.load(ids[0])
        task.state = "TERMINATED"
        session.save_all()
    check(path, damaged=ids[3:6])
    with Session(path) as session:
        session.forget(ids[4])
        assert list(session.tasks) == [*ids[:4], *ids[5:], new]
    check(path, damaged=[ids[3], ids[5]])


def test_damaged_record_can_be_removed(damaged: tuple[Path, list[str]]) -> None:
    path, ids = damaged
    with Session(path) as session:
        for id_ in ids[3:6]:
            session.remove(id_)
        assert session.stats() == {"RUNNING": 6}
    assert check(path) == [*ids[:3], *ids[6:]]


def test_reference_to_a_damaged_record_is_unreadable_and_is_kept(
    make_session: MakeSession, tmp_path: Path
) -> None:
    with Session(tmp_path / "s") as session:
        note = Note(text="damaged soon")
        id_, target = session.add(Simulation(inputs={"note": note})), str(note.persistent_id)
        directory = jobs(session)
    good = dict(read_tables(directory)["records"])[key_of(target)]
    overwrite(directory, "records", {key_of(target): good[:-1] + bytes([good[-1] ^ 1])})
    with Session(tmp_path / "s") as session:
        task = session.load(id_)
        assert type(task.inputs["note"]) is Unreadable
        assert task.inputs["note"].persistent_id == target
        task.mesh = "changed"
        session.save(task)
    overwrite(directory, "records", {key_of(target): good})
    with Session(tmp_path / "s") as session:
        assert session.load(id_).inputs["note"].text == "damaged soon"
        assert session.load(id_).mesh == "changed"


# -- schemas ------------------------------------------------------------------


def test_field_names_are_stored_once_and_not_in_each_record(session: Session) -> None:
    ids = session.add_many(Simulation() for _ in range(5))
    tables = read_tables(jobs(session))
    assert sum(b"returncode" in data for _, data in tables["schemas"]) == 1
    assert not any(b"returncode" in data or b"mesh" in data for _, data in tables["records"])
    assert len(tables["records"]) == len(ids) == 5


def test_record_is_readable_without_the_library(session: Session) -> None:
    session.add(Simulation(mesh="m", state="RUNNING", extra={"k": [1]}))
    tables = read_tables(jobs(session))
    [(key, data)] = tables["records"]
    schema, _, _, values = unsealed(int.from_bytes(key, "big"), data)
    schemas = {int.from_bytes(k, "big"): unsealed(int.from_bytes(k, "big"), d) for k, d in tables["schemas"]}
    tag, name, _, fields = schemas[schema]
    record = dict(zip(fields, values, strict=True))
    assert (tag, name) == ("examples:Simulation", "Simulation")
    assert (record["mesh"], record["state"], record["extra"]) == ("m", "RUNNING", {"k": [1]})


DEFINED: list[type[Any]] = []
"""The classes of the program, which live as long as it does, unless a test gives them up."""


def define(name: str, /, *, tag: str | None = None, base: type = Task, **fields: Any) -> type[Any]:
    """Return an attrs class, as a program would define it in one of its versions."""
    namespace: dict[str, Any] = {"__annotations__": {}, "__module__": __name__}
    if tag is not None:
        namespace["class_tag"] = tag
        namespace["__annotations__"]["class_tag"] = ClassVar[str]
    for field, default in fields.items():
        if isinstance(default, classmethod):
            namespace[field] = default
        else:
            namespace[field] = default
            namespace["__annotations__"][field] = Any
    DEFINED.append(attrs.define(type(base)(name, (base,), namespace)))
    return DEFINED[-1]


def test_tag_survives_renaming_and_moving_the_class_and_the_id_stays(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Former", tag="my.simulation", mesh="")(mesh="m"))
    latter = define("Latter", tag="my.simulation", mesh="")
    with make_session() as session:
        task = session.load(id_)
        assert type(task) is latter
        assert task.mesh == "m"
        assert task.persistent_id == id_ == "Former.1"
        task.mesh = "n"
        assert session.save(task) == id_
        assert session.list_ids() == {id_}
        assert session.add(latter()).startswith("Latter.")
    with make_session() as session:
        assert (type(session.load(id_)), session.load(id_).mesh) == (latter, "n")


def test_tag_is_not_inherited(make_session: MakeSession) -> None:
    base = define("Base", tag="base", mesh="")
    sub = define("Sub", base=base, size=0)
    with make_session() as session:
        ids = [session.add(base(mesh="b")), session.add(sub(mesh="s"))]
    with make_session() as session:
        assert [type(session.load(id_)) for id_ in ids] == [base, sub]


def test_new_field_takes_its_default(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", mesh="")(mesh="m"))
    define("Sim", tag="sim", mesh="", size=7, items=attrs.Factory(list))
    with make_session() as session:
        task = session.load(id_)
        assert (task.mesh, task.size, task.items) == ("m", 7, [])
        assert not task.changed
        task.size = 8
        session.save(task)
    with make_session() as session:
        assert session.load(id_).size == 8


def test_default_that_needs_the_object_sees_its_loaded_fields(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", mesh="")(mesh="abc"))
    define("Sim", tag="sim", mesh="", size=attrs.Factory(lambda self: len(self.mesh), takes_self=True))
    with make_session() as session:
        assert session.load(id_).size == 3


def test_new_field_without_a_default_raises_and_says_so(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", mesh="")(mesh="m"))
    define("Sim", tag="sim", mesh="", size=attrs.field(kw_only=True))
    with make_session() as session, pytest.raises(LoadError, match="size"):
        session.load(id_)
    define("Sim", tag="sim", mesh="")
    with make_session() as session:
        assert session.load(id_).mesh == "m"


def test_field_that_the_class_has_lost_is_kept_and_written_back(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", mesh="", size=0)(mesh="m", size=4))
    define("Sim", tag="sim", mesh="", other=1)
    with make_session() as session:
        task = session.load(id_)
        assert not hasattr(task, "size")
        task.mesh, task.other = "n", 2
        session.save(task)
        task.state = "RUNNING"
        session.save(task)
    define("Sim", tag="sim", mesh="", size=0, other=1)
    with make_session() as session:
        task = session.load(id_)
        assert (task.mesh, task.size, task.other, task.state) == ("n", 4, 2, "RUNNING")


def test_order_of_the_fields_may_change(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", a=0, b=0, c=0)(a=1, b=2, c=3))
    define("Sim", tag="sim", c=0, a=0, b=0)
    with make_session() as session:
        task = session.load(id_)
        assert (task.a, task.b, task.c) == (1, 2, 3)


def test_upgrade_record_is_given_the_former_fields(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", length_mm=0)(length_mm=2500))
    seen: list[dict[str, Any]] = []

    def upgrade_record(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(fields))
        if "length_mm" in fields:
            fields["length"] = fields.pop("length_mm") / 1000
        return fields

    define("Sim", tag="sim", length=0.0, upgrade_record=classmethod(upgrade_record))
    with make_session() as session:
        task = session.load(id_)
        assert task.length == 2.5
        assert seen[0]["length_mm"] == 2500
        assert not task.changed
        task.state = "RUNNING"
        session.save(task)
    with make_session() as session:
        assert session.load(id_).length == 2.5
    assert len(seen) == 1, "the record had been upgraded"


@pytest.mark.parametrize("result", [None, [], "fields"])
def test_upgrade_record_that_gives_no_dict_raises_for_that_task(make_session: MakeSession, result: Any) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", mesh="")(mesh="m"))
        other = session.add(Simulation(mesh="other"))
    define("Sim", tag="sim", size=0, upgrade_record=classmethod(lambda cls, fields: result))
    with make_session() as session:
        with pytest.raises(LoadError, match="upgrade_record"):
            session.load(id_)
        assert session.load(other).mesh == "other"
    define("Sim", tag="sim", mesh="")


def test_upgrade_record_that_fails_raises_for_that_task(make_session: MakeSession) -> None:
    with make_session() as session:
        id_ = session.add(define("Sim", tag="sim", mesh="")(mesh="m"))

    def upgrade_record(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("on purpose")

    define("Sim", tag="sim", size=0, upgrade_record=classmethod(upgrade_record))
    with make_session() as session, pytest.raises(LoadError, match="on purpose"):
        session.load(id_)
    define("Sim", tag="sim", mesh="")


# -- unknown classes ----------------------------------------------------------


@pytest.fixture
def of_unknown_classes(tmp_path: Path) -> tuple[Path, list[str]]:
    """A session for a process that has not imported `examples`."""
    note = Note(text="in", about={"set": {1, 2}, "deep": [(b"b",)]})
    child = Simulation(mesh="child", inputs={"note": note})
    with Session(tmp_path / "unknown") as session:
        ids = [
            session.add(task)
            for task in (
                Simulation(mesh="m", inputs={"k": [1, (2,)]}, state="RUNNING"),
                Sweep(tasks=[child], parameter="p"),
            )
        ]
        ids += [str(child.persistent_id), session.save(note)]
    return tmp_path / "unknown", ids


def test_unknown_class_loads_as_a_generic_task_that_shows_its_fields(
    of_unknown_classes: tuple[Path, list[str]],
) -> None:
    script = """
        import sys
        import gc3session
        from gc3session import Session
        with Session(sys.argv[1], read_only=True) as session:
            simulation, sweep, child, note = map(session.load, sys.argv[2:])
            assert type(simulation) is gc3session.GenericTask
            assert isinstance(simulation, gc3session.Task)
            assert simulation.class_name == "examples:Simulation"
            assert simulation.fields["mesh"] == simulation.mesh == "m"
            assert simulation.fields["inputs"] == {"k": [1, (2,)]}
            assert simulation.state == "RUNNING"
            assert simulation.persistent_id == sys.argv[2]
            assert type(sweep) is gc3session.GenericCollection
            assert sweep.tasks == [child] and sweep.fields["parameter"] == "p"
            assert type(note) is gc3session.GenericPersistable
            assert note.text == "in" and note.about["set"] == {1, 2}
            assert child.inputs["note"] is note
            assert [task.persistent_id for task in session] == sys.argv[2:4]
            assert session.stats() == {"NEW": 1, "RUNNING": 1}
            assert "examples" not in sys.modules
        print("fine")
    """
    path, ids = of_unknown_classes
    assert run_python(script, path, *ids) == "fine"


def test_unknown_class_is_saved_again_unchanged(of_unknown_classes: tuple[Path, list[str]]) -> None:
    path, ids = of_unknown_classes
    with Session(path, read_only=True) as session:
        before = {int(k.rpartition(".")[2]): session.load(k) for k in ids}
        directory = jobs(session)
        records = read_tables(directory)["records"]
        script = """
            import sys
            from gc3session import Session
            with Session(sys.argv[1]) as session:
                for id_ in sys.argv[2:]:
                    obj = session.load(id_)
                    obj.changed = True
                    assert session.save(obj) == id_
                    assert not obj.changed
        """
        run_python(script, path, *ids)
        after = read_tables(directory)["records"]
    assert [key for key, _ in after] == [key for key, _ in records]
    for (key, old), (_, new) in zip(records, after, strict=True):
        (schema, revision, home, values), (new_schema, new_revision, new_home, new_values) = (
            unsealed(int.from_bytes(key, "big"), data) for data in (old, new)
        )
        assert (new_schema, new_home, new_values) == (schema, home, values)
        assert new_revision == revision + 1
    with Session(path, read_only=True) as session:
        for id_ in ids:
            assert same(session.load(id_), before[int(id_.rpartition(".")[2])])
    check(path)


def test_state_of_an_unknown_task_can_be_changed_and_its_fields_stay(
    of_unknown_classes: tuple[Path, list[str]],
) -> None:
    path, ids = of_unknown_classes
    script = """
        import sys
        from gc3session import Session
        with Session(sys.argv[1]) as session:
            task = session.load(sys.argv[2])
            task.state = "TERMINATED"
            assert task.changed
            session.save_all()
    """
    run_python(script, path, ids[0])
    check(path)
    with Session(path) as session:
        task = session.load(ids[0])
        assert (type(task), task.state, task.mesh, task.inputs) == (
            Simulation,
            "TERMINATED",
            "m",
            {"k": [1, (2,)]},
        )
        assert session.stats() == {"NEW": 1, "TERMINATED": 1}


def test_attribute_of_a_generic_task_that_is_not_there_raises(make_session: MakeSession) -> None:
    task = generic(make_session, define("Unknown", mesh="")(mesh="m"), GenericTask)
    with pytest.raises(AttributeError):
        _ = task.nothing
    with pytest.raises(AttributeError):
        task.undeclared = 1


def generic(make_session: MakeSession, obj: Any, expected: type) -> Any:
    """Store *obj*, give its class up, and return what is loaded then."""
    path = make_session().path
    with Session(path) as session:
        id_ = session.save(obj)
    del obj, session  # a store remembers the classes that it has written
    DEFINED.clear()
    gc.collect()
    back = make_session().load(id_)
    assert type(back) is expected
    return back


def test_unknown_kinds_load_as_the_generic_class_of_their_kind(make_session: MakeSession) -> None:
    for base, expected in ((Task, GenericTask), (TaskCollection, GenericCollection), (Note, GenericPersistable)):
        back = generic(make_session, define("Gone", base=base, size=3)(), expected)
        assert back.size == 3
        assert back.fields["size"] == 3
        assert back.class_name.endswith(":Gone")


def test_unknown_enum_and_attrs_values_are_opaque_and_written_back(make_session: MakeSession) -> None:
    script = """
        import enum, sys, attrs
        from gc3session import Session, Task
        class Kind(enum.Enum):
            A = 1
        @attrs.define
        class Value:
            x: int
        with Session(sys.argv[1]) as session:
            if sys.argv[2:]:
                task = session.load(sys.argv[2])
                assert task.extra == {"kind": Kind.A, "value": Value(3)}, task.extra
                assert task.jobname == "saved"
            else:
                print(session.add(Task(extra={"kind": Kind.A, "value": Value(3)})))
    """
    path = make_session().path
    id_ = run_python(script, path)
    with make_session() as session:
        task = session.load(id_)
        assert {type(value) for value in task.extra.values()} == {Opaque}
        assert all(value.why for value in task.extra.values())
        task.jobname = "saved"
        session.save(task)
    run_python(script, path, id_)


PROGRAM = """
import sys, attrs
from gc3session import Session, Task

@attrs.define
class Job(Task):
    size: int = 0

if __name__ == "__main__":
    with Session(sys.argv[1]) as session:
        if not len(session):
            session.add(Job(size=3))
        assert [(type(task), task.size) for task in session] == [(Job, 3)]
"""

IMPORTER = """
import sys
sys.path.insert(0, sys.argv[1])
import program
from gc3session import Session
assert [type(task) for task in Session(sys.argv[2], read_only=True)] == [program.Job]
"""


def test_class_of_a_script_is_known_again_in_its_next_run_and_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    for _ in range(2):
        run_script(tmp_path / "program.py", tmp_path / "session")
    run_python(IMPORTER, tmp_path, tmp_path / "session")


def test_nothing_is_imported_or_executed_on_behalf_of_a_record(tmp_path: Path) -> None:
    evil = tmp_path / "code"
    evil.mkdir()
    (evil / "evil_module.py").write_text(
        "import attrs, pathlib\n"
        "from gc3session import Task\n"
        f"pathlib.Path({str(tmp_path / 'executed')!r}).touch()\n"
        "@attrs.define\nclass Evil(Task):\n    size: int = 0\n"
    )
    make = "import sys; sys.path.insert(0, sys.argv[1])\nimport evil_module\nfrom gc3session import Session\n"
    run_python(make + "Session(sys.argv[2]).add(evil_module.Evil())", evil, tmp_path / "s")
    (tmp_path / "executed").unlink()
    read = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom gc3session import Session\n"
        "[task] = Session(sys.argv[2], read_only=True)\nprint(type(task).__name__, 'evil_module' in sys.modules)"
    )
    assert run_python(read, evil, tmp_path / "s") == "GenericTask False"
    assert not (tmp_path / "executed").exists()


def test_refresh_from_what_cannot_be_loaded_gives_up_what_is_staged(make_session: MakeSession) -> None:
    holder, other = define("Holder", part=None)(jobname="mine"), Task()
    session = make_session()
    session.add_many([holder, other])
    holder.jobname, other.jobname = "staged", "work"
    session.save_all(flush=False)
    with make_session() as theirs:
        theirs.store.invalidate_cache()
        loaded = theirs.load(str(holder.persistent_id))
        loaded.part = define("Part", tag="part", a=0)()
        loaded.jobname = "theirs"
        theirs.save(loaded)
    del loaded

    def upgrade_record(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("on purpose")

    define("Part", tag="part", b=0, upgrade_record=classmethod(upgrade_record))
    with pytest.raises(LoadError, match="upgrade_record"):
        session.refresh(holder)
    session.flush()
    define("Part", tag="part", a=0)
    with make_session() as again:
        assert [task.jobname for task in again] == ["theirs", "work"]
