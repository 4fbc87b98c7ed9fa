"""A random walk over sessions that share a directory, a store, or neither process, against the plain model.

Four sessions work on one store: `a1`, `a2` and `far` on one directory, `b` on another; `far` is in another process,
which may be killed. Each may have a batch, which the others don't see, and changed tasks that it has not saved.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from random import Random

import attrs

from generator import ONE_TASK, Choice
from handles import Elsewhere, Handle, Picture
from judge import findings, mirrored
from steps import Change, Contents, Step, View

SESSIONS = {"a1": "a", "a2": "a", "b": "b", "far": "a"}
"""The sessions, and the directory of each."""

LENGTH = 30
"""Steps of a walk."""

SIZES = (0, 1, 2, 4)
FLUSHING = ("add", "add_many", "add_group", "adopt", "add_again", "remove", "remove_many", "forget", "save_all")
AT_ONCE = ("change", "save", "flush", "batch", "transaction", "rollback")
OTHERS = ("reopen", "kill", "hold", "conflict", "refused", "removed")
"""Kinds of steps: those that say whether to flush, those that do or don't, and what only a walk does."""

KINDS = FLUSHING + AT_ONCE + OTHERS

MANY = ("remove_many", "batch", "transaction", "rollback")


class Walk:
    """A walk.

    Args:
        directory: where it is to be; it is deleted unless the walk fails.
        seed: each step follows from it and the step's number, and from what there is then.

    Attributes:
        log: what was done.
    """

    def __init__(self, directory: Path, seed: str) -> None:
        self.directory, self.seed = directory, seed
        self.log: list[str] = []
        self._url = self.new_url()
        self._names = (f"walk/{number}" for number in count())
        self._committed = {"a": Contents(), "b": Contents()}
        self._stale: set[str] = set()  # the directories whose mirror waits for its session
        self._lines: dict[str, list[str]] = {"a": [], "b": []}  # of the mirrors, when they were looked at last
        self._views: dict[str, View] = {}
        self._handles: dict[str, Handle | Elsewhere] = {}
        self._ids: dict[str, str] = {}  # of all tasks that there have been, by name

    def new_url(self) -> str:
        """Return the URL of a store that isn't there yet."""
        return f"lmdb://{self.directory}/store"

    def run(self, numbers: Iterable[int] = range(LENGTH)) -> None:
        """Do the steps of these numbers. Raise AssertionError, or whatever it was, if one failed."""
        self.directory.mkdir()
        try:
            self._begin()
            chance = Random(f"{self.seed}/kinds")
            kinds = chance.sample(KINDS, chance.randint(4, len(KINDS)))  # some bugs need many of the same
            for number in numbers:
                self._step(kinds, Random(f"{self.seed}/{number}"))
                self._all_agree()
            self._end()
        finally:
            for handle in self._handles.values():
                handle.discard()
        shutil.rmtree(self.directory)

    def _begin(self) -> None:
        """Open all sessions, and add something to work on."""
        for session in SESSIONS:
            self._open(session)
        chance = Random(f"{self.seed}/begin")
        for session, kind in {"a1": "add_many", "b": "add_many", "a2": "add_group"}.items():
            self._do(session, Step(kind, tuple(self._choice(session, (3,)).draw(kind, chance))))
        self._do("b", Step("adopt", (Change("adopt", self._committed["a"].members[0]),)))

    def _open(self, session: str) -> None:
        directory = SESSIONS[session]
        self._views[session] = View()
        self._handles[session] = (Elsewhere if session == "far" else Handle)(self.directory / directory, self._url)
        self._stale.discard(directory)

    def _close(self, session: str, abruptly: bool = False) -> None:
        self._handles[session].end(abruptly)
        self._flushed(session)

    def _end(self) -> None:
        """Close all sessions, and have both directories checked."""
        for session in SESSIONS:
            self._close(session)
        for session in ("a1", "b"):
            self._open(session)
            self._close(session)
            assert findings(self.directory / SESSIONS[session]) == []

    # -- the model's own work

    def _seen(self, session: str) -> Contents:
        """Return what a session sees: what is committed with its batch."""
        return self._committed[SESSIONS[session]].after(self._views[session].changes)

    def _flushed(self, session: str) -> None:
        """Note that a session's batch is on disk."""
        view, directory = self._views[session], SESSIONS[session]
        for other, contents in self._committed.items():
            self._committed[other] = contents.after(view.changes, elsewhere=other != directory)
            if other != directory and self._committed[other].members != contents.members:
                self._stale.add(other)
        self._views[session] = View(unsaved=view.unsaved)

    def _free(self, session: str, *names: str) -> bool:
        """Return whether no other session has unwritten changes to any of these: else there are conflicts."""
        return not any(
            not view.touched.isdisjoint(names) or not view.unsaved.keys().isdisjoint(names)
            for other, view in self._views.items()
            if other != session
        )

    def _choice(self, session: str, sizes: tuple[int, ...], many: bool = False) -> Choice:
        """Return what a step may concern; one of *many* tasks may remove no collections."""
        seen = self._seen(session)
        held = [(name, {*(r.parts or ())}) for each in SESSIONS for name, r in self._seen(each).records.items()]

        def removable(name: str) -> bool:
            if many and seen.records[name].parts is not None:
                return False
            names = {name, *(seen.records[name].parts or ())}
            return not any(holder != name and names & parts for holder, parts in held) and self._free(
                session, *names
            )

        free = {name: r for name, r in seen.records.items() if self._free(session, name, *(r.parts or ()))}
        members = [name for name in seen.members if self._free(session, name)]
        plain = [name for name, record in free.items() if record.parts is None]
        return Choice(self._names, sizes, free, members, [*filter(removable, seen.members)], [*free], plain)

    # -- steps

    def _step(self, kinds: list[str], chance: Random) -> None:
        kind, session = chance.choice(kinds), chance.choice([*SESSIONS])
        if kind in OTHERS:
            getattr(self, f"_{kind}")(session, chance)
            return
        choice = self._choice(session, SIZES, kind in MANY)
        changes = choice.draw("transaction" if kind == "rollback" else kind, chance)
        if changes or kind not in ONE_TASK:
            self._do(session, Step(kind, tuple(changes), kind in AT_ONCE or chance.random() < 0.5))

    def _do(self, session: str, step: Step) -> None:
        """Do a step to a session and to the model."""
        self.log.append(f"{session}: {step}")
        view, seen = self._views[session], self._seen(session)
        before = attrs.evolve(view, changes=[*view.changes], touched={*view.touched}, unsaved={**view.unsaved})
        new, inside = self._handles[session].step(step, self._ids)
        assert step.kind == "rollback" or set(new.values()).isdisjoint(self._ids.values()), (
            "an ID was given out twice"
        )
        view.apply(step, seen)
        if inside is not None:
            self._agrees(session, inside, self._ids | new)
        if step.kind == "rollback":
            before.unsaved |= {change.name: change.value for change in step.changes if change.verb == "change"}
            self._views[session] = before
            return
        self._ids |= new
        for name in seen.records.keys() - self._seen(session).records.keys():
            for handle in self._handles.values():
                handle.release(name)
        if step.flush and step.kind != "change":
            self._flushed(session)

    def _reopen(self, session: str, chance: Random) -> None:
        abruptly = chance.random() < 0.5
        self.log.append(f"{session}: closed{' abruptly' if abruptly else ''} and opened")
        self._close(session, abruptly)
        self._open(session)

    def _kill(self, _: str, chance: Random) -> None:
        """End the other process between two calls: its batch is lost, and nothing else.

        Or in the middle of one: all that this was to write is there, or nothing.
        """
        call, seconds = chance.choice(("", "flush", "save_all", "end")), chance.uniform(0, 0.002)
        self.log.append(f"far: killed {seconds:.6f} s after the begin of {call}" if call else "far: killed")
        far = self._handles["far"]
        assert isinstance(far, Elsewhere)
        if not call:
            far.kill()
            self._open("far")
            return
        before, stale = dict(self._committed), {*self._stale} - {"a"}  # opening mends it
        if call == "end":
            far.kill_in(seconds, call, False)
        else:
            far.kill_in(seconds, "step", Step(call), {})
        if call == "save_all":
            self._views["far"].apply(Step(call), self._seen("far"))
        self._flushed("far")
        after = self._committed
        self._open("far")
        self._handles["far"].make_commit()
        picture, ids = self._handles["far"].picture(), self._ids
        wrong = [picture.wrong(self._views["far"], committed["a"], ids) for committed in (after, before)]
        assert "" in wrong, f"neither as after the call ({wrong[0]}) nor as before it ({wrong[1]})"
        if wrong[0]:
            self._committed, self._stale = before, stale

    def _hold(self, session: str, chance: Random) -> None:
        """Keep an object alive, as a user would."""
        names = [*self._seen(session).records]
        if names:
            name = chance.choice(names)
            self.log.append(f"{session}: {name} is held")
            self._handles[session].hold(name, self._ids[name])

    def _conflict(self, winner: str, chance: Random) -> None:
        """Save a task that another session has saved meanwhile: that is refused, unless by force."""
        loser = chance.choice([session for session in SESSIONS if session != winner])
        for session in (winner, loser):
            self._do(session, Step("flush"))
        records = self._seen(loser).records
        names = [n for n, r in records.items() if all(self._free(each, n, *(r.parts or ())) for each in SESSIONS)]
        if not names:
            return
        name = chance.choice(names)
        lost, won = (
            records[name]._replace(state=state, steps=chance.randrange(1000)) for state in ("UNKNOWN", "NEW")
        )
        self._do(loser, Step("change", (Change("change", name, lost),)))
        self._views[loser].unsaved.pop(name)
        self._do(winner, Step("save", (Change("change", name, won),)))
        handle, id_ = self._handles[loser], self._ids[name]
        refused = handle.refused(id_)
        assert refused == (id_,), f"{loser} has lost an update, or {refused} was refused instead of it"
        if chance.random() < 0.5:
            self.log.append(f"{loser}: {name} is saved by force")
            handle.save_by_force(id_)
            self._views[loser].unsaved[name] = lost
            self._views[loser].save(name, *(lost.parts or ()))
            self._flushed(loser)
        else:
            self.log.append(f"{loser}: {name} is refreshed")
            assert handle.refresh(id_) == (won, False)

    def _refused(self, session: str, _: Random) -> None:
        """Do what must be refused, and change nothing."""
        self._handles[session].refuses()

    def _removed(self, session: str, _: Random) -> None:
        """Look for what was removed: it must not be there."""
        records = self._seen(session).records
        self._handles[session].lacks([id_ for name, id_ in self._ids.items() if name not in records][-3:])

    # -- agreement

    def _all_agree(self) -> None:
        for session, handle in self._handles.items():
            self._agrees(session, handle.picture(), self._ids)
        for directory, contents in self._committed.items():
            if directory not in self._stale:
                self._mirror_agrees(directory, {self._ids[name] for name in contents.members})
            else:
                self._lines[directory] = []  # it will be written anew

    def _mirror_agrees(self, directory: str, ids: set[str]) -> None:
        """Look whether each ID has a line, and new ones stand behind those that were there."""
        lines = mirrored(self.directory / directory)
        kept = [id_ for id_ in self._lines[directory] if id_ in ids]
        assert sorted(lines) == sorted(ids), f"the mirror of {directory} has the lines {lines}, expected {ids}"
        assert lines[: len(kept)] == kept, f"the mirror of {directory} has the lines {lines}, which began {kept}"
        self._lines[directory] = lines

    def _agrees(self, session: str, picture: Picture, ids: dict[str, str]) -> None:
        wrong = picture.wrong(self._views[session], self._seen(session), ids)
        assert not wrong, f"{session}: {wrong}"
