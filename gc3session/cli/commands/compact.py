"""`gc3session compact`: a store's file without the space of what was deleted."""

from __future__ import annotations

import click

from ...text import size_text
from ..console import open_session, say
from ..progress_bar import interruptible


@click.command(short_help="Give the space of what was deleted back to the disk.")
@click.argument("session")
def compact(session: str) -> int:
    """Rewrite the store of SESSION without its free pages, which gives their space back to the disk.

    There must be room for the new file beside the old one. Whatever interrupts the command leaves the old
    file or the new one. No other process may have the store open: if one has, nothing is changed and the
    message has its process number. A store that several sessions share is compacted as a whole.
    """
    interrupted = "interrupted; the store is as it was"
    with (
        open_session(session, read_only=False, create=False) as target,
        interruptible(interrupted, noun="") as progress,
    ):
        done = target.compact(progress=progress)
    sizes = f"{size_text(done.before)} -> {size_text(done.after)}"
    say(f"compacted {session}: {sizes}, {size_text(max(0, done.before - done.after))} given back")
    return 0
