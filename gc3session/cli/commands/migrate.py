"""`gc3session migrate`: a session's tasks move to another store."""

from __future__ import annotations

import click

from ... import migrate_session
from ...tables.urls import StoreURL
from ..console import open_session, quantity, say
from ..interrupts import Interrupts
from ..progress_bar import ProgressBar

_HELP = """Move the tasks of SESSION to the store at URL, which is another directory or a database.

IDs, records and the order of adding stay as they are. So does the session directory, in which store.url
names the new store afterwards. Programs that have the session open must open it again. If the command is
interrupted or killed, the session is whole, in the one store or in the other; run it again to complete the
move.

A store inside the session directory is deleted afterwards. A store elsewhere keeps its records.

\b
    $ gc3session migrate campaign postgresql://user@host/db?schema=campaign
    $ gc3session migrate campaign campaign/jobs
"""


@click.command(help=_HELP, short_help="Move a session's tasks to another store.")
@click.argument("session")
@click.argument("url")
def migrate(session: str, url: str) -> int:
    """Move the session, and return the exit status."""
    interrupted = "interrupted; the session is whole. Run the command again to complete the move"
    with Interrupts() as interrupts, open_session(session, read_only=False, create=False) as source:
        count = len(source)
        with interrupts.ending(interrupted), ProgressBar() as bar:
            migrate_session(source, url, progress=bar.update)
    with open_session(session, read_only=True, create=False) as moved:
        place = moved.store_url  # without a password
    place = url if place == StoreURL(url) else place
    say(f"moved {quantity(count, 'task')} of {session} to {place}")
    return 0
