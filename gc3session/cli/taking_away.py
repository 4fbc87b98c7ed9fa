"""What `remove` and `forget` share: which tasks, the question, and the work in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs
import click

from ..records.ids import IDs, parse_id
from ..session.session import Session
from ..store.record_view import UnreadableTask
from .asking import confirmed, ensure_may_ask, yes_option
from .completion import complete_ids
from .console import complain, escaped, open_session, quantity
from .filters import Asked, filter_options
from .interrupts import Interrupts
from .line_input import STDIN, given_ids
from .progress import ProgressBar

STEP: Final = 1000
"""Tasks that are taken away in one transaction."""

STEPS_HELP = f"""It asks first, and says how many tasks there are; --yes does it unasked, and is needed where standard
input is no terminal.  Each {STEP:,} are a transaction: Ctrl-C stops between two of these, and says how
many tasks are gone.  If the session hasn't got one of the IDs, nothing is done.
"""

_SHOWN: Final = 20  # IDs in complaints


@attrs.frozen
class Deed:
    """What is done to tasks.

    Attributes:
        name: of the command, such as 'remove'.
        past: such as 'removed'.
        also: what a question adds to the number of tasks.
        one: does it to the task of an ID, in a transaction.
    """

    name: str
    past: str
    also: str
    one: Callable[[Session, str], None]


def choosing(command: Callable[..., int]) -> Callable[..., Any]:
    """Give a command the arguments and options that choose tasks, and --yes."""
    command = yes_option(filter_options(command))
    command = click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=complete_ids)(command)
    return click.argument("session")(command)


def take_away(deed: Deed, path: str, ids: tuple[str, ...], asked: Asked, yes: bool) -> int:
    """Do it to the tasks of these IDs, or to those that are asked for; return the exit status."""
    if ids and asked.anything:
        raise click.UsageError("Choose tasks by their IDs or by options such as --state, not by both.")
    if not ids and not asked.anything:
        raise click.UsageError(
            f"Which tasks? Give IDs, '-' to read them, or options such as --state to {deed.name} by."
        )
    ensure_may_ask(deed.name, yes, stdin_is_read=STDIN in ids)
    with open_session(path, read_only=False, create=False) as session, Interrupts() as interrupts:
        try:
            with interrupts.waiting():
                chosen, sound = _given(session, path, ids) if ids else _fitting(session, asked)
                if ids and not sound:
                    complain("nothing was done")
                    return 1
                total = quantity(len(chosen), "task")
                if chosen and not confirmed(f"{deed.name} {total} of {path}{deed.also}?", yes, interrupts):
                    click.echo("nothing was done")
                    return 1
        except KeyboardInterrupt:
            complain("interrupted; nothing was done")
            return 128 + (interrupts.caught or 2)
        done = _in_steps(deed, session, chosen, interrupts)
        if interrupts.caught is not None and done.finished < len(chosen):
            rest = quantity(len(chosen) - done.finished, "task")
            complain(f"interrupted; {deed.past} {quantity(done.tasks, 'task')}, not the other {rest}")
            return 128 + interrupts.caught
    click.echo(escaped(f"{deed.past} {quantity(done.tasks, 'task')} of {path}"))
    return 0 if sound else 1


def _given(session: Session, path: str, ids: tuple[str, ...]) -> tuple[Sequence[str], bool]:
    """Return given IDs, each once, and whether the session has them all; complain of those it hasn't."""
    chosen = list(dict.fromkeys(given_ids(ids)))
    missing = [id_ for id_ in chosen if id_ not in session]
    for id_ in missing[:_SHOWN]:
        complain(f"{id_} is not in the session {path}")
    if len(missing) > _SHOWN:
        complain(f"and {len(missing) - _SHOWN:,} more are not")
    return chosen, not missing


def _fitting(session: Session, asked: Asked) -> tuple[Sequence[str], bool]:
    """Return the IDs of the tasks that are asked for, and whether all could be read; complain of others."""
    selected, chosen, sound = asked.of(session), IDs(), True
    if not selected.filters.need_records:
        for id_ in selected.ids():
            _append(chosen, id_)
        return chosen, True
    for task in selected.stored():
        if isinstance(task, UnreadableTask):
            complain(f"{task.persistent_id} is left: it can't be read, so whether it fits can't be told")
            sound = False
        else:
            _append(chosen, task.persistent_id)
    return chosen, sound


def _append(ids: IDs, id_: str) -> None:
    parsed = parse_id(id_)
    assert parsed is not None  # as the index gave it
    ids.append(parsed[0], parsed[1], parsed[1] + 1)


@attrs.define
class _Done:
    """How many of the chosen tasks have had their turn, and how many were still there then."""

    finished: int = 0
    tasks: int = 0


def _in_steps(deed: Deed, session: Session, chosen: Sequence[str], interrupts: Interrupts) -> _Done:
    done = _Done()
    with ProgressBar(len(chosen) > STEP) as bar:
        for step in _steps(chosen):
            if interrupts.caught is not None:
                break
            with session.transaction():
                there = [id_ for id_ in step if id_ in session]
                for id_ in there:
                    if id_ in session:  # it may have gone with the collection that it was in
                        deed.one(session, id_)
            done.finished += len(step)
            done.tasks += len(there)
            bar.update(done.finished, len(chosen))
    return done


def _steps(ids: Sequence[str]) -> Iterator[list[str]]:
    step: list[str] = []
    for id_ in ids:
        step.append(id_)
        if len(step) == STEP:
            yield step
            step = []
    if step:
        yield step
