"""What `remove` and `forget` share: the choice of tasks, the question, and the work in steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import attrs
import click

from .. import Session, UnreadableTask
from ..records.ids import IDs, parse_id
from .completion import complete_ids
from .console import complain, complain_of_each, open_session, quantity, say
from .filters import TaskFilter, filter_options
from .input import STDIN, confirmed, ensure_may_ask, ids_from_args, yes_option
from .interrupts import Interrupts
from .progress_bar import ProgressBar

STEP_TASKS: Final = 1000
"""How many tasks a transaction takes."""

STEPS_HELP = f"""The command asks first, and says how many tasks there are. With --yes it doesn't ask; that is needed where
standard input is not a terminal. Each {STEP_TASKS:,} tasks are one transaction: Ctrl-C stops between two of them,
and the command says how many tasks are gone. If the session lacks one of the IDs, nothing is done.
"""


@attrs.frozen
class BulkAction:
    """What is done to many tasks.

    Attributes:
        name: the command, such as 'remove'.
        past: such as 'removed'.
        warning: what the question says behind the number of tasks.
        apply: does it to the task of an ID, in a transaction.
    """

    name: str
    past: str
    warning: str
    apply: Callable[[Session, str], None]


def bulk_options(command: Callable[..., int]) -> Callable[..., Any]:
    """Give a command the arguments and options that choose tasks, and --yes."""
    command = yes_option(filter_options(command))
    command = click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=complete_ids)(command)
    return click.argument("session")(command)


def run_bulk(action: BulkAction, path: str, ids: tuple[str, ...], chosen: TaskFilter, yes: bool) -> int:
    """Do *action* to the tasks of these IDs, or to those that the options choose; return the exit status."""
    if ids and chosen.is_given:
        raise click.UsageError("Choose tasks by their IDs or by options such as --state, not by both.")
    if not ids and not chosen.is_given:
        raise click.UsageError(
            f"Which tasks? Give IDs, or '-' to read them, or options such as --state that choose what to {action.name}."
        )
    ensure_may_ask(action.name, yes, stdin_has_ids=STDIN in ids)
    with open_session(path, read_only=False, create=False) as session, Interrupts() as interrupts:
        with interrupts.ending("interrupted; nothing was done"):
            found, complete = _existing(session, path, ids) if ids else _selected(session, chosen)
            if ids and not complete:
                complain("nothing was done")
                return 1
            total = quantity(len(found), "task")
            if found and not confirmed(f"{action.name} {total} of {path}{action.warning}?", yes, interrupts):
                say("nothing was done")
                return 1
        finished, done = _in_steps(action, session, found, interrupts)
        if interrupts.caught is not None and finished < len(found):
            rest = quantity(len(found) - finished, "task")
            complain(f"interrupted; {action.past} {quantity(done, 'task')}, not the other {rest}")
            return interrupts.status
    say(f"{action.past} {quantity(done, 'task')} of {path}")
    return 0 if complete else 1


def _existing(session: Session, path: str, ids: tuple[str, ...]) -> tuple[Sequence[str], bool]:
    """Return the IDs, each once, and whether the session has them all; complain of those it lacks."""
    found = list(dict.fromkeys(ids_from_args(ids)))
    missing = [id_ for id_ in found if id_ not in session]
    complain_of_each(missing, lambda id_: f"{id_} is not in the session {path}", "are not")
    return found, not missing


def _selected(session: Session, chosen: TaskFilter) -> tuple[Sequence[str], bool]:
    """Return the IDs of the tasks that the options choose, and whether all could be read; complain of others."""
    selection, found, complete = chosen.select(session), IDs(), True
    if not selection.filters.need_records:
        for id_ in selection.ids():
            _append(found, id_)
        return found, True
    for task in selection.stored():
        if isinstance(task, UnreadableTask):
            complain(
                f"{task.persistent_id} is left as it is: it can't be read, so it isn't known whether it is meant"
            )
            complete = False
        else:
            _append(found, task.persistent_id)
    return found, complete


def _append(ids: IDs, id_: str) -> None:
    parsed = parse_id(id_)
    assert parsed is not None  # the index gave it
    ids.append(parsed[0], parsed[1], parsed[1] + 1)


def _in_steps(action: BulkAction, session: Session, ids: Sequence[str], interrupts: Interrupts) -> tuple[int, int]:
    """Do *action* to tasks until a signal comes; return how many IDs were processed, and how many of them were there."""
    finished = done = 0
    with ProgressBar(wanted=len(ids) > STEP_TASKS) as bar:
        source = iter(ids)
        while interrupts.caught is None and (step := list(islice(source, STEP_TASKS))):
            with session.transaction():
                there = [id_ for id_ in step if id_ in session]
                for id_ in there:
                    if id_ in session:  # it may have been removed with the collection that it was in
                        action.apply(session, id_)
            finished += len(step)
            done += len(there)
            bar.update(finished, len(ids))
    return finished, done
