"""A session to which a random walk does things, in this process or in another one that may be killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs

from gc3session import ConflictError, NotFound, NotInSession, Persistable, Session, Task, UnstorableValue
from processes import Died
from specimens import Simulation, Sweep


class Failure(Exception):
    """Ends a transaction or a `with` block."""


@attrs.frozen
class Seen:
    """What a stored task looks like through a session."""

    state: str
    text: str
    children: tuple[str, ...]
    changed: bool
    member: bool


@attrs.frozen
class Picture:
    """All that a session shows."""

    ids: list[str]
    length: int
    stats: dict[str, int]
    stored: list[str]
    tasks: dict[str, Seen]  # of all that are stored
    selected: dict[str, list[str]]  # state -> IDs
    same: bool  # whether the objects that are held are those that are loaded


class Handle:
    """A session and the objects of it that its user keeps alive.  All arguments and results can be pickled."""

    def __init__(self, path: Path, store: str) -> None:
        self._session = Session(path, store_or_url=store)
        self._held: dict[str, Task] = {}
        self._block = contextlib.ExitStack()
        self._new: list[Task] | None = None  # those of the transaction that is open

    # -- adding and taking away

    def add(self, state: str, text: str, flush: bool) -> str:
        task = Simulation(state=state, mesh=text)
        if self._new is not None:
            self._new.append(task)
        return self._session.add(task, flush=flush)

    def add_many(self, states: list[str], text: str, flush: bool) -> list[str]:
        return list(self._session.add_many((Simulation(state=s, mesh=text) for s in states), flush=flush))

    def add_collection(self, state: str, new: list[str], known: str | None, flush: bool) -> tuple[str, list[str]]:
        """Add a collection of new tasks in the states *new* and one that is *known*; return the new IDs."""
        fresh: list[Persistable] = [Simulation(state=s) for s in new]
        tasks = [*fresh, self._session.load(known)] if known is not None else fresh
        id_ = self._session.add(Sweep(tasks=tasks, state=state), flush=flush)
        return id_, [str(task.persistent_id) for task in fresh]

    def add_stored(self, id_: str, by_load: bool, flush: bool) -> None:
        if by_load:
            self._session.load(id_, add=True, flush=flush)
        else:
            assert self._session.add(self._session.load(id_), flush=flush) == id_

    def remove(self, id_: str, flush: bool) -> None:
        self._session.remove(id_, flush=flush)

    def remove_many(self, ids: list[str], flush: bool) -> None:
        self._session.remove_many(ids, flush=flush)

    def forget(self, id_: str, flush: bool) -> None:
        self._session.forget(id_, flush=flush)

    # -- changing

    def assign(self, id_: str, state: str, text: str) -> None:
        task = self._session.load(id_)
        task.state = state
        if isinstance(task, Sweep):
            task.parameter = text
        else:
            task.mesh = text

    def hold(self, id_: str) -> None:
        self._held[id_] = self._session.load(id_)

    def let_go(self, ids: set[str]) -> None:
        for id_ in ids & self._held.keys():
            del self._held[id_]

    def save(self, id_: str, force: bool = False) -> None:
        self._session.save(self._session.load(id_), force=force)

    def save_all(self, flush: bool) -> None:
        self._session.save_all(flush=flush)

    def refused(self, id_: str) -> tuple[str, ...]:
        """Save what another session has changed; return the IDs that the refusal names, () if there was none."""
        task = self._session.load(id_)
        try:
            self._session.save(task)
        except ConflictError as error:
            assert task.changed
            return error.ids
        return ()

    def refresh(self, id_: str) -> tuple[str, bool]:
        """Return the state, and whether there are changes, once the stored ones are taken over."""
        task = self._session.load(id_)
        self._session.refresh(task)
        return task.state, task.changed

    def flush(self) -> None:
        self._session.flush()

    def settle(self) -> None:
        """Write nothing, in a transaction: then what others have committed is seen, though they were killed."""
        self._session.store.tables.write(lambda writer: None)

    # -- transactions

    def begin(self) -> None:
        self._new = []
        self._block = contextlib.ExitStack()
        self._block.enter_context(self._session.transaction())

    def end(self, fails: bool) -> list[bool]:
        """End the transaction; return of each task that `add` added in it whether it has an ID."""
        with contextlib.suppress(Failure), self._block:
            if fails:
                raise Failure
        new, self._new = self._new or [], None
        return [task.persistent_id is not None for task in new]

    # -- ending

    def close(self, abruptly: bool = False) -> None:
        if not abruptly:
            self._session.close()
            return
        with contextlib.suppress(Failure), self._session:
            raise Failure

    def discard(self) -> None:
        """Let go of the files; nothing is written."""
        self._session.store.discard()

    # -- looking

    def picture(self, states: list[str]) -> Picture:
        session = self._session
        ids = list(session.ids())
        assert session.list_ids() == set(ids)
        assert list(session.tasks) == ids
        stored = list(session.store.list())
        tasks = {}
        for id_ in stored:
            task = session.load(id_)
            children = tuple(str(child.persistent_id) for child in task.tasks) if isinstance(task, Sweep) else ()
            text = task.parameter if isinstance(task, Sweep) else task.mesh
            tasks[id_] = Seen(task.state, text, children, task.changed, id_ in session)
        selected = {state: [str(task.persistent_id) for task in session.select(state=state)] for state in states}
        same = all(session.load(id_) is task for id_, task in self._held.items() if id_ in tasks)
        return Picture(ids, len(session), session.stats(), stored, tasks, selected, same)

    def refuses(self) -> None:
        """Do what must be refused; raise AssertionError if it isn't."""
        session = self._session
        self._must_raise(UnstorableValue, session.add, Simulation(inputs={"x": object()}))
        self._must_raise(NotInSession, session.remove, "Simulation.999999")
        self._must_raise(NotInSession, session.forget, "Task.1")
        self._must_raise(NotFound, session.load, "Task.1")

    def lacks(self, ids: list[str]) -> None:
        """Raise AssertionError if one of these can be loaded, or is in the session."""
        for id_ in ids:
            self._must_raise(NotFound, self._session.load, id_)
            assert id_ not in self._session

    @staticmethod
    def _must_raise(error: type[Exception], function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except error:
            return
        raise AssertionError(f"{function.__name__}{args} has not raised {error.__name__}")


class Elsewhere:
    """A handle in a process of its own: its methods are those of Handle."""

    def __init__(self, path: Path, store: str) -> None:
        there, self._requests = os.pipe()
        self._replies, back = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._requests)
            os.close(self._replies)
            _serve(there, back, path, store)
        os.close(there)
        os.close(back)
        self._answers = open(self._replies, "rb")  # noqa: SIM115  as long as the process
        self._reply()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._request(method, args)
            return self._reply()

        return call

    def _request(self, method: str, args: tuple[Any, ...]) -> None:
        data = pickle.dumps((method, args))
        os.write(self._requests, len(data).to_bytes(4, "big") + data)

    def _reply(self) -> Any:
        try:
            done, value = pickle.load(self._answers)
        except EOFError:
            raise Died("the other process ended by itself") from None
        if not done:
            raise AssertionError(f"in the other process:\n{value}")
        return value

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        os.kill(self._pid, signal.SIGKILL)
        self._end()

    def kill_in(self, seconds: float, method: str, *args: Any) -> None:
        """Have the process begin with a call, and end it so many *seconds* later."""
        self._request(method, args)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        self.kill()

    def let_end(self) -> None:
        """Let the process end: its session is closed."""
        os.close(self._requests)
        self._requests = -1
        self._end()

    def make_sure_of_the_end(self) -> None:
        """End the process, unless it has ended."""
        if self._pid:
            self.kill()

    def _end(self) -> None:
        os.waitpid(self._pid, 0)
        self._pid = 0
        self._answers.close()
        if self._requests >= 0:
            os.close(self._requests)


def _serve(requests: int, replies: int, path: Path, store: str) -> NoReturn:
    try:
        with open(requests, "rb") as questions, open(replies, "wb", buffering=0) as answers:
            handle = _answer(answers, Handle, path, store)
            while size := questions.read(4):
                method, args = pickle.loads(questions.read(int.from_bytes(size, "big")))
                _answer(answers, getattr(handle, method), *args)
    finally:
        os._exit(0)


def _answer(answers: Any, function: Callable[..., Any], *args: Any) -> Any:
    value = None
    try:
        value = function(*args)
        data = pickle.dumps((True, None if isinstance(value, Handle) else value))
    except BaseException:  # noqa: BLE001  the other process is to learn of it
        data = pickle.dumps((False, traceback.format_exc()))
    view = memoryview(data)
    while view:
        view = view[answers.write(view) :]
    return value
