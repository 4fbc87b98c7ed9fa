"""`gc3session load`: a session from a dump."""

from __future__ import annotations

import sys
from typing import Any

import click

from ...errors import ClashError
from ...transfer.load import load_dump
from ..console import Failure, complain, escaped, quantity
from ..interrupts import Interrupts
from ..progress import ProgressBar

_SUMMARY = """Load what 'gc3session dump' has written to FILE (or standard input) into SESSION.

SESSION is made if it does not exist, whole or not at all, and is then the same as the dumped
one: types, IDs, references, schemas, the order of adding and the session's times.

IDs are never given twice.  A record of the dump clashes if its number has been given out in the
session's store before, whether it is in use now or not.

\b
    $ gc3session load copy runs.jsonl.gz
    $ gc3session dump runs | ssh there gc3session load copy
"""


@click.command(help=_SUMMARY, short_help="Make a session from a dump, or add one to a session.")
@click.argument("session")
@click.argument("file", default="-")
@click.option(
    "--on-clash",
    type=click.Choice(["fail", "skip", "renumber"]),
    default="fail",
    show_default=True,
    help="What to do if IDs clash: load nothing and say which; skip those records and load the others;"
    " or give new IDs to all of the dump (the same number is added to each, references included).",
)
def load(session: str, file: str, on_clash: str) -> int:
    """Load the dump, and return the exit status."""
    source: Any = file
    if file == "-":
        if sys.stdin is None:
            raise Failure("standard input is closed: pass a file, or pipe a dump in")
        source = sys.stdin.buffer
    with Interrupts() as interrupts:
        try:
            with interrupts.waiting(), ProgressBar() as bar:
                loaded = load_dump(session, source, on_clash=on_clash, progress=bar.update)
        except KeyboardInterrupt:
            complain("interrupted; a session that was there has what was committed, and a new one was not made")
            return 128 + (interrupts.caught or 2)
        except ClashError as error:
            told = str(error).partition("; ")[0]
            raise Failure(
                f"{told}; nothing was loaded. Load into a new session, or choose --on-clash renumber (new IDs"
                " for all of the dump) or --on-clash skip (take only what is new)"
            ) from error
        except OSError as error:
            raise Failure(f"{error.filename or file}: {error.strerror or error}") from error
    told = f"loaded {quantity(loaded.records, 'record')} into {session}"
    if loaded.shift:
        told += f", each with {loaded.shift:,} added to its number"
    if loaded.skipped:
        told += f"; {quantity(loaded.skipped, 'record')} skipped"
    click.echo(escaped(told))
    if loaded.gone:
        complain(
            f"{loaded.gone:,} of those skipped are not in the store any more: an ID is never given twice;"
            " load them into another session, or with --on-clash renumber"
        )
    return 0
