"""`gc3session remove` and `forget`: tasks are deleted, or leave the session and stay in its store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

import click

from ... import LoadError, Session
from ...records.ids import IDs, parse_id
from ..completion import complete_ids
from ..console import complain, complain_of_each, open_session, quantity, say
from ..filters import filter_options, taken_filters
from ..input import STDIN, confirmed, ensure_may_ask, ids_from_args, yes_option
from ..interrupts import Interrupts
from ..progress_bar import ProgressBar

_STEP_TASKS: Final = 1000  # in a transaction
_STEPS_HELP = f"""The command asks first, and says how many tasks there are. With --yes it doesn't ask; that is needed where
standard input is not a terminal. Each {_STEP_TASKS:,} tasks are one transaction: Ctrl-C stops between two of them,
and the command says how many tasks are gone. If the session lacks one of the IDs, nothing is done.
"""


def _bulk_options(command: Callable[..., int]) -> Callable[..., Any]:
    """Give a command the arguments and options that choose tasks, and --yes."""
    command = yes_option(filter_options(command))
    command = click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=complete_ids)(command)
    return click.argument("session")(command)


@click.command(short_help="Delete tasks.", epilog=_STEPS_HELP)
@_bulk_options
def remove(session: str, yes: bool, **options: Any) -> int:
    """Delete tasks of SESSION: those with these IDs, or those that the options choose as in 'gc3session list'.

    '-' reads IDs from standard input. The tasks in a collection are deleted with it. If several sessions use the
    store, a task is deleted from all of them; 'gc3session forget' takes it out of this session only.

        $ gc3session remove runs Task.17 Task.18
        $ gc3session remove runs --state TERMINATED --before '30 days ago'
    """
    return _run(Session.remove, "removed", ", and the tasks in them, for good", session, yes, options)


@click.command(short_help="Take tasks out of a session.", epilog=_STEPS_HELP)
@_bulk_options
def forget(session: str, yes: bool, **options: Any) -> int:
    """Take tasks out of SESSION and leave them in its store: those with these IDs, or those that the options choose.

    '-' reads IDs from standard input; the options are those of 'gc3session list'. 'gc3session show' still shows
    these tasks, and a program can add them again: session.load(ID, add=True).

        $ gc3session forget runs Task.17
        $ gc3session select runs 'extra.batch < 12' | gc3session forget runs - --yes
    """
    return _run(Session.forget, "forgot", "", session, yes, options)


def _run(
    apply: Callable[[Session, str], None], past: str, warning: str, path: str, yes: bool, options: dict[str, Any]
) -> int:
    """Do something to the tasks that the *options* of a command choose; return the exit status.

    Args:
        apply: does it to the task of an ID, in a transaction; its name is that of the command.
        past: what has been done, such as 'removed'.
        warning: what the question says behind the number of tasks.
        path: of the session.
        yes: whether it is done unasked.
        options: the others of the command.
    """
    name = apply.__name__
    filters, ids = taken_filters(options), options["ids"]
    if ids and filters:
        raise click.UsageError("Choose tasks by their IDs or by options such as --state, not by both.")
    if not ids and not filters:
        raise click.UsageError(
            f"Which tasks? Give IDs, or '-' to read them, or options such as --state that choose what to {name}."
        )
    ensure_may_ask(name, yes, stdin_has_ids=STDIN in ids)
    with open_session(path, read_only=False, create=False) as session, Interrupts() as interrupts:
        with interrupts.ending("interrupted; nothing was done"):
            found, complete = _existing(session, path, ids) if ids else _selected(session, filters)
            if ids and not complete:
                complain("nothing was done")
                return 1
            total = quantity(len(found), "task")
            if found and not confirmed(f"{name} {total} of {path}{warning}?", yes, interrupts):
                say("nothing was done")
                return 1
        finished, done = _in_steps(apply, session, found, interrupts)
        if interrupts.caught is not None and finished < len(found):
            rest = quantity(len(found) - finished, "task")
            complain(f"interrupted; {past} {quantity(done, 'task')}, not the other {rest}")
            return interrupts.status
    say(f"{past} {quantity(done, 'task')} of {path}")
    return 0 if complete else 1


def _existing(session: Session, path: str, ids: tuple[str, ...]) -> tuple[Sequence[str], bool]:
    """Return the IDs, each once, and whether the session has them all; complain of those it lacks."""
    found = list(dict.fromkeys(ids_from_args(ids)))
    missing = [id_ for id_ in found if id_ not in session]
    complain_of_each(missing, lambda id_: f"{id_} is not in the session {path}", "are not")
    return found, not missing


def _selected(session: Session, filters: dict[str, Any]) -> tuple[Sequence[str], bool]:
    """Return the IDs of the tasks that fit, and whether all could be read; complain of the others."""
    ids, complete = session.select(**filters).ids(), True
    found = IDs()
    while True:
        try:
            for id_ in ids:
                name, number = parse_id(id_)  # type: ignore[misc]
                found.append(name, number, number + 1)
            return found, complete
        except LoadError as error:
            complain(f"{error.id} is left as it is: it can't be read, so it isn't known whether it is meant")
            complete = False


def _in_steps(
    apply: Callable[[Session, str], None], session: Session, ids: Sequence[str], interrupts: Interrupts
) -> tuple[int, int]:
    """Change tasks until a signal comes; return how many IDs were processed, and how many of them were there."""
    finished = done = 0
    with ProgressBar(wanted=len(ids) > _STEP_TASKS) as bar:
        source = iter(ids)
        while interrupts.caught is None and (step := list(islice(source, _STEP_TASKS))):
            with session.transaction():
                there = [id_ for id_ in step if id_ in session]
                for id_ in there:
                    if id_ in session:  # it may have been removed with the collection that it was in
                        apply(session, id_)
            finished += len(step)
            done += len(there)
            bar.update(finished, len(ids))
    return finished, done
