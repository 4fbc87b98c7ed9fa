"""Does the steps of an owner to a session, and reports each before and after it.

As a program, `performer.py PATH SEED PROGRAM PROGRAMS STEPS [--broken HOW] [--destroy]`, it does those of a script, and
reports to the recorder, which it is started with.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import gc3session.session.session
import gc3session.tables.lmdb.opening
from breakages import BREAKAGES, break_by
from gc3session import ConflictError, Session, Task, UnsavedWarning
from generator import script
from specimens import assign, new_task
from steps import SHARED, Step

warnings.filterwarnings("ignore", category=UnsavedWarning)  # sessions are closed with changes on purpose

SMALL_MAP = 1 << 17
"""Bytes of a store's address space to begin with, so that it grows in mid-run."""

MANY_BLANKS = 200
"""Blank bytes of a mirror that closing tidies away, far fewer than usual."""

Report = Callable[..., None]
"""Takes down words, which JSON can write; their order is that of what happens to the disk."""


def on_a_small_scale() -> None:
    """Have maps grow and mirrors be tidied after few tasks, where it usually takes many."""
    gc3session.tables.lmdb.opening._SMALLEST_MAP = SMALL_MAP
    gc3session.session.session._FULL_OF_BLANKS = MANY_BLANKS


def to_recorder() -> Report:
    """Return what reports to the recorder, which this program was started with."""
    report = ctypes.CDLL(None).crashkit_report
    return lambda *words: report(json.dumps(words).encode())


def no_report(*words: Any) -> None:
    """Take down nothing."""


class Rollback(Exception):
    """Ends a transaction that is not to be."""


class Performer:
    """Does steps to a session.

    Args:
        path: of the session.
        owner: of the steps.
        report: takes down what is tried, which IDs were given out, and what is done.
        shared: the Session to work with, which other threads use, too; unless given, one of its own.
        options: for opening.

    Attributes:
        ids: of the tasks that it knows, by name.
        new: the tasks that the last step has made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        owner: str,
        report: Report = no_report,
        shared: Session | None = None,
        **options: Any,
    ) -> None:
        self.path, self.owner = path, owner
        self.ids: dict[str, str] = {}
        self.new: list[Any] = []
        self._report, self._shared, self._options = report, shared, options
        self._own: Session | None = None

    @property
    def session(self) -> Session:
        """The session that it works with, which is opened if it has to be."""
        return self.own if self._shared is None else self._shared

    @property
    def own(self) -> Session:
        """Its own session."""
        return self.open(create=False) if self._own is None else self._own

    @property
    def was_opened(self) -> bool:
        """Whether its own session has been opened."""
        return self._own is not None

    @property
    def is_open(self) -> bool:
        """Whether its own session is open; a call that has failed may have closed it."""
        return self._own is not None and not self._own._closed

    def open(self, create: bool = True) -> Session:
        """Open its own session."""
        self._own = Session(self.path, create, **self._options)
        return self._own

    def close(self) -> None:
        """Close its own session."""
        if self._own is not None:
            self._own.close()

    def perform(self, number: int, step: Step) -> None:
        """Do a step, and report it; when this returns it is on disk."""
        self._report("try", self.owner, number)
        self.do(step)
        self._report("done", self.owner, number)

    def do(self, step: Step) -> None:
        """Do a step."""
        kind, changes, flush = step
        self.new = []
        if kind in ("transaction", "rollback"):
            try:
                with self.session.transaction():
                    self._change(step)
                    self.in_transaction()
                    if kind == "rollback":
                        raise Rollback
            except Rollback:
                pass
        elif kind == "batch":
            self._change(Step(kind, changes, flush=False))
            self.session.flush()
        elif kind == "reopen":
            self.close()
            self.open(create=False)
        elif kind == "open":
            self.open()
        elif kind == "finish":
            self.session.set_end_timestamp(changes[0].value)
        elif kind == "share":
            self._share(changes[0].value)
        elif kind in ("compact", "repair", "flush"):
            getattr(self.session, kind)()
        else:
            self._change(Step(kind, changes, flush))

    def in_transaction(self) -> None:
        """Do what there is to be done before a transaction ends."""

    def _change(self, step: Step) -> None:
        """Do the changes of a step with the calls of its kind."""
        kind, changes, flush = step
        session, ids = self.session, self.ids
        names: dict[str, list[str]] = {}
        for verb, name, _ in changes:
            names.setdefault(verb, []).append(name)
        self._add(step)
        changed = []  # kept until they are saved
        for verb, name, record in changes:
            if verb == "change":
                changed.append(session.load(ids[name]))
                assign(changed[-1], record)
        if kind in ("save_all", "batch"):
            session.save_all(flush=flush)
        elif kind != "change":
            for task in changed:
                session.save(task)
        for name in names.get("forget", ()):
            session.forget(ids[name], flush=flush)
        for name in names.get("adopt", ()):
            if kind == "add_again":
                session.add(session.load(ids[name]), flush=flush)
            else:
                session.load(ids[name], add=True, flush=flush)
        removed = [ids[name] for name in names.get("remove", ())]
        if kind == "remove":
            for id_ in removed:
                session.remove(id_, flush=flush)
        elif removed or kind == "remove_many":
            session.remove_many(removed, flush=flush)

    def _add(self, step: Step) -> None:
        """Do the changes of a step that add tasks."""
        new: dict[str, Any] = {}
        added: list[Task] = []
        for verb, name, record in step.changes:
            if verb in ("part", "add"):
                known = {part: self.session.load(self.ids[part]) for part in record.parts or () if part not in new}
                new[name] = new_task(name, record, new | known)
                if verb == "add":
                    added.append(new[name])
        self.new = list(new.values())
        if step.kind == "add_many":
            list(self.session.add_many(added, flush=step.flush))
            self._given(step, added)
        else:
            for task in added:
                self.session.add(task, flush=step.flush)
                self._given(step, [task])
        self.ids |= {name: str(task.persistent_id) for name, task in new.items()}

    def _given(self, step: Step, added: list[Task]) -> None:
        """Take down the IDs of tasks that were added; those of a rollback may be given out again."""
        ids = {task.jobname: str(task.persistent_id) for task in added}
        self.ids |= ids
        if step.kind != "rollback":
            self._report("ids", self.owner, ids)

    def _share(self, number: int) -> None:
        """Count in the task that all owners share, through its own session: increments are nobody else's to save."""
        task: Any = self.own.load(self.ids[SHARED])
        while True:
            task.content = {**task.content, self.owner: number}
            try:
                self.own.save(task)
            except ConflictError:
                self.own.refresh(task)
            else:
                return


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    for name in ("seed", "program", "programs", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("--broken", choices=BREAKAGES, default="")
    parser.add_argument("--destroy", action="store_true")
    options = parser.parse_args()
    on_a_small_scale()
    break_by(options.broken)
    report = to_recorder()
    if options.destroy:
        session = Session(options.path, create=False, map_size=SMALL_MAP)
        report("try", "destroy")
        session.destroy()
        report("done", "destroy")
        return
    performer = Performer(options.path, str(options.program), report, map_size=SMALL_MAP)
    for number, (step, _) in enumerate(script(options.seed, options.program, options.programs, options.steps)):
        performer.perform(number, step)
    performer.close()


if __name__ == "__main__":
    main()
