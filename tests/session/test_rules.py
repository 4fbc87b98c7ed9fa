"""Single rules of a session that nothing else looks at."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from consistency import check
from examples import Simulation
from gc3session import (
    ClosedError,
    DamagedSession,
    InvalidArgument,
    LoadError,
    NotFound,
    Session,
    Task,
    UnstorableValue,
    make_store,
)
from gc3session.tables.interface import Writer
from gc3session.tables.lmdb.data_file.meta import meta_pages_of

MakeSession = Callable[..., Session]


def test_session_made_anew_has_not_ended(make_session: MakeSession) -> None:
    with make_session() as session:
        session.set_end_timestamp(5)
    session = make_session(load=False)
    assert session.finished is None
    assert not Path(session.path, "finished").exists()


def test_unflushed_removal_is_seen_by_all_sessions_of_the_store_object(
    make_session: MakeSession, tmp_path: Path
) -> None:
    with make_store(tmp_path / "store") as store:
        first, second = make_session("a", store_or_url=store), make_session("b", store_or_url=store)
        id_ = second.add(Task())
        first.load(id_, add=True)
        first.remove(id_, flush=False)
        for session in (first, second):
            assert id_ not in session
            assert len(session) == 0
            assert list(session.tasks) == []
            assert session.stats() == {}
        first.close()
        second.close()


def test_flush_inside_a_transaction_is_refused(make_session: MakeSession) -> None:
    session, other = make_session(), make_session()
    with pytest.raises(InvalidArgument, match="transaction"), session.transaction():
        session.add(Task())
        session.flush()
    assert len(session) == len(other) == 0


def test_mirror_with_tasks_alone_is_never_silently_made_a_session(tmp_path: Path) -> None:
    (tmp_path / "session").mkdir()
    (tmp_path / "session" / "session_ids.txt").write_text("Task.1\n")
    with pytest.raises(DamagedSession, match=r"store\.url"):
        Session(tmp_path / "session")
    assert (tmp_path / "session" / "session_ids.txt").read_text() == "Task.1\n"


def test_closed_session_refuses_though_its_store_is_open(make_session: MakeSession, tmp_path: Path) -> None:
    with make_store(tmp_path / "store") as store:
        session = make_session(store_or_url=store)
        id_ = session.add(Task())
        session.close()
        calls: list[Callable[[], object]] = [
            lambda: session.add(Task()),
            lambda: session.add(Task(), flush=False),
            lambda: session.add_many([Task()]),
            lambda: session.remove(id_),
            lambda: session.load(id_),
            lambda: session[id_],
            lambda: id_ in session,
            lambda: len(session),
            lambda: list(session),
            session.stats,
            session.save_all,
            session.flush,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()
        assert list(store.list()) == [id_]


def test_tasks_of_several_states_may_come_into_one_state_at_once(make_session: MakeSession) -> None:
    session = make_session()
    ids = [session.add(Task(state="NEW" if i % 2 else "RUNNING")) for i in range(20)]
    tasks = list(session)
    for task in tasks:
        task.state = "STOPPED"
    session.save_all()
    assert session.stats() == {"STOPPED": 20}
    assert [task.persistent_id for task in session.select(state="STOPPED")] == ids
    assert check(session.path) == ids


def test_task_that_is_removed_during_an_iteration_is_not_given_any_more(session: Session) -> None:
    ids = [session.add(Task()) for _ in range(4)]
    tasks = iter(session)
    given = [next(tasks).persistent_id]
    session.remove_many(ids[1:3])
    given += [task.persistent_id for task in tasks]
    assert given == [ids[0], ids[3]]


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("value", [bytearray(b"a"), memoryview(b"a"), [bytearray()], {"k": (bytearray(b"x"),)}])
def test_what_would_come_back_as_bytes_is_refused(session: Session, flush: bool, value: Any) -> None:
    with pytest.raises(UnstorableValue):
        session.add(Simulation(inputs={"value": value}), flush=flush)
    with pytest.raises(UnstorableValue):
        session.add_many([Simulation(inputs={"value": value})], flush=flush)
    assert len(session) == 0


def test_no_transaction_is_open_while_the_code_of_a_class_runs(make_session: MakeSession) -> None:
    @attrs.define
    class Former(Task):
        class_tag: ClassVar[str] = "test_rules:Upgraded"
        old: int = 0

    with make_session() as session:
        ids = list(session.add_many(Former(old=i) for i in range(3)))
    free: list[bool] = []

    @attrs.define
    class Upgraded(Task):
        class_tag: ClassVar[str] = "test_rules:Upgraded"
        new: int = 0

        @classmethod
        def upgrade_record(cls, fields: dict[str, Any]) -> dict[str, Any]:
            def try_lock() -> None:
                free.append(reading.acquire(blocking=False))
                if free[-1]:
                    reading.release()

            thread = threading.Thread(target=try_lock)
            thread.start()
            thread.join()
            return {**{name: value for name, value in fields.items() if name != "old"}, "new": fields["old"]}

    session = make_session()
    reading = session.store.tables._env.reading
    assert [task.new for task in session] == [0, 1, 2]
    session.store.invalidate_cache()
    assert [session.load(id_).new for id_ in ids] == [0, 1, 2]
    session.store.invalidate_cache()
    assert [task.new for task in session.select(state="NEW")] == [0, 1, 2]
    assert free == [True] * 9


def test_iteration_gives_the_living_object_once_its_class_has_been_read(session: Session) -> None:
    ids = [session.add(Task()) for _ in range(3)]
    session.store.invalidate_cache()
    first, last = session.load(ids[0]), session.load(ids[2])
    given = list(session)
    assert given[0] is first
    assert given[2] is last
    assert session.load(ids[1]) is given[1]


def test_class_that_is_defined_again_is_that_of_all_that_is_read_then(session: Session) -> None:
    def defined() -> type[Task]:
        @attrs.define
        class Cell(Task):
            class_tag: ClassVar[str] = "test_rules:Cell"

        return Cell

    former = defined()
    ids = list(session.add_many(former() for _ in range(3)))
    session.store.invalidate_cache()
    assert type(session.load(ids[0])) is former
    latter = defined()
    session.store.invalidate_cache()
    assert [type(task) for task in session] == [latter] * 3
    session.store.invalidate_cache()
    assert [type(session.load(id_)) for id_ in ids] == [latter] * 3


def test_iteration_goes_on_after_a_record_that_can_not_be_read(make_session: MakeSession) -> None:
    session = make_session()
    ids = [session.add(Task()) for _ in range(600)]
    damaged = [ids[0], ids[3], ids[511], ids[599]]
    keys = [int(id_.rpartition(".")[2]).to_bytes(8, "big") for id_ in damaged]
    whole = [session.store.tables.get("records", key) for key in keys]
    assert all(whole)
    session.store.tables.write(
        lambda writer: writer.put(
            "records", [(key, (record or b"")[:-1] + b"?") for key, record in zip(keys, whole, strict=True)]
        )
    )
    for tasks in (
        iter(session),
        session.select(state="NEW"),
        session.select(state=["NEW", "OTHER"]),
        session.select(name="", returncode=None),
        session.load_many(ids),
    ):
        found: list[str | None] = []
        while len(found) <= len(ids):
            try:
                found.append(next(tasks).persistent_id)
            except LoadError as error:
                found.append(error.id)
            except StopIteration:
                break
        assert found == ids
    session.store.tables.write(
        lambda writer: writer.put(
            "records", [(key, record or b"") for key, record in zip(keys, whole, strict=True)]
        )
    )


def test_refreshed_object_is_no_longer_kept_alive(session: Session) -> None:
    task = Task(jobname="stored")
    id_ = session.add(task)
    task.jobname = "unsaved"
    session.refresh(task)
    assert task.jobname == "stored"
    held = weakref.ref(task)
    del task
    gc.collect()
    assert held() is None
    assert session.load(id_).jobname == "stored"


def test_replace_takes_no_id_of_another_class_name(session: Session) -> None:
    id_ = session.add(Task(jobname="kept"))
    with pytest.raises(NotFound):
        session.store.replace(id_.replace("Task", "Other"), Task(jobname="new"))
    session.store.invalidate_cache()
    assert session.load(id_).jobname == "kept"


def test_data_file_is_as_long_as_its_pages_after_each_commit(session: Session) -> None:
    # LMDB leaves pages unwritten that a transaction takes and frees again; then a file looks truncated.
    session.add(Task())

    def take_and_free(writer: Writer) -> None:
        keys = [number.to_bytes(8, "big") for number in range(1000, 1100)]
        writer.put("records", [(key, bytes(20_000)) for key in keys])
        writer.delete("records", keys)

    session.store.write(lambda index_writer, writer: take_and_free(writer))
    data = os.path.join(session.path, "jobs", "data.mdb")
    newest = max(meta_pages_of(data), key=lambda meta: meta.transaction)
    assert os.stat(data).st_size >= newest.size
