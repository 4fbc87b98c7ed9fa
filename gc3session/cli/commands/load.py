"""`gc3session load`: a session from a dump."""

from __future__ import annotations

from typing import Any

import click

from ... import ClashError, load_dump
from ..console import Failure, complain, os_error_text, quantity, say
from ..input import STDIN, stdin
from ..progress_bar import interruptible


@click.command(short_help="Make a session from a dump, or add a dump to a session.")
@click.argument("session")
@click.argument("file", default=STDIN)
@click.option(
    "--on-clash",
    type=click.Choice(["fail", "skip", "renumber"]),
    default="fail",
    show_default=True,
    help="What to do if IDs clash: load nothing and say which clash; skip those records and load the others;"
    " or give new IDs to all records of the dump (the same number is added to each, also in references).",
)
def load(session: str, file: str, on_clash: str) -> int:
    """Load what 'gc3session dump' has written to FILE (or standard input) into SESSION.

    SESSION is made if it does not exist, whole or not at all, and is then the same as the dumped session:
    types, IDs, references, schemas and the session's times.

    IDs are never given twice. A record of the dump clashes if the session's store has given its number to a
    record before, even if that record is no longer there.

        $ gc3session load copy runs.jsonl.gz
        $ gc3session dump runs | ssh there gc3session load copy
    """
    source: Any = stdin("pass a file, or pipe a dump in") if file == STDIN else file
    try:
        with interruptible(
            "interrupted; a session that was there has what was committed, and a new one was not made"
        ) as progress:
            loaded = load_dump(session, source, on_clash=on_clash, progress=progress)
    except ClashError as error:
        clash = str(error).partition("; ")[0]
        raise Failure(
            f"{clash}; nothing was loaded. Load into a new session, or choose --on-clash renumber (new IDs"
            " for all of the dump) or --on-clash skip (take only what is new)"
        ) from error
    except OSError as error:
        raise Failure(os_error_text(error, file)) from error
    message = f"loaded {quantity(loaded.records, 'record')} into {session}"
    if loaded.shift:
        message += f", each with {loaded.shift:,} added to its number"
    if loaded.skipped:
        message += f"; {quantity(loaded.skipped, 'record')} skipped"
    say(message)
    if loaded.gone:
        complain(
            f"{loaded.gone:,} of those skipped are not in the store any more: an ID is never given twice;"
            " load them into another session, or with --on-clash renumber"
        )
    return 0
