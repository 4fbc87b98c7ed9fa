"""`gc3session show`: every field of a task."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from ... import LoadError, NotFound, Session
from ...records.ids import parse_id
from ...store.record_view import StoredTasks
from ..completion import complete_ids
from ..console import complain, open_session, style_on
from ..fields_text import object_lines
from ..input import ids_from_args
from .listing import task_lines


@click.command(short_help="Show every field of some tasks.")
@click.argument("session")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_ids)
@click.option("--json", "as_json", is_flag=True, help="Write the line of each task in a dump.")
def show(session: str, ids: tuple[str, ...], as_json: bool) -> int:
    """Show every field of the tasks with these IDs; '-' reads IDs from standard input, one a line.

    They may be tasks inside collections, too. The class of a task need not be installed. With --json, each task
    is a line of JSON, the same as in 'gc3session dump', which has the fields without loss.

        $ gc3session show runs Task.17
        $ gc3session select runs 'returncode != 0' --limit 3 | gc3session show runs -
    """
    failed, before = False, ""
    with open_session(session, read_only=True) as source:
        shown = _json_lines(source) if as_json else _text_lines(source)
        for id_ in ids_from_args(ids):
            try:
                sys.stdout.write(before + shown(id_))
                before = "" if as_json else "\n"
            except NotFound:
                complain(f"there is no task {id_} in {session}; 'gc3session list -r' shows which there are")
                failed = True
            except LoadError as error:
                complain(str(error))
                failed = True
    return 1 if failed else 0


def _text_lines(session: Session) -> Callable[[str], str]:
    """Return the function that gives the lines of text for the task of an ID."""
    style = style_on(sys.stdout)
    return lambda id_: "".join(f"{line}\n" for line in object_lines(session.store.load(id_), style))


def _json_lines(session: Session) -> Callable[[str], str]:
    """Return the function that gives the line of JSON for the task of an ID."""
    tasks = StoredTasks(session.store)

    def line(id_: str) -> str:
        parsed = parse_id(id_)
        task = tasks.get(parsed[1]) if parsed else None
        if task is None or task.persistent_id != id_:
            raise NotFound(f"there is no task {id_}")
        return next(task_lines(session, [task]))

    return line
