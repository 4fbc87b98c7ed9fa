"""`gc3session dump`: a whole session as lines of JSON."""

from __future__ import annotations

import sys
from typing import Any

import click

from ... import dump_session
from ..console import Failure, complain_of_each, complain_of_missing, open_session, quantity, say
from ..progress_bar import interruptible


@click.command(short_help="Write a whole session as lines of JSON.")
@click.argument("session")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write to FILE instead of standard output, compressed if its name ends with .gz or .zst (which needs"
    " the package zstandard). FILE is there whole, or not at all.",
)
def dump(session: str, output: str | None) -> int:
    """Write all of SESSION as lines of JSON, from which 'gc3session load' makes exactly the same session.

    There is a line for each schema (class and field names) and for each record, in the order of the numbers in
    the IDs: the session's tasks, all that they refer to, and what was forgotten, unless other sessions use the
    store, too. FORMAT.md describes how values are written. The classes need not be installed.

        $ gc3session dump runs -o runs.jsonl.gz
        $ gc3session dump runs | jq -r 'select(.fields.state == "RUNNING").id'

    The dump is one state of the session, even if others write to it meanwhile. The exit status is 1 if
    some records can't be read; the dump has their bytes.
    """
    interrupted = "interrupted; the dump is not complete" if output is None else "interrupted; nothing dumped"
    wanted = output is not None or not sys.stdout.isatty()
    with open_session(session, read_only=True) as source:
        try:
            with interruptible(interrupted, wanted=wanted) as progress:
                target: Any = output
                if target is None:
                    target = sys.stdout.buffer if hasattr(sys.stdout, "buffer") else sys.stdout
                dumped = dump_session(source, target, progress=progress)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failure(f"{output or 'standard output'}: {error.strerror}") from error
    if output is not None:
        say(f"dumped {quantity(dumped.records, 'record')} of {session} to {output}")
    complain_of_each(dumped.unreadable, lambda id_: f"{id_} is unreadable; the dump has its bytes", "unreadable")
    complain_of_missing(dumped.missing)
    return 1 if dumped.unreadable or dumped.missing else 0
