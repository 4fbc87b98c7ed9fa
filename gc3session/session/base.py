"""What every session does with its index and its store, wherever it keeps its metadata."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from ..errors import ClosedError, InvalidArgument, LoadError, NotFound, NotInSession
from ..records.batch import Journal
from ..records.codec import layout_of
from ..records.ids import IDs, all_ids, parse_id
from ..store.index import CHUNK, Index
from ..store.staging import REMOVED_AT_ONCE
from ..store.store import Store
from ..system.gc_pause import no_collection
from ..tables.interface import Compacted, OnProgress, Reader, no_progress
from ..tasks import Persistable, Placeholder, T, TaskCollection, stamp_of

if TYPE_CHECKING:
    from ..directory import SessionDirectory
    from ..query.event_log import LogEntry
    from ..query.progress import Progress
    from ..query.selection import Kinds, Names, Selected, Time, Where
    from .editing import Edit

K = TypeVar("K", bound=Persistable)
D = TypeVar("D")

_TAKEN = 100  # tasks that add_many takes from its argument at a time


class SessionBase(Generic[T]):
    """What a session does with its index and its store, wherever it keeps its metadata."""

    name: str
    _directory: SessionDirectory | None = None

    def __init__(self, store: Store, identity: bytes, *, owns_store: bool) -> None:
        self.store = store
        self._owns_store = owns_store
        if owns_store:
            store.title = f"the session {self.name!r}"
        self._index = Index(store, identity)
        store.indexes.append(self._index)
        self._closed = False
        # Imported with the first session, not with the library; and no later: then no file might be opened any more.
        from ..query import selection

        self._selection = selection

    @property
    def store_url(self) -> str:
        """The URL of the session's store."""
        return self.store.url

    # -- adding

    def add(self, task: Persistable, flush: bool = True) -> str:
        """Store *task* and add it to the session; return its ID.

        A task that the session has already is saved if it has changed, and keeps its ID.  With
        `flush=False` it goes to disk at the next `flush`, at `close`, or when the batch is full.

        Raise UnstorableValue if it holds what can't be stored, ConflictError if its record has
        changed since it was loaded, StoreFull if there is no room: nothing has changed then.
        """
        store = self.store
        if not flush:
            with store.lock:
                if store.batch.journal is None:
                    self._ensure_writable()
                    store.make_room()
                    if store.stage_new((task,), self._index):
                        return str(task.persistent_id)
        else:
            with store.lock:
                self._ensure_writable()
                if store.add_now(task, self._index):
                    return str(task.persistent_id)
        with self._unit(flush):
            return self._add(task)

    def _add(self, task: Persistable) -> str:
        store = self.store
        number = store.own_number(task)
        if number is None or task.changed:
            new = number is None
            number = store.stage(task, home=store.home_in(self._index) if new else 0)
            if new:
                self._index.join(store.batch.set_item, number, stored=False)
                return str(task.persistent_id)
        self._include(number)
        return str(task.persistent_id)

    def _include(self, number: int) -> None:
        """Add record N to the index, if it isn't there.  Raise NotFound if there is no such record."""
        store = self.store
        with store.reading() as reader:
            if self._index.holds(reader, number):
                return
            if store.record(reader, number) is None:
                raise NotFound(f"the record {number} is no longer in {store.url}: it was removed")
        store.home_in(self._index)
        self._index.join(store.batch.set_item, number, stored=not store.batch.is_new(number))

    def add_many(self, tasks: Iterable[Persistable], flush: bool = True) -> Sequence[str]:
        """Store tasks and add them to the session; return their IDs.

        The tasks may come from a generator of any length: whenever the batch is full it is
        written, so memory stays flat.  If one of them can't be stored, or the generator raises,
        those before it are in the session; to have all or nothing use `transaction`.  If the writing
        fails, those that have an ID are in the session: call again with the others.
        """
        ids, batch = IDs(), self.store.batch
        with self.store.lock:  # or it may be another thread's transaction
            durable = flush and batch.journal is None
        journal: Journal = []
        # The tasks of a list are there already, and to write them makes no cycles: nothing could be collected.
        with no_collection() if type(tasks) in (list, tuple) else nullcontext():
            batch.kept.append(journal)
            try:
                self._stage_many(tasks, ids, journal if durable else None)
            finally:
                try:
                    if durable:
                        self._flush_many(ids, journal)
                finally:
                    batch.kept = [kept for kept in batch.kept if kept is not journal]
        return ids

    def _stage_many(self, tasks: Iterable[Persistable], ids: IDs, journal: Journal | None) -> None:
        store, index = self.store, self._index
        source = iter(tasks)
        with store.lock:
            store.sequence.expect(len(tasks) if isinstance(tasks, Sequence) else 0)
        # The lock is held for some at a time, as a generator is the user's code.
        failure: BaseException | None = None
        while failure is None:
            some, failure = _taken(source)
            with store.lock:
                self._ensure_writable()
                done = 0
                try:
                    while done < len(some):
                        if store.batch.journal is None:
                            store.make_room()
                            done += store.stage_new(some[done:] if done else some, index)
                        if done < len(some):
                            with store.unit(flush=False, journal=journal):
                                self._add(some[done])
                            done += 1
                finally:
                    ids.extend(some[:done])
        if not isinstance(failure, StopIteration):
            raise failure

    def _flush_many(self, ids: IDs, journal: Journal) -> None:
        store = self.store
        with store.lock:
            try:
                store.flush()
            except BaseException:
                store.give_up(ids.numbers(), self._index, journal)
                raise

    # -- taking away

    def remove(self, task_id: str, flush: bool = True) -> None:
        """Take a task out of the session and delete it, and the tasks in it, from the store.

        In a shared store it leaves every session.  Raise NotInSession if it isn't in this one.
        """
        self.remove_many([task_id], flush=flush)

    def remove_many(self, ids: Iterable[str], flush: bool = True) -> None:
        """Remove several tasks in one transaction: all of them, or, if one isn't there, none."""
        store = self.store
        with self._unit(flush):
            source = iter(all_ids(ids))
            while some := list(itertools.islice(source, REMOVED_AT_ONCE)):
                numbers = {id_: parsed[1] for id_ in some if (parsed := parse_id(id_))}
                with store.reading() as reader:
                    held = self._index.held(reader, numbers.values())
                    names = store.names_of(reader, numbers.values())
                for id_ in some:
                    if numbers.get(id_) not in held or not _fits(id_, names.get(numbers[id_], "")):
                        raise self._not_in_session(id_)
                    held.discard(numbers[id_])
                store.stage_removals(numbers.values())

    def forget(self, task_id: str, flush: bool = True) -> None:
        """Take a task out of the session; it stays in the store.

        Raise NotInSession if it isn't in the session.
        """
        with self._unit(flush):
            self.store.stage_leaving(self._index, self._find(task_id))

    def _find(self, id_: str) -> int:
        """Return the N of a task of the session.  Raise NotInSession if it isn't one."""
        number = self._lookup(id_)
        if number is None:
            raise self._not_in_session(id_)
        return number

    def _not_in_session(self, id_: str) -> NotInSession:
        return NotInSession(f"{id_!r} is not in the session {self.name!r}; list_ids() gives the IDs that are")

    def _lookup(self, id_: object) -> int | None:
        """Return the N of a task of the session, or None."""
        with self.store.lock, self.store.reading() as reader:
            return self._found(reader, id_)

    def _found(self, reader: Reader, id_: object) -> int | None:
        """Return what `_lookup` does, of the state that *reader* sees; the store is locked."""
        try:
            number = self.store.number_of(id_)  # type: ignore[arg-type]
        except NotFound:
            return None
        if not self._index.holds(reader, number):
            return None
        return number if _fits(str(id_), self.store.name_of(reader, number)) else None

    # -- reading

    @overload
    def load(self, obj_id: str, kind: type[K], *, add: bool = ..., flush: bool = ...) -> K: ...

    @overload
    def load(self, obj_id: str, kind: None = None, *, add: bool = ..., flush: bool = ...) -> Any: ...

    def load(
        self, obj_id: str, kind: type[Persistable] | None = None, *, add: bool = False, flush: bool = True
    ) -> Any:
        """Return the object of that ID from the store, whether the session has it or not.

        Args:
            obj_id: the ID.
            kind: the class that the object must have, or one derived from it.
            add: add the object to the session.
            flush: write that at once.

        Raise NotFound if there is none, LoadError if it can't be read or is of another class.
        """
        self._ensure_open()
        if kind is not None and not (isinstance(kind, type) and issubclass(kind, Persistable)):
            raise InvalidArgument(f"kind must be a class derived from Persistable or Task, not {kind!r}")
        obj = self.store.load(obj_id)
        if kind is not None and not isinstance(obj, kind):
            raise LoadError(f"{obj_id} is a {type(obj).__qualname__}, not a {kind.__qualname__}", obj_id)
        if add:
            self.add(obj, flush=flush)
        return obj

    @overload
    def get(self, task_id: str) -> T | None: ...

    @overload
    def get(self, task_id: str, default: D) -> T | D: ...

    def get(self, task_id: str, default: Any = None) -> Any:
        """Return the task of that ID, or *default* if the session hasn't got it."""
        try:
            return self[task_id]
        except NotInSession:
            return default

    def load_many(self, ids: Iterable[str]) -> Iterator[Any]:
        """Give the objects of some IDs, one by one; raise as `load` does, at the one concerned."""
        return map(self.load, all_ids(ids))

    def __getitem__(self, task_id: str) -> T:
        """Return the task of that ID.  Raise NotInSession if the session hasn't got it."""
        self._ensure_open()
        self._find(task_id)
        return self.store.load(task_id)  # type: ignore[return-value]

    def __contains__(self, task: object) -> bool:
        self._ensure_open()
        if not isinstance(task, Persistable):
            return self._lookup(task) is not None
        try:
            number = self.store.own_number(task)
        except InvalidArgument:
            return False
        with self.store.lock, self.store.reading() as reader:
            return number is not None and self._index.holds(reader, number)

    def __len__(self) -> int:
        self._ensure_open()
        with self.store.lock, self.store.reading() as reader:
            return self._index.count(reader)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[T]:
        """Give the tasks in the order of adding.

        A task whose record can't be read raises LoadError, and the iterator goes on after it.
        """
        return self._selected(CHUNK)

    def _selected(self, first_page: int | None, *asked: Any) -> Selected:
        self._ensure_open()
        return self._selection.Selected(self._index, self._selection.Filters(*asked), first_page)

    def ids(self) -> Iterator[str]:
        """Give the IDs of the session's tasks in the order of adding; no record is read."""
        return self._selected(CHUNK).ids()

    def list_ids(self) -> set[str]:
        """Return the set of the IDs of the session's tasks."""
        return set(self.ids())

    def list_names(self) -> set[str]:
        """Return the set of the `jobname`s of the session's tasks."""
        return {task.jobname for task in self if hasattr(task, "jobname")}

    @property
    def tasks(self) -> Mapping[str, T]:
        """A mapping of the tasks by their IDs, in the order of adding; each task is loaded when it is asked for.

        It shows the session as it is at each moment.  Raise NotInSession, which is a KeyError, for
        another ID.
        """
        return TasksByID(self)

    def iter_workflow(self) -> Iterator[Any]:
        """Give the session's tasks and those inside collections, each once.

        All tasks of the session come first, then the tasks in their collections, and so on.
        """
        seen: set[tuple[int, int]] = set()  # N of each that is in a collection, or its id() if it has none
        level: deque[TaskCollection] = deque()

        def first_time(task: Persistable) -> bool:
            stamp = stamp_of(task)
            key = (0, id(task)) if stamp is None else (stamp.number, 0)
            if key in seen:
                return False
            seen.add(key)
            return True

        for task in self:
            if isinstance(task, TaskCollection) and first_time(task):
                level.append(task)
            yield task
        while level:
            for task in level.popleft().tasks:
                if first_time(task) and task not in self:
                    if isinstance(task, TaskCollection):
                        level.append(task)
                    yield task

    def stats(self) -> dict[str, int]:
        """Return how many of the session's tasks are in each state.

        Persistables that have no state aren't counted.
        """
        self._ensure_open()
        with self.store.lock, self.store.reading() as reader:
            return self._index.counts(reader)

    @overload
    def select(
        self,
        state: Names | None = ...,
        name: str | re.Pattern[str] | None = ...,
        *,
        id: str | re.Pattern[str] | None = ...,
        kind: type[K],
        where: Where = ...,
        since: Time | None = ...,
        before: Time | None = ...,
        **fields: Any,
    ) -> Selected[K]: ...

    @overload
    def select(
        self,
        state: Names | None = ...,
        name: str | re.Pattern[str] | None = ...,
        *,
        id: str | re.Pattern[str] | None = ...,
        kind: Kinds | None = ...,
        where: Where = ...,
        since: Time | None = ...,
        before: Time | None = ...,
        **fields: Any,
    ) -> Selected[T]: ...

    def select(
        self,
        state: Names | None = None,
        name: str | re.Pattern[str] | None = None,
        *,
        id: str | re.Pattern[str] | None = None,  # noqa: A002 (it is one)
        kind: Kinds | None = None,
        where: Where = (),
        since: Time | None = None,
        before: Time | None = None,
        **fields: Any,
    ) -> Selected[Any]:
        """Give the tasks that fit all of the arguments, in the order of adding.

        Args:
            state: one state or several of them.
            name: a regular expression that is searched for in the `jobname`.
            id: a regular expression that is searched for in the ID.
            kind: a class, or the name or tag of one, or several of these; derived classes don't fit.
            where: a `Condition` or its text, such as `'extra.runtimeInSeconds > 30'`, or several.
            since: the last event of a task's history was then or later: a datetime (a naive one is
                local time), a timedelta (that long ago), or a text such as '2026-11-24 18:30',
                'yesterday' or '2 hours ago'.
            before: the last event was before that, given like *since*.
            fields: values of the fields of these names; a task without such a field doesn't fit.

        The states are those in the store.  If states are given, also by the condition
        `state = RUNNING`, only the tasks in these are read.  The iterator's `ids()` gives the IDs
        instead, and `stored()` the tasks as their records have them.  A task whose record can't be
        read raises LoadError, and the iterator goes on after it.  Raise InvalidArgument for an
        argument that can't be understood.
        """
        return self._selected(None, state, name, id, kind, where, since, before, fields)

    def log(
        self,
        *,
        state: Names | None = None,
        name: str | re.Pattern[str] | None = None,
        since: Time | None = None,
        before: Time | None = None,
        last: int | None = None,
        follow: bool = False,
        interval: float = 0.5,
    ) -> Iterator[LogEntry]:
        """Give the events of all tasks, also of those inside collections, in the order of time.

        Events at the same time come in the order in which the tasks were added.  Events whose time
        isn't known come first; a task without a history has one such event, with its state.  The
        events are those in the records: what was changed and not saved doesn't count.

        Args:
            state: one state or several of them; only events with these are given.
            name: a regular expression that is searched for in the `jobname`.
            since: only events then or later are given; a time as in `select`.
            before: only events before that are given.
            last: how many events are given, the last ones; None for all.
            follow: afterwards, wait for events that are added, and give them until the session is
                destroyed or moved.  Each event is given once.  One of a task that is new, or that
                had not TERMINATED, is seen within the interval; one of another task when all tasks
                are read again, which takes a twentieth of the time.  Events that are seen together
                are sorted by time.
            interval: seconds between two looks at the session; it is longer if a look takes long.

        Memory is taken for some bits a task, and not for the events.  For each task that can't be
        read the iterator raises LoadError, before the first event, and goes on after it.  Raise
        InvalidArgument for an argument that can't be understood.
        """
        from ..query.event_log import log  # what few programs use

        self._ensure_open()
        wanted = self._selection.Filters(state, name, since=since, before=before)
        return log(self._index, wanted, last, interval if follow else None, self._is_there)

    def watch(self, interval: float = 2.0) -> Iterator[Progress]:
        """Give how far the session has come, now and every *interval* seconds until all tasks have TERMINATED.

        It also ends when the session is destroyed or moved; it goes on while the session is empty.
        A look takes the same time however many tasks there are.  Raise InvalidArgument if *interval*
        isn't positive.
        """
        from ..query.progress import watch  # what few programs use

        self._ensure_open()
        if not interval > 0:
            raise InvalidArgument(f"interval must be seconds between two looks, more than 0, not {interval!r}")
        return watch(self._index, interval, self._is_there)

    def _is_there(self) -> bool:
        """Return whether the session is still where it was opened, and the same."""
        return not self._closed

    # -- saving

    def save(self, obj: Persistable, *, force: bool = False, flush: bool = True) -> str:
        """Write *obj* to the store; return its ID.  It isn't added to the session.

        A copy that came through pickle is written as the record that it is a copy of, and the object
        of that record takes its values over.

        Raise ConflictError if its record has changed since it was loaded; *force* overwrites it.
        """
        with self._unit(flush):
            self.store.stage(obj, force=force)
            return str(obj.persistent_id)

    def save_all(self, flush: bool = True) -> None:
        """Save the tasks of this session, and what is in them, that have unsaved changes.

        A field that was assigned counts in any case; a change inside a value, as of
        `task.extra['x'] = 1`, while the task is held, or if a loop or one of the last 1,024 loads
        gave it.

        Raise ConflictError, with nothing written, if the record of one has changed since it was
        loaded: `refresh` or `save(obj, force=True)` those of its `ids`, and call again.
        """
        with self._unit(flush):
            self.store.stage_changed(self._mine)

    def _mine(self, numbers: list[int]) -> list[int]:
        """Return those of some Ns that aren't another session's of the same store."""
        others = [index for index in self.store.indexes if index is not self._index]
        if not others:
            return numbers
        with self.store.reading() as reader:
            elsewhere = {n for index in others for n in index.held(reader, numbers)}
            elsewhere -= self._index.held(reader, elsewhere)
        return [number for number in numbers if number not in elsewhere]

    @overload
    def edit(
        self,
        state: Names | None = ...,
        name: str | re.Pattern[str] | None = ...,
        *,
        id: str | re.Pattern[str] | None = ...,
        kind: type[K],
        where: Where = ...,
        since: Time | None = ...,
        before: Time | None = ...,
        **fields: Any,
    ) -> Edit[K]: ...

    @overload
    def edit(
        self,
        state: Names | None = ...,
        name: str | re.Pattern[str] | None = ...,
        *,
        id: str | re.Pattern[str] | None = ...,
        kind: Kinds | None = ...,
        where: Where = ...,
        since: Time | None = ...,
        before: Time | None = ...,
        **fields: Any,
    ) -> Edit[T]: ...

    def edit(
        self,
        state: Names | None = None,
        name: str | re.Pattern[str] | None = None,
        *,
        id: str | re.Pattern[str] | None = None,  # noqa: A002 (it is one)
        kind: Kinds | None = None,
        where: Where = (),
        since: Time | None = None,
        before: Time | None = None,
        **fields: Any,
    ) -> Edit[Any]:
        """`with` this, and a loop over what it gives, change any number of tasks, which are saved as the loop goes on.

        The arguments are those of `select`; without any it is all tasks.  What the loop changes, also
        inside values, is saved 4,096 tasks at a time, and the rest when the block is left; so no more
        memory is taken however many there are.  If the block raises, what isn't saved yet is given up,
        and a note of the exception says up to which task all is saved.

        >>> import os, tempfile
        >>> from gc3session import Session, Task
        >>> session = Session(os.path.join(tempfile.mkdtemp(), 'example'))
        >>> _ = session.add_many(Task(jobname=f'job-{n}') for n in range(3))
        >>> with session.edit(name='job-[12]') as tasks:
        ...     for task in tasks:
        ...         task.extra['seen'] = True
        >>> [task.extra for task in session]
        [{}, {'seen': True}, {'seen': True}]
        """
        self._ensure_open()
        from .editing import Edit

        return Edit(self._index, self._selection.Filters(state, name, id, kind, where, since, before, fields))

    def update(self, selection: Selected[Any], **fields: Any) -> int:
        """Set some fields of all tasks of a selection, as `edit` does it; return how many there were.

        Raise InvalidArgument, at the first such task, for a field that a task hasn't got.
        """
        from ..query.selection import Selected
        from .editing import Edit

        if not isinstance(selection, Selected) or selection.index is not self._index:
            raise InvalidArgument(f"update() takes what select() of the same session gives, not {selection!r}")
        count = 0
        with Edit[Any](self._index, selection.filters) as tasks:
            for task in tasks:
                known = task.fields if isinstance(task, Placeholder) else layout_of(type(task)).fields
                for name, value in fields.items():
                    if name not in known:
                        raise InvalidArgument(f"{task!r} has no field {name!r}")
                    setattr(task, name, value)
                count += 1
        return count

    def refresh(self, obj: Persistable) -> None:
        """Take over the stored state of *obj*; what was changed in it since is given up."""
        self._ensure_open()
        self.store.refresh(obj)

    def flush(self) -> None:
        """Write the batch: all that was done with `flush=False`.

        If it raises, the batch is kept: once the cause is removed, flush again.
        """
        self._ensure_open()
        self.store.flush()
        self._tend_mirror()

    def _tend_mirror(self) -> None:
        """Have the mirror mended, if there is one and it is stale."""

    @contextmanager
    def transaction(self) -> Iterator[Self]:
        """`with` this, what is done to the session is written whole at the end, or not at all.

        If the block or the writing raises, the session is as before, in memory, too; the
        objects' own fields stay as they are.  Other threads wait until it ends; another asyncio
        task of this thread that wants to write is refused at once.  A generator that yields inside
        its transaction shares it with its caller.
        """
        store = self.store
        with self._unit(True):
            store.transactions += 1
            try:
                yield self
            finally:
                store.transactions -= 1

    def compact(self, *, progress: OnProgress = no_progress) -> Compacted:
        """Give back the room that the store's file doesn't need, and return how large it was and is.

        The batch is written first.  A store that several sessions share is compacted as a whole.
        Other threads wait meanwhile; whatever ends the process leaves the old file or the new one.

        Args:
            progress: called with how much has been done, and how much there is.

        Raise StoreInUse if another process has the store open, StoreFull if there is no room for
        the new file beside the old one: nothing has changed then.
        """
        self._ensure_writable()
        with self.store.lock:
            self.flush()
            return self.store.tables.compact(progress)

    # -- ending

    def close(self) -> None:
        """Write the batch and close the session.  Closing twice does nothing.

        If the writing fails the session stays open.  What else fails then is raised once it is closed.
        """
        store = self.store
        try:
            with store.lock:
                if not self._closed:
                    if not store.read_only:
                        store.flush()
                    self._closed = True
                    try:
                        if not store.read_only:
                            self._tidy()
                    finally:
                        self._index.reset()
                        store.indexes.remove(self._index)
        finally:
            if self._closed and self._owns_store:
                store.close()

    def _tidy(self) -> None:
        """Do what is to be done before closing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- checks

    def _unit(self, flush: bool) -> AbstractContextManager[None]:
        self._ensure_open()
        return self.store.unit(flush=flush)

    def _ensure_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the session {self.name!r} is closed; open it again")

    def _ensure_writable(self) -> None:
        self._ensure_open()
        self.store.ensure_writable()


def _fits(id_: str, name: str) -> bool:
    """Return whether an ID has the *name* that its record says; one that can't be read says none."""
    return name in (id_.rpartition(".")[0], "Unreadable", "")


def _taken(source: Iterator[Persistable]) -> tuple[list[Persistable], BaseException | None]:
    """Return the next tasks of an iterator, not too many, and the exception with which it has ended."""
    tasks: list[Persistable] = []
    try:
        while len(tasks) < _TAKEN:
            tasks.append(next(source))
    except BaseException as error:  # noqa: BLE001 (it is raised once what came before is stored)
        return tasks, error
    return tasks, None


class TasksByID(Mapping[str, Any]):
    """The tasks of a session by their IDs, in the order of adding; see `SessionBase.tasks`."""

    def __init__(self, session: SessionBase) -> None:
        self._session = session

    def __getitem__(self, task_id: str) -> Any:
        return self._session[task_id]

    def __iter__(self) -> Iterator[str]:
        return self._session.ids()

    def __len__(self) -> int:
        return len(self._session)

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, str) and task_id in self._session

    def __repr__(self) -> str:
        return f"<{len(self)} tasks of {self._session!r}>"
