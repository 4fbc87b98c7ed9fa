"""A random walk over sessions that share a directory, a store, or neither process, against the plain model.

Four sessions work on one store: `a1`, `a2` and `far` on one directory, `b` on another; `far` is in another process,
which may be killed.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from findings import findings
from handles import Elsewhere, Handle
from plain_model import Change, Committed, Record, View

HANDLES = {"a1": "a", "a2": "a", "b": "b", "far": "a"}
"""The sessions, and the directory of each."""

STATES = ["NEW", "RUNNING", "TERMINATED", "x" * 450]


class Walk(RuleBasedStateMachine):
    """The walk.

    Attributes:
        below: where its directory is made.
        image: where that is kept if it fails.
    """

    below: ClassVar[Path]
    image: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=self.below))
        self.url = self.new_url()
        self.committed = Committed()
        self.views: dict[str, View] = {}
        self.handles: dict[str, Any] = {}
        self.held: dict[str, set[str]] = {}
        self.used: dict[str, int] = {}  # all IDs, numbered in the order in which they were given out
        for name in HANDLES:
            self._open(name)
        for name in ("a1", "b"):  # something to work on
            for _ in range(3):
                self._add(name, True, "NEW", "first")
        self._add_collection("a2", True, "NEW", ["NEW", "RUNNING"], None)
        self._add_stored("b", True, False, self.committed.index["a"][0])

    def new_url(self) -> str:
        """Return the URL of a store that isn't there yet."""
        return f"lmdb://{self.directory}/store"

    def _open(self, name: str) -> None:
        directory = HANDLES[name]
        kind = Elsewhere if name == "far" else Handle
        self.handles[name] = kind(self.directory / directory, self.url)
        self.views[name] = View()
        self.held[name] = set()
        self.committed.stale.discard(directory)

    def _close(self, name: str, abruptly: bool = False) -> None:
        self.handles[name].close(abruptly)
        self._flushed(name)
        if name == "far":
            self.handles[name].let_end()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is not None:
                shutil.copytree(self.directory, self.image, dirs_exist_ok=True)
                return
            for name in HANDLES:
                self._close(name)
            for name, directory in {"a1": "a", "b": "b"}.items():
                self._open(name)
                self.handles[name].close()
                assert findings(self.directory / directory) == []
        finally:
            self._end()

    def _end(self) -> None:
        """Let go of everything, in whatever state it is."""
        far = self.handles.get("far")
        if far is not None:
            far.make_sure_of_the_end()
        for name, handle in self.handles.items():
            if name != "far":
                handle.discard()
        shutil.rmtree(self.directory)

    # -- the model's own work

    def _seen(self, name: str) -> Committed:
        """Return what a session sees: the committed state with its batch."""
        return self.committed.after(self.views[name].changes)

    def _change(self, name: str, ids: set[str], *changes: Change) -> None:
        """Put changes into a session's batch."""
        view = self.views[name]
        view.changes += changes
        view.touched |= ids

    def _flushed(self, name: str, flush: bool = True) -> None:
        """A session's batch is on disk now."""
        view = self.views[name]
        if not flush or not view.changes:
            return
        self.committed = self._seen(name)
        self.views[name] = View(dirty=view.dirty)

    def _free(self, name: str, *ids: str) -> bool:
        """Return whether no other session has unwritten changes to any of these IDs: else there are conflicts."""
        return not any(
            set(ids) & (view.touched | view.dirty.keys()) for other, view in self.views.items() if other != name
        )

    def _store(self, name: str, id_: str, state: str, text: str, children: tuple[str, ...] = ()) -> None:
        record = Record(state, text, children)
        self._change(name, {id_}, partial(Committed.put, id_=id_, record=record))

    def _join(self, name: str, id_: str) -> None:
        directory = HANDLES[name]
        self._change(name, {id_}, partial(Committed.join, directory=directory, id_=id_))
        self.views[name].joins = True

    def _saved(self, name: str, id_: str) -> None:
        """A session has saved a task, and the unsaved ones in it."""
        records = self._seen(name).records
        for each in (id_, *records[id_].children):
            if each in self.views[name].dirty:
                state, text = self.views[name].dirty.pop(each)
                self._store(name, each, state, text, records[each].children)

    def _saved_all(self, name: str) -> None:
        for id_ in list(self.views[name].dirty):
            if id_ in self.views[name].dirty:
                self._saved(name, id_)

    def _pick(self, which: int, ids: Iterable[str]) -> str | None:
        # What is drawn must not depend on what was found: where a kill falls is no function of the steps.
        ids = self._by_age(ids)
        return ids[which % len(ids)] if ids else None

    def _some(self, which: int, count: int, ids: Iterable[str]) -> list[str]:
        ids = self._by_age(ids)
        return random.Random(which).sample(ids, min(count, len(ids)))

    def _by_age(self, ids: Iterable[str]) -> list[str]:
        """Sort IDs by when they were given out: which number each has depends on more than the steps."""
        return sorted(ids, key=self.used.__getitem__)

    def _gone(self, id_: str) -> None:
        for name, view in self.views.items():
            view.dirty.pop(id_, None)
            if id_ in self.held[name]:
                self.held[name].remove(id_)
                self.handles[name].let_go({id_})

    # -- rules

    name = st.sampled_from(sorted(HANDLES))
    flush = st.booleans()
    state = st.sampled_from(STATES)
    which = st.integers(0, 999)
    text = st.text("aZ \n\0\x1bä\U0001f600", max_size=3)

    @rule(name=name, flush=flush, state=state, text=text)
    def add(self, name: str, flush: bool, state: str, text: str) -> None:
        self._add(name, flush, state, text)

    def _add(self, name: str, flush: bool, state: str, text: str) -> None:
        id_ = self.handles[name].add(state, text, flush)
        self._new(id_)
        self._store(name, id_, state, text)
        self._join(name, id_)
        self._flushed(name, flush)

    def _new(self, *ids: str) -> None:
        for id_ in ids:
            assert id_ not in self.used, "an ID was given out twice"
            self.used[id_] = len(self.used)

    @rule(name=name, flush=flush, states=st.lists(state, max_size=6))
    def add_many(self, name: str, flush: bool, states: list[str]) -> None:
        ids = self.handles[name].add_many(states, "", flush)
        self._new(*ids)
        for id_, state in zip(ids, states, strict=True):
            self._store(name, id_, state, "")
            self._join(name, id_)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, state=state, which=which, new=st.lists(state, max_size=3))
    def add_collection(self, name: str, flush: bool, state: str, which: int, new: list[str]) -> None:
        known = self._pick(which, self.views[name].dirty) or self._pick(which, self._seen(name).records)
        self._add_collection(name, flush, state, new, known)

    def _add_collection(self, name: str, flush: bool, state: str, new: list[str], known: str | None) -> None:
        if known is not None and (not self._free(name, known) or known.startswith("Sweep")):
            known = None
        id_, ids = self.handles[name].add_collection(state, new, known, flush)
        self._new(id_, *ids)
        for child, s in zip(ids, new, strict=True):
            self._store(name, child, s, "")
        self._store(name, id_, state, "", (*ids, known) if known else tuple(ids))
        self._saved(name, id_)
        self._join(name, id_)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, by_load=st.booleans(), which=which)
    def add_stored(self, name: str, flush: bool, by_load: bool, which: int) -> None:
        self._add_stored(name, flush, by_load, self._pick(which, self._seen(name).records))

    def _add_stored(self, name: str, flush: bool, by_load: bool, id_: str | None) -> None:
        seen = self._seen(name)
        if id_ is None or not self._free(name, id_, *seen.records[id_].children):
            return
        self.handles[name].add_stored(id_, by_load, flush)
        if id_ in self.views[name].dirty:
            self._saved(name, id_)
        if id_ not in seen.index[HANDLES[name]]:
            self._join(name, id_)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, which=which)
    def remove(self, name: str, flush: bool, which: int) -> None:
        seen = self._seen(name)
        id_ = self._pick(which, seen.index[HANDLES[name]])
        if id_ is None or not self._removable(name, id_, seen):
            return
        self.handles[name].remove(id_, flush)
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
            self._change(name, {each}, partial(Committed.delete, directory=directory, id_=each))
            self._gone(each)

    @rule(name=name, flush=flush, which=which, count=st.integers(0, 4))
    def remove_many(self, name: str, flush: bool, which: int, count: int) -> None:
        seen = self._seen(name)
        ids = seen.index[HANDLES[name]]
        plain = [i for i in ids if not i.startswith("Sweep") and self._removable(name, i, seen)]
        some = self._some(which, count, plain)
        self.handles[name].remove_many(some, flush)
        for id_ in some:
            self._removed(name, id_, seen)
        self._flushed(name, flush)

    @rule(name=name, flush=flush, which=which)
    def forget(self, name: str, flush: bool, which: int) -> None:
        directory = HANDLES[name]
        id_ = self._pick(which, self._seen(name).index[directory])
        if id_ is None or not self._free(name, id_):
            return
        self.handles[name].forget(id_, flush)
        self._change(name, {id_}, partial(Committed.leave, directory=directory, id_=id_))
        self._flushed(name, flush)

    @rule(name=name, state=state, text=text, which=which, save=st.booleans())
    def change(self, name: str, state: str, text: str, which: int, save: bool) -> None:
        seen = self._seen(name)
        id_ = self._pick(which, seen.records)
        if id_ is None or not self._free(name, id_, *seen.records[id_].children):
            return
        self._assign(name, id_, state, text)
        if save:
            self.handles[name].save(id_)
            self._saved(name, id_)
            self._flushed(name)

    def _assign(self, name: str, id_: str, state: str, text: str) -> None:
        self.handles[name].assign(id_, state, text)
        self.views[name].dirty[id_] = (state, text)

    @rule(name=name, flush=flush)
    def save_all(self, name: str, flush: bool) -> None:
        self.handles[name].save_all(flush)
        self._saved_all(name)
        self._flushed(name, flush)

    @rule(name=name)
    def flush_batch(self, name: str) -> None:
        self._flush(name)

    def _flush(self, name: str) -> None:
        self.handles[name].flush()
        self._flushed(name)

    @rule(name=name, abruptly=st.booleans())
    def reopen(self, name: str, abruptly: bool) -> None:
        self._close(name, abruptly)
        self._open(name)

    @rule(microseconds=st.integers(0, 2000), call=st.sampled_from(["", "flush", "save_all", "close"]))
    def kill(self, microseconds: int, call: str) -> None:
        """End the other process between two calls: its batch is lost, and nothing else.

        Or in the middle of one: all that this was to write is there, or nothing.
        """
        if not call:
            self.handles["far"].kill()
            self._open("far")
            return
        before = self.committed.after([])
        before.stale.discard("a")  # opening mends it, as `_open` knows
        self.handles["far"].kill_in(microseconds / 1e6, call, *([True] if call == "save_all" else []))
        if call == "save_all":
            self._saved_all("far")
        self._flushed("far")
        self._open("far")
        after = self.committed
        self.handles["far"].settle()
        picture = self.handles["far"].picture([])
        view = self.views["far"]
        wrong = [view.wrong(picture, committed, "a") for committed in (after, before)]
        assert "" in wrong, f"neither as after the call ({wrong[0]}) nor as before it ({wrong[1]})"
        self.committed = after if not wrong[0] else before

    @rule(name=name, which=which)
    def hold(self, name: str, which: int) -> None:
        """Keep an object alive, as a user would."""
        id_ = self._pick(which, self._seen(name).records)
        if id_ is not None:
            self.handles[name].hold(id_)
            self.held[name].add(id_)

    @rule(name=name, text=text, which=which, fails=st.booleans())
    def transaction(self, name: str, text: str, which: int, fails: bool) -> None:
        handle, directory = self.handles[name], HANDLES[name]
        seen = self._seen(name)
        ids = [i for i in seen.index[directory] if self._free(name, i, *seen.records[i].children)]
        chosen = self._some(which, 4, [i for i in ids if not i.startswith("Sweep")])
        removed = [i for i in chosen[:1] if self._removable(name, i, seen)]
        forgotten, changed = chosen[1:2], chosen[2:4]
        before = self.views[name].copy()
        handle.begin()
        new = [handle.add("NEW", text, True), *handle.add_many(["NEW", "NEW"], text, True)]
        for each in new:
            self._store(name, each, "NEW", text)
            self._join(name, each)
        for each in removed:
            handle.remove(each, True)
            self._removed(name, each, seen)
        for each in forgotten:
            handle.forget(each, True)
            self._change(name, {each}, partial(Committed.leave, directory=directory, id_=each))
        for each in changed:
            self._assign(name, each, "RUNNING", text)
            handle.save(each)
            self._saved(name, each)
        self._agrees(name)
        assert handle.end(fails) == [not fails]
        if fails:
            before.dirty |= dict.fromkeys(changed, ("RUNNING", text))
            self.views[name] = before
        else:
            self._new(*new)
            self._flushed(name)

    @rule(names=st.permutations(sorted(HANDLES)), state=state, which=which, force=st.booleans())
    def conflict(self, names: list[str], state: str, which: int, force: bool) -> None:
        winner, loser, *_ = names
        for name in (winner, loser):
            self._flush(name)
        id_ = self._pick(which, self._seen(loser).records)
        if id_ is None or not all(self._free(n, id_, *self.committed.records[id_].children) for n in names):
            return
        self._assign(loser, id_, "UNKNOWN", "lost")
        self.views[loser].dirty.pop(id_)
        self._assign(winner, id_, state, "won")
        self.handles[winner].save(id_)
        self._saved(winner, id_)
        self._flushed(winner)
        assert self.handles[loser].refused(id_) == (id_,)
        if force:
            self.handles[loser].save(id_, True)
            self.views[loser].dirty[id_] = ("UNKNOWN", "lost")
            self._saved(loser, id_)
            self._flushed(loser)
        else:
            assert self.handles[loser].refresh(id_) == (state, False)

    @rule(name=name)
    def refused_calls_change_nothing(self, name: str) -> None:
        self.handles[name].refuses()

    @rule()
    def what_was_removed_raises(self) -> None:
        for name, handle in self.handles.items():
            records = self._seen(name).records
            handle.lacks([id_ for id_ in self.used if id_ not in records][-3:])

    # -- agreement

    @invariant()
    def all_agree_with_the_model(self) -> None:
        for name in HANDLES:
            self._agrees(name)
        for directory, ids in self.committed.index.items():
            if directory not in self.committed.stale:
                lines = (self.directory / directory / "session_ids.txt").read_text().split("\n")
                assert [line for line in lines if line.strip()] == ids, "the mirror"

    def _agrees(self, name: str) -> None:
        picture = self.handles[name].picture(STATES[1:3])
        wrong = self.views[name].wrong(picture, self._seen(name), HANDLES[name])
        assert not wrong, f"{name}: {wrong}"
