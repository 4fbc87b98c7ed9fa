"""A session to which a random walk does steps, in this process or in another one that may be killed."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs

from gc3session import ConflictError, NotFound, NotInSession, Task, UnstorableValue
from generator import STATES
from judge import make_commit, number_of
from performer import Performer
from processes import Process
from specimens import Job, record_of
from steps import Contents, Record, Step, View

SELECTED = STATES[1:3]
"""The states by which tasks are selected."""


class Failure(Exception):
    """Ends a `with` block."""


@attrs.frozen
class Picture:
    """All that a session shows.

    Attributes:
        records: of all tasks that are stored, by name, with what isn't saved.
        ids: of these, by name.
        members: the names of those in the session.
        changed: the names of those that aren't saved.
        selected: the names of those that have a state, by state.
        same: whether the objects that are held are those that are loaded.
    """

    records: dict[str, Record]
    ids: dict[str, str]
    members: list[str]
    length: int
    stats: dict[str, int]
    changed: set[str]
    selected: dict[str, set[str]]
    same: bool

    def wrong(self, view: View, seen: Contents, ids: dict[str, str]) -> str:
        """Return how this differs from *seen*, what is committed with the batch of a session's view; '' if it doesn't."""
        pairs = {
            "members": (sorted(self.members), list(seen.members)),
            "len": (self.length, len(seen.members)),
            "stats": (self.stats, Counter(seen.records[name].state for name in seen.members)),
            "IDs": (self.ids, {name: ids[name] for name in seen.records}),
            "tasks": (self.records, seen.records | view.unsaved),
            "changed": (self.changed, view.unsaved.keys()),
            "the objects held": (self.same, True),
        }
        for state, names in self.selected.items():
            right = {name for name in names if name in seen.records and seen.records[name].state == state}
            pairs[f"select({state!r})"] = (names, right)
        return "; ".join(
            f"{what}: {found}, expected {right}" for what, (found, right) in pairs.items() if found != right
        )


class Handle(Performer):
    """A session and the objects of it that its user keeps alive. All arguments and results can be pickled."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path, "walk", store_or_url=url)
        self.open()
        self._held: dict[str, Task] = {}
        self._inside: Picture | None = None

    def step(self, step: Step, ids: dict[str, str]) -> tuple[dict[str, str], Picture | None]:
        """Do a step to tasks that have these IDs; return those of new tasks, and what a transaction shows at its end."""
        self.ids |= ids
        self._inside = None
        self.do(step)
        if step.kind == "rollback":
            assert [task for task in self.new if task.persistent_id is not None] == []
        return {task.jobname: self.ids[task.jobname] for task in self.new}, self._inside

    def in_transaction(self) -> None:
        self._inside = self.picture()

    def hold(self, name: str, id_: str) -> None:
        """Keep an object alive."""
        self.ids[name] = id_
        self._held[name] = self.own.load(id_)

    def release(self, name: str) -> None:
        """Keep it alive no more."""
        self._held.pop(name, None)

    def refused(self, id_: str) -> tuple[str, ...]:
        """Save what another session has changed; return the IDs that the refusal names, () if there was none."""
        task: Any = self.own.load(id_)
        try:
            self.own.save(task)
        except ConflictError as error:
            assert task.changed
            return error.ids
        return ()

    def save_by_force(self, id_: str) -> None:
        """Save a task, whatever another session has saved."""
        self.own.save(self.own.load(id_), force=True)

    def refresh(self, id_: str) -> tuple[Record, bool]:
        """Return the record, and whether there are changes, once what is stored is taken over."""
        task: Any = self.own.load(id_)
        self.own.refresh(task)
        return record_of(task), task.changed

    def make_commit(self) -> None:
        """Make all commits visible, those of a killed process, too."""
        make_commit(self.own)

    def end(self, abruptly: bool) -> None:
        """Close the session, as a `with` block does that ends well or *abruptly*."""
        with contextlib.suppress(Failure), self.own:
            if abruptly:
                raise Failure

    def discard(self) -> None:
        """Let go of the files; nothing is written."""
        self.own.store.discard()

    def picture(self) -> Picture:
        """Return what the session shows."""
        session = self.own
        ids = list(session.ids())
        assert ids == sorted(ids, key=number_of), f"{ids} are not in the order of their numbers"
        assert session.list_ids() == set(ids)
        assert list(session.tasks) == ids
        stored: dict[str, Any] = {id_: session.load(id_) for id_ in session.store.list()}
        names = {id_: task.jobname for id_, task in stored.items()}
        assert [id_ in session for id_ in stored] == [id_ in ids for id_ in stored]
        return Picture(
            {task.jobname: record_of(task) for task in stored.values()},
            {name: id_ for id_, name in names.items()},
            [names[id_] for id_ in ids],
            len(session),
            session.stats(),
            {task.jobname for task in stored.values() if task.changed},
            {state: {task.jobname for task in session.select(state=state)} for state in SELECTED},
            all(stored[self.ids[name]] is task for name, task in self._held.items() if self.ids[name] in stored),
        )

    def refuses(self) -> None:
        """Do what must be refused; raise AssertionError if it isn't."""
        session = self.own
        _must_raise(UnstorableValue, session.add, Job(content={"x": object()}))
        _must_raise(NotInSession, session.remove, "Job.999999")
        _must_raise(NotInSession, session.forget, "Task.1")
        _must_raise(NotFound, session.load, "Task.1")

    def lacks(self, ids: list[str]) -> None:
        """Raise AssertionError if one of these can be loaded, or is in the session."""
        for id_ in ids:
            _must_raise(NotFound, self.own.load, id_)
            assert id_ not in self.own


def _must_raise(error: type[Exception], function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except error:
        return
    raise AssertionError(f"{function.__name__}{args} has not raised {error.__name__}")


class Elsewhere:
    """A handle in a process of its own: its methods are those of Handle."""

    def __init__(self, path: Path, url: str) -> None:
        self._pipe, there = Pipe()
        self._process = Process(_serve, there, self._pipe, path, url, name="the other process")
        there.close()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._pipe.send((method, args))
            try:
                return self._pipe.recv()
            except EOFError:
                raise self._process.death() from None

        return call

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._pipe.close()

    def kill_in(self, seconds: float, method: str, *args: Any) -> None:
        """Have the process begin with a call, and end it so many *seconds* later."""
        self._pipe.send((method, args))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        self.kill()

    def end(self, abruptly: bool) -> None:
        """Close the session, and let the process end."""
        self.__getattr__("end")(abruptly)
        self._pipe.close()
        self._process.result()

    def discard(self) -> None:
        """End the process, unless it has ended."""
        self.kill()


def _serve(requests: Connection, others: Connection, path: Path, url: str) -> None:
    others.close()
    handle = Handle(path, url)
    with contextlib.suppress(EOFError):
        while True:
            method, args = requests.recv()
            requests.send(getattr(handle, method)(*args))
