"""`gc3session migrate`: a session's tasks to another store."""

from __future__ import annotations

import click

from ...tables.urls import StoreURL
from ...transfer.migrate import migrate_session
from ..console import complain, escaped, open_session, quantity
from ..interrupts import Interrupts
from ..progress import ProgressBar

_SUMMARY = """Move the tasks of SESSION to the store at URL, which is another directory or a database.

IDs, records and the order of adding stay as they are, and so does the session directory, whose
store.url names the new store then.  Programs that have the session open must open it again.
If this is interrupted or killed, the session is whole, in the one store or in the other; run it
again to complete the move.

A store inside the session directory is deleted afterwards.  Another one keeps its records.

\b
    $ gc3session migrate campaign postgresql://user@host/db?schema=campaign
    $ gc3session migrate campaign campaign/jobs
"""


@click.command(help=_SUMMARY, short_help="Move a session's tasks to another store.")
@click.argument("session")
@click.argument("url")
def migrate(session: str, url: str) -> int:
    """Move the session, and return the exit status."""
    with Interrupts() as interrupts, open_session(session, read_only=False, create=False) as source:
        count = len(source)
        try:
            with interrupts.waiting(), ProgressBar() as bar:
                migrate_session(source, url, progress=bar.update)
        except KeyboardInterrupt:
            complain("interrupted; the session is whole. Run the command again to complete the move")
            return 128 + (interrupts.caught or 2)
    with open_session(session, read_only=True, create=False) as moved:
        place = moved.store.url  # without a password
    place = url if place == StoreURL(url) else place
    click.echo(escaped(f"moved {quantity(count, 'task')} of {session} to {place}"))
    return 0
