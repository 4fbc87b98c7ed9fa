"""`gc3session migrate`: a session's tasks move to another store."""

from __future__ import annotations

import click

from ... import migrate_session
from ...tables.urls import StoreURL
from ..console import open_session, quantity, say
from ..interrupts import Interrupts
from ..progress_bar import ProgressBar


@click.command(short_help="Move a session's tasks to another store.")
@click.argument("session")
@click.argument("url")
def migrate(session: str, url: str) -> int:
    """Move the tasks of SESSION to the store at URL, which is another directory or a database.

    IDs and records stay as they are; but if the new store has given their numbers to other records before, the
    same number is added to each, also in references. The session directory stays, too; store.url in it names the
    new store afterwards. Programs that have the session open must open it again. If the command is
    interrupted or killed, the session is whole, in the one store or in the other; run it again to complete the
    move.

    A store inside the session directory is deleted afterwards. A store elsewhere keeps its records.

        $ gc3session migrate campaign postgresql://user@host/db?schema=campaign
        $ gc3session migrate campaign campaign/jobs
    """
    interrupted = "interrupted; the session is whole. Run the command again to complete the move"
    with (
        Interrupts() as interrupts,
        open_session(session, read_only=False, create=False) as source,
        interrupts.ending(interrupted),
        ProgressBar() as bar,
    ):
        moved = migrate_session(source, url, progress=bar.update)
    with open_session(session, read_only=True, create=False) as there:
        place = there.store_url  # without a password
    place = url if place == StoreURL(url) else place
    message = f"moved {quantity(moved.members, 'task')} of {session} to {place}"
    if moved.shift:
        message += f", each with {moved.shift:,} added to its number"
    say(message)
    return 0
