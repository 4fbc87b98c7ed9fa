"""A durable call that raises has done nothing and is made again; what `flush=False` has accepted is kept: on every store."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from consistency import check
from gc3session import Session, StoreFull, Task, TaskCollection
from gc3session.tables.postgresql.address import address_of
from postgresql_server import refuse

ON_EVERY_STORE = True

Full = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def full(store_kind: str, session: Session) -> Full:
    """A function whose context the store has no room in, for what adds more than its file has left."""

    @contextmanager
    def limited() -> Iterator[None]:
        size = Path(session.path, "jobs", "data.mdb").stat().st_size
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    @contextmanager
    def refused() -> Iterator[None]:
        address = address_of(session.store.url)
        with psycopg.connect(**address.options, autocommit=True) as connection:
            refuse(connection, address.schema, "records", "53100")
            try:
                yield
            finally:
                connection.execute(
                    sql.SQL("DROP FUNCTION {} CASCADE").format(sql.Identifier(address.schema, "refuse"))
                )

    session.add(Task(jobname="first"))
    return limited if store_kind == "lmdb" else refused


def large(name: str) -> Task:
    return Task(jobname=name, extra={"x": "x" * 1_000_000})


def names(session: Session) -> list[str]:
    """Return the names of all tasks that are on disk."""
    with Session(session.path, read_only=True) as again:
        return [task.jobname for task in again]


CALLS: dict[str, Callable[[Session, list[Task]], object]] = {
    "add": lambda session, tasks: [session.add(task) for task in tasks],
    "add_many": lambda session, tasks: session.add_many(tasks),
    "add_many of an iterator": lambda session, tasks: session.add_many(iter(tasks)),
    "transaction": lambda session, tasks: in_transaction(session, tasks),
    "collection": lambda session, tasks: session.add_many([TaskCollection(jobname="all", tasks=tasks)]),
}


def in_transaction(session: Session, tasks: list[Task]) -> None:
    with session.transaction():
        session.add_many(tasks[:1])
        for task in tasks[1:]:
            session.add(task)


@pytest.mark.parametrize("call", CALLS)
def test_durable_call_that_raises_has_done_nothing_and_is_made_again(
    session: Session, full: Full, call: str
) -> None:
    tasks = [large("one"), large("two")]
    with full(), pytest.raises(StoreFull):
        CALLS[call](session, tasks)
    assert [task.persistent_id for task in tasks] == [None, None]
    assert len(session) == 1
    session.flush()
    assert names(session) == ["first"]
    CALLS[call](session, tasks)
    assert all(task.persistent_id for task in tasks)
    assert names(session) == ["first", *(["all"] if call == "collection" else ["one", "two"])]
    session.flush()
    check(session.path)


@pytest.mark.parametrize("call", CALLS)
def test_what_was_accepted_for_later_is_kept(session: Session, full: Full, call: str) -> None:
    session.add(Task(jobname="accepted"), flush=False)
    session.add_many([Task(jobname="accepted too")], flush=False)
    with full(), pytest.raises(StoreFull):
        CALLS[call](session, [large("one")])
    assert [task.jobname for task in session] == ["first", "accepted", "accepted too"]
    session.flush()
    assert names(session) == ["first", "accepted", "accepted too"]
    check(session.path)


def test_flush_that_raises_keeps_the_batch(session: Session, full: Full) -> None:
    session.add_many([large("one"), large("two")], flush=False)
    with full():
        for _ in range(2):
            with pytest.raises(StoreFull):
                session.flush()
    session.flush()
    assert names(session) == ["first", "one", "two"]
    check(session.path)


def test_parts_of_many_that_were_written_stay(session: Session, full: Full) -> None:
    """Those have an ID, so that the call can be made again with all of them."""
    session.store.batch_bytes = 1_000_000
    tasks = [Task(jobname=str(n), extra={"x": "x" * 20_000}) for n in range(500)]

    with ExitStack() as stack:

        def some() -> Iterator[Task]:
            yield from tasks[:250]
            stack.enter_context(full())
            yield from tasks[250:]

        with pytest.raises(StoreFull):
            session.add_many(some())
    written = [task.jobname for task in tasks if task.persistent_id]
    assert written == [str(n) for n in range(len(written))]
    assert 0 < len(written) < 500
    assert names(session) == ["first", *written]
    session.add_many(tasks)
    assert names(session) == ["first", *map(str, range(500))]
    session.flush()
    check(session.path)


def test_changes_that_could_not_be_saved_are_still_changes(session: Session, full: Full) -> None:
    task = next(iter(session))
    task.extra = {"x": "x" * 1_000_000}
    for save in (session.save_all, lambda: session.save(task), lambda: session.add_many([task])):
        with full(), pytest.raises(StoreFull):
            save()
        assert task.changed
    session.save_all()
    with Session(session.path, read_only=True) as again:
        assert [len(each.extra["x"]) for each in again] == [1_000_000]
    session.flush()
    check(session.path)
