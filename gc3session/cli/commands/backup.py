"""`gc3session backup`: a copy of a session, which is a session itself."""

from __future__ import annotations

import click

from ...text import size_text
from ..console import complain_of_missing, open_session, quantity, say
from ..progress_bar import interruptible


@click.command(short_help="Copy a session while others write to it.")
@click.argument("session")
@click.argument("dest")
def backup(session: str, dest: str) -> int:
    """Copy SESSION to DEST as it is at one moment, while others go on writing to it.

    DEST must not exist, or be an empty directory. The copy is there whole or not at all, and is a
    session itself, with the same IDs and times. A store inside SESSION is copied as it is;
    'gc3session compact DEST' then gives its free space back to the disk. If the store is elsewhere, the
    session's tasks and all that they refer to go into a store inside DEST.

        $ gc3session backup runs /backup/runs-$(date +%F)
    """
    interrupted = "interrupted; there is no backup"
    with open_session(session, read_only=True) as source, interruptible(interrupted, noun="") as progress:
        made = source.backup(dest, progress=progress)
    say(f"backed up {quantity(made.tasks, 'task')} of {session} to {dest}, {size_text(made.size)}")
    complain_of_missing(made.missing)
    return 1 if made.missing else 0
