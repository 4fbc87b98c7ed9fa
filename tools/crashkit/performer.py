"""Does the steps of a script to a session, and tells of each before and after it."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any, Protocol

from gc3session import Session
from script import Group, Holds, Job, Step, new_task, text_of

SMALL_MAP = 1 << 17
"""Bytes of a store's address space to begin with, so that it grows in mid-run."""


class Teller(Protocol):
    """Takes down what a program tries, and what has returned."""

    def __call__(self, *words: Any) -> None:
        """Take down *words*, which JSON can write, in the order of what happens to the disk."""


class Recorded:
    """Tells the recorder, which this program was started with."""

    def __init__(self) -> None:
        self._tell = ctypes.CDLL(None).crashkit_tell

    def __call__(self, *words: Any) -> None:
        self._tell(json.dumps(words).encode())


class Piped:
    """Tells whoever reads a pipe: a line for each telling, written at once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, *words: Any) -> None:
        os.write(self._fd, json.dumps(words).encode() + b"\n")


class Performer:
    """One program, numbered *program*, that does steps to the session at *path*."""

    def __init__(self, path: str, program: int, tell: Teller) -> None:
        self._path = path
        self._program = program
        self._tell = tell
        self.session: Session | None = None
        self.ids: dict[str, str] = {}

    def open(self, *, create: bool = False) -> Session:
        """Open the session, whose tasks of this program are then known by their names."""
        self.session = session = Session(self._path, create, map_size=SMALL_MAP)
        return session

    def perform(self, number: int, step: Step) -> None:
        """Do a step, and tell of it: what is tried, the IDs that were given out, what is done."""
        self._tell("try", self._program, number)
        self._do(step)
        self._tell("done", self._program, number)

    def _do(self, step: Step) -> None:
        if step.kind == "open":
            self.open(create=True)
        elif step.kind == "reopen":
            self._opened().close()
            self.open()
        elif step.kind == "finish":
            self._opened().set_end_timestamp(step.after.finished)
        elif step.kind in ("compact", "repair"):
            getattr(self._opened(), step.kind)()
        else:
            self._change(step)

    def _opened(self) -> Session:
        if self.session is None:
            return self.open()
        return self.session

    def _change(self, step: Step) -> None:
        session, before, after = self._opened(), step.before, step.after
        names = {*before.members, *before.stored}
        new = [new_task(name, value) for name, value in after.members.items() if name not in names]
        values = {name: value for name, value in after.members.items() if name in before.members}
        changed = {name: value for name, value in values.items() if value != before.members[name]}
        removed = [self.ids[name] for name in before.members if name not in {**after.members, **after.stored}]
        if step.kind == "transaction":
            with session.transaction():
                self._add(session, new, flush=True)
                self._save(session, changed, flush=True)
                session.remove_many(removed)
        elif step.kind == "batch":
            self._add(session, new, flush=False)
            self._save(session, changed, flush=False)
            session.flush()
        elif step.kind == "add":
            self._add(session, new, flush=True)
        elif step.kind == "add_many":
            self._given([task.jobname for task in new], session.add_many(new))
        elif step.kind == "change":
            self._save(session, changed, flush=True)
        elif step.kind == "remove":
            session.remove_many(removed)
        elif step.kind in ("forget", "adopt"):
            self._move(session, before, after)
        else:
            raise ValueError(f"no step is {step.kind!r}")

    def _add(self, session: Session, new: list[Job | Group], *, flush: bool) -> None:
        for task in new:
            self._given([task.jobname], [session.add(task, flush=flush)])

    def _given(self, names: list[str], ids: Any) -> None:
        found = dict(zip(names, ids, strict=True))
        self.ids.update(found)
        self._tell("ids", self._program, found)

    def _save(self, session: Session, changed: dict[str, tuple[str, int]], *, flush: bool) -> None:
        tasks = []  # kept until they are saved
        for name, (state, steps) in changed.items():
            task = session.load(self.ids[name])
            task.state, task.steps, task.text = state, steps, text_of(name, steps)
            tasks.append(task)
        session.save_all(flush=flush)

    def _move(self, session: Session, before: Holds, after: Holds) -> None:
        with session.transaction():
            for name in before.members:
                if name in after.stored:
                    session.forget(self.ids[name])
            for name in after.members:
                if name in before.stored:
                    session.load(self.ids[name], add=True)
