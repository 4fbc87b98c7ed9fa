"""`gc3session show`: every field of a task."""

from __future__ import annotations

import sys

import click

from ..errors import LoadError, NotFound
from .console import complain, open_session, style_on
from .fields_text import object_lines

_SUMMARY = """Show every field of the tasks with these IDs.

They may also be tasks inside collections.  The class of a task need not be installed.
"""


@click.command(help=_SUMMARY, short_help="Show every field of some tasks.")
@click.argument("session")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def show(session: str, ids: tuple[str, ...]) -> int:
    """Show each of the tasks, and return the exit status."""
    style = style_on(sys.stdout)
    shown = 0
    with open_session(session, read_only=True) as source:
        for id_ in ids:
            try:
                task = source.load(id_)
            except NotFound:
                complain(f"there is no task {id_} in {session}; 'gc3session list -r' shows the IDs that there are")
                continue
            except LoadError as error:
                complain(str(error))
                continue
            if shown:
                sys.stdout.write("\n")
            for line in object_lines(task, style):
                sys.stdout.write(f"{line}\n")
            shown += 1
    return 0 if shown == len(ids) else 1
