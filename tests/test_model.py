"""Any sequence of calls, from sessions that share a directory and sessions that share a store, agrees with a model.

Three `Session` objects work on one store: `a1` and `a2` on the same directory, `b` on another one.
The model is plain Python: what is committed, and for each of the three what it has not flushed and not saved.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import pytest
from consistency import check, read_mirror
from examples import Simulation, Sweep
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gc3session import ConflictError, NotFound, NotInSession, Session, Task, UnstorableValue

HANDLES = {"a1": "a", "a2": "a", "b": "b"}
"""The sessions, and the directory of each."""

STATES = ["NEW", "RUNNING", "TERMINATED", "x" * 450]


@attrs.frozen
class Record:
    """What the model knows of a stored task."""

    state: str
    text: str
    children: tuple[str, ...] = ()


@attrs.define
class View:
    """What one session sees: what is committed, and over it its own batch.

    The batch is kept as a list of changes, so that flushing it is doing them again on what is committed then.
    """

    changes: list[Callable[[Committed], None]] = attrs.Factory(list)
    touched: set[str] = attrs.Factory(set)  # the IDs that the batch changes
    dirty: dict[str, tuple[str, str]] = attrs.Factory(dict)  # ID -> state and text that aren't saved
    joins: bool = False  # the batch adds to the index


@attrs.define
class Committed:
    """What is on disk."""

    records: dict[str, Record] = attrs.Factory(dict)
    index: dict[str, list[str]] = attrs.Factory(lambda: {"a": [], "b": []})
    stale: set[str] = attrs.Factory(set)  # the directories whose mirror waits for its session

    def put(self, id_: str, record: Record) -> None:
        self.records[id_] = record

    def join(self, directory: str, id_: str) -> None:
        if id_ not in self.index[directory]:
            self.index[directory].append(id_)

    def leave(self, directory: str, id_: str) -> None:
        self.index[directory].remove(id_)

    def delete(self, directory: str, id_: str) -> None:
        self.records.pop(id_, None)
        for other, ids in self.index.items():
            if id_ in ids:
                ids.remove(id_)
                if other != directory:
                    self.stale.add(other)


class Failure(Exception):
    """Ends a transaction."""


class Sessions(RuleBasedStateMachine):
    below: Path  # where its directory is made

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=self.below))
        self.committed = Committed()
        self.views: dict[str, View] = {}
        self.sessions: dict[str, Session] = {}
        self.held: dict[str, dict[str, Any]] = {}
        self.used: dict[str, None] = {}  # all IDs, in the order in which they were given out
        for name in HANDLES:
            self._open(name)
        for name in ("a1", "b"):  # something to work on
            for _ in range(3):
                self._add(name, True, "NEW", "first")
        self._add_collection("a2", True, "NEW", ["NEW", "RUNNING"], None)
        self._add_what_is_stored("b", True, False, self.committed.index["a"][0])

    def _open(self, name: str) -> None:
        directory = HANDLES[name]
        self.sessions[name] = Session(self.directory / directory, store_or_url=f"lmdb://{self.directory}/store")
        self.views[name] = View()
        self.held[name] = {}
        self.committed.stale.discard(directory)

    def teardown(self) -> None:
        try:
            for name in HANDLES:
                self._flushed(name)
                self.sessions[name].close()
            for name, directory in {"a1": "a", "b": "b"}.items():
                self._open(name)
                self.sessions[name].close()
                assert check(self.directory / directory) == self.committed.index[directory]
        finally:
            try:
                for session in self.sessions.values():
                    session.close()
            finally:
                shutil.rmtree(self.directory)

    # -- the model's own work

    def _seen(self, name: str) -> Committed:
        """Return what a session sees: the committed state with its batch."""
        seen = copy.deepcopy(self.committed)
        for change in self.views[name].changes:
            change(seen)
        return seen

    def _change(self, name: str, ids: set[str], *changes: Callable[[Committed], None]) -> None:
        """Put changes into a session's batch."""
        view = self.views[name]
        view.changes += changes
        view.touched |= ids

    def _flushed(self, name: str, flush: bool = True) -> None:
        """A session's batch is on disk now."""
        view = self.views[name]
        if not flush or not view.changes:
            return
        for change in view.changes:
            change(self.committed)
        self.views[name] = View(dirty=view.dirty)

    def _free(self, name: str, *ids: str) -> bool:
        """Return whether no other session has unwritten changes to any of these IDs: else there are conflicts."""
        return not any(
            set(ids) & (view.touched | view.dirty.keys()) for other, view in self.views.items() if other != name
        )

    def _store(self, name: str, id_: str, state: str, text: str, children: tuple[str, ...] = ()) -> None:
        record = Record(state, text, children)
        self._change(name, {id_}, lambda committed: committed.put(id_, record))

    def _join(self, name: str, id_: str) -> None:
        directory = HANDLES[name]
        self._change(name, {id_}, lambda committed: committed.join(directory, id_))
        self.views[name].joins = True

    def _saved(self, name: str, id_: str) -> None:
        """A session has saved a task, and the unsaved ones in it."""
        records = self._seen(name).records
        for each in (id_, *records[id_].children):
            if each in self.views[name].dirty:
                state, text = self.views[name].dirty.pop(each)
                self._store(name, each, state, text, records[each].children)

    def _pick(self, data: st.DataObject, ids: Any) -> str | None:
        ids = self._by_age(ids)
        return data.draw(st.sampled_from(ids)) if ids else None

    def _by_age(self, ids: Iterable[str]) -> list[str]:
        """Sort IDs by when they were given out: which number each has depends on more than the steps."""
        return sorted(ids, key=list(self.used).index)

    def _gone(self, id_: str) -> None:
        for name, held in self.held.items():
            held.pop(id_, None)
            self.views[name].dirty.pop(id_, None)

    # -- rules

    name = st.sampled_from(sorted(HANDLES))
    flush = st.booleans()
    state = st.sampled_from(STATES)

    @rule(name=name, flush=flush, state=state, text=st.text(max_size=3))
    def add(self, name: str, flush: bool, state: str, text: str) -> None:
        self._add(name, flush, state, text)

    def _add(self, name: str, flush: bool, state: str, text: str) -> None:
        id_ = self.sessions[name].add(Simulation(state=state, mesh=text), flush=flush)
        self._new(id_)
        self._store(name, id_, state, text)
        self._join(name, id_)
        self._flushed(name, flush)

    def _new(self, *ids: str) -> None:
        assert len(set(ids)) == len(ids)
        assert not self.used.keys() & set(ids), "an ID was given out twice"
        self.used |= dict.fromkeys(ids)

    @rule(name=name, flush=flush, states=st.lists(state, max_size=6))
    def add_many(self, name: str, flush: bool, states: list[str]) -> None:
        ids = list(self.sessions[name].add_many((Simulation(state=s) for s in states), flush=flush))
        self._new(*ids)
        for id_, state in zip(ids, states, strict=True):
            self._store(name, id_, state, "")
            self._join(name, id_)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, state=state, data=st.data(), new=st.lists(state, max_size=3))
    def add_collection(self, name: str, flush: bool, state: str, data: st.DataObject, new: list[str]) -> None:
        known = self._pick(data, self.views[name].dirty) or self._pick(data, self._seen(name).records)
        self._add_collection(name, flush, state, new, known)

    def _add_collection(self, name: str, flush: bool, state: str, new: list[str], known: str | None) -> None:
        children: list[Any] = [Simulation(state=s) for s in new]
        stored: list[str] = []
        if known is not None and self._free(name, known) and not known.startswith("Sweep"):
            children.append(self.sessions[name].load(known))
            stored = [known]
        sweep = Sweep(tasks=children, state=state)
        id_ = self.sessions[name].add(sweep, flush=flush)
        new_ids = [child.persistent_id for child in children[: len(new)]]
        self._new(id_, *new_ids)
        for child, s in zip(new_ids, new, strict=True):
            self._store(name, child, s, "")
        self._store(name, id_, state, "", (*new_ids, *stored))
        self._saved(name, id_)
        self._join(name, id_)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, by_load=st.booleans(), data=st.data())
    def add_what_is_stored(self, name: str, flush: bool, by_load: bool, data: st.DataObject) -> None:
        self._add_what_is_stored(name, flush, by_load, self._pick(data, self._seen(name).records))

    def _add_what_is_stored(self, name: str, flush: bool, by_load: bool, id_: str | None) -> None:
        seen, session = self._seen(name), self.sessions[name]
        if id_ is None or not self._free(name, id_, *seen.records[id_].children):
            return
        if by_load:
            session.load(id_, add=True, flush=flush)
        else:
            assert session.add(session.load(id_), flush=flush) == id_
        if id_ in self.views[name].dirty:
            self._saved(name, id_)
        if id_ not in seen.index[HANDLES[name]]:
            self._join(name, id_)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, data=st.data())
    def remove(self, name: str, flush: bool, data: st.DataObject) -> None:
        seen = self._seen(name)
        id_ = self._pick(data, seen.index[HANDLES[name]])
        if id_ is None or not self._removable(name, id_, seen):
            return
        self.sessions[name].remove(id_, flush=flush)
        self._removed(name, id_, seen)
        self._flushed(name, flush)

    def _removable(self, name: str, id_: str, seen: Committed) -> bool:
        """Return whether nothing else refers to what `remove` would remove."""
        ids = {id_, *seen.records[id_].children}
        holders = {
            holder
            for other in HANDLES
            for holder, record in self._seen(other).records.items()
            if holder != id_ and ids & set(record.children)
        }
        return not holders and self._free(name, *ids)

    def _removed(self, name: str, id_: str, seen: Committed) -> None:
        directory = HANDLES[name]
        for each in {id_, *seen.records[id_].children} & seen.records.keys():
            self._change(name, {each}, lambda committed, each=each: committed.delete(directory, each))
            self._gone(each)

    @rule(name=name, flush=flush, data=st.data())
    def remove_many(self, name: str, flush: bool, data: st.DataObject) -> None:
        seen = self._seen(name)
        ids = seen.index[HANDLES[name]]
        plain = self._by_age(i for i in ids if not i.startswith("Sweep") and self._removable(name, i, seen))
        some = data.draw(st.lists(st.sampled_from(plain), unique=True, max_size=4)) if plain else []
        self.sessions[name].remove_many(some, flush=flush)
        for id_ in some:
            self._removed(name, id_, seen)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, data=st.data())
    def forget(self, name: str, flush: bool, data: st.DataObject) -> None:
        directory = HANDLES[name]
        id_ = self._pick(data, self._seen(name).index[directory])
        if id_ is None or not self._free(name, id_):
            return
        self.sessions[name].forget(id_, flush=flush)
        self._change(name, {id_}, lambda committed: committed.leave(directory, id_))
        self._flushed(name, flush)

    @rule(name=name, state=state, text=st.text(max_size=3), data=st.data(), save=st.booleans())
    def change(self, name: str, state: str, text: str, data: st.DataObject, save: bool) -> None:
        seen, session = self._seen(name), self.sessions[name]
        id_ = self._pick(data, seen.records)
        if id_ is None or not self._free(name, id_, *seen.records[id_].children):
            return
        self._assign(name, id_, state, text)
        if save:
            session.save(session.load(id_))
            self._saved(name, id_)
            self._flushed(name)

    def _assign(self, name: str, id_: str, state: str, text: str) -> None:
        task: Any = self.sessions[name].load(id_)
        task.state = state
        if isinstance(task, Sweep):
            task.parameter = text
        else:
            task.mesh = text
        self.views[name].dirty[id_] = (state, text)

    @rule(name=name, flush=flush)
    def save_all(self, name: str, flush: bool) -> None:
        self.sessions[name].save_all(flush=flush)
        for id_ in list(self.views[name].dirty):
            if id_ in self.views[name].dirty:
                self._saved(name, id_)
        self._flushed(name, flush)

    @rule(name=name)
    def flush_batch(self, name: str) -> None:
        self._flush(name)

    def _flush(self, name: str) -> None:
        self.sessions[name].flush()
        self._flushed(name)

    @rule(name=name, abruptly=st.booleans())
    def reopen(self, name: str, abruptly: bool) -> None:
        session = self.sessions[name]
        if abruptly:
            with contextlib.suppress(Failure), session:
                raise Failure
        else:
            session.close()
        self._flushed(name)
        self._open(name)

    @rule(name=name, data=st.data())
    def hold(self, name: str, data: st.DataObject) -> None:
        """Keep an object alive, as a user would."""
        id_ = self._pick(data, self._seen(name).records)
        if id_ is not None:
            self.held[name][id_] = self.sessions[name].load(id_)

    @rule(name=name, text=st.text(max_size=3), data=st.data(), fail=st.booleans())
    def transaction(self, name: str, text: str, data: st.DataObject, fail: bool) -> None:
        session, directory = self.sessions[name], HANDLES[name]
        seen = self._seen(name)
        ids = [i for i in seen.index[directory] if self._free(name, i, *seen.records[i].children)]
        plain = self._by_age(i for i in ids if not i.startswith("Sweep"))
        chosen = data.draw(st.permutations(plain)) if plain else []
        removed = [i for i in chosen[:1] if self._removable(name, i, seen)]
        forgotten, changed = chosen[1:2], chosen[2:4]
        before = copy.deepcopy((self.views[name].changes, self.views[name].touched, self.views[name].joins))
        before_dirty = dict(self.views[name].dirty)
        held = dict(self.held[name])
        new = Simulation(mesh=text)
        with contextlib.suppress(Failure), session.transaction():
            id_ = session.add(new)
            more = list(session.add_many(Simulation(mesh=text) for _ in range(2)))
            for each in (id_, *more):
                self._store(name, each, "NEW", text)
                self._join(name, each)
            for each in removed:
                session.remove(each)
                self._removed(name, each, seen)
            for each in forgotten:
                session.forget(each)
                self._change(name, {each}, lambda committed, each=each: committed.leave(directory, each))
            for each in changed:
                self._assign(name, each, "RUNNING", text)
                session.save(session.load(each))
                self._saved(name, each)
            self.agrees_with_the_model(name)
            if fail:
                raise Failure
        if not fail:
            self._new(id_, *more)
            self._flushed(name)
            return
        assert new.persistent_id is None
        view = self.views[name]
        view.changes, view.touched, view.joins = before
        view.dirty = {**before_dirty, **dict.fromkeys(changed, ("RUNNING", text))}
        self.held[name] = {i: obj for i, obj in held.items() if i not in removed}

    @rule(names=st.permutations(sorted(HANDLES)), state=state, data=st.data(), force=st.booleans())
    def conflict(self, names: list[str], state: str, data: st.DataObject, force: bool) -> None:
        winner, loser, _ = names
        for name in (winner, loser):
            self._flush(name)
        id_ = self._pick(data, self._seen(loser).records)
        if id_ is None or not all(self._free(n, id_, *self.committed.records[id_].children) for n in names):
            return
        mine: Any = self.sessions[loser].load(id_)
        self._assign(loser, id_, "UNKNOWN", "lost")
        self.views[loser].dirty.pop(id_)
        self._assign(winner, id_, state, "won")
        theirs = self.sessions[winner].load(id_)
        self.sessions[winner].save(theirs)
        self._saved(winner, id_)
        self._flushed(winner)
        with pytest.raises(ConflictError) as caught:
            self.sessions[loser].save(mine)
        assert caught.value.ids == (id_,)
        assert mine.changed
        if force:
            self.sessions[loser].save(mine, force=True)
            self.views[loser].dirty[id_] = ("UNKNOWN", "lost")
            self._saved(loser, id_)
            self._flushed(loser)
        else:
            self.sessions[loser].refresh(mine)
            assert (mine.state, mine.changed) == (state, False)

    @rule(name=name)
    def refused_calls_change_nothing(self, name: str) -> None:
        session = self.sessions[name]
        with pytest.raises(UnstorableValue):
            session.add(Simulation(inputs={"x": object()}))
        with pytest.raises(NotInSession):
            session.remove("Simulation.999999")
        with pytest.raises(NotInSession):
            session.forget("Task.1")
        with pytest.raises(NotFound):
            session.load("Task.1")

    @rule()
    def what_was_removed_raises(self) -> None:
        for name, session in self.sessions.items():
            for id_ in [id_ for id_ in self.used if id_ not in self._seen(name).records][-3:]:
                with pytest.raises(NotFound):
                    session.load(id_)
                assert id_ not in session

    # -- agreement

    @invariant()
    def all_agree_with_the_model(self) -> None:
        for name in HANDLES:
            self.agrees_with_the_model(name)
        for directory, ids in self.committed.index.items():
            if directory not in self.committed.stale:
                assert read_mirror(self.directory / directory) == ids, "the mirror"

    def agrees_with_the_model(self, name: str) -> None:
        session, seen, directory = self.sessions[name], self._seen(name), HANDLES[name]
        expected = seen.index[directory]
        assert session.list_ids() == set(expected)
        assert len(session) == len(expected)
        assert session.stats() == Counter(seen.records[id_].state for id_ in expected)
        found = list(session.tasks)
        if not self.views[name].joins:
            assert found == expected, "the order of adding"
        assert sorted(found) == sorted(expected)
        assert sorted(session.store.list()) == sorted(seen.records)
        for id_, record in seen.records.items():
            assert (id_ in session) == (id_ in expected)
            task: Any = session.load(id_)
            text = task.parameter if isinstance(task, Sweep) else task.mesh
            assert (task.state, text) == self.views[name].dirty.get(id_, (record.state, record.text))
            assert task.changed == (id_ in self.views[name].dirty)
            if isinstance(task, Sweep):
                assert [child.persistent_id for child in task.tasks] == list(record.children)
        for id_, task in self._selected(session):
            assert seen.records[id_].state == task
        for id_, obj in self.held[name].items():
            if id_ in seen.records:
                assert session.load(id_) is obj

    def _selected(self, session: Session) -> Iterator[tuple[str, str]]:
        for state in STATES[1:3]:
            for task in session.select(state=state):
                assert isinstance(task, Task)
                yield str(task.persistent_id), state


def test_any_sequence_of_calls_agrees_with_the_model(tmp_path: Path, long_form: bool) -> None:
    # Shrinking takes minutes: the steps that a failure shows can be repeated by its seed in the long form.
    phases = [hypothesis.Phase.reuse, hypothesis.Phase.generate]
    settings = hypothesis.settings(max_examples=100, stateful_step_count=30, phases=phases, deadline=None)
    if long_form:
        settings = hypothesis.settings(max_examples=2000, stateful_step_count=60, deadline=None)
    Sessions.below = tmp_path
    hypothesis.stateful.run_state_machine_as_test(Sessions, settings=settings)
