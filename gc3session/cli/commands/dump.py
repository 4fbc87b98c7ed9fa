"""`gc3session dump`: all of a session as lines of JSON."""

from __future__ import annotations

import sys
from typing import Any

import click

from ...transfer.dump import Dumped, dump_session
from ..console import Failure, complain, escaped, open_session, quantity
from ..interrupts import Interrupts
from ..progress import ProgressBar

_SHOWN = 20  # IDs in complaints

_SUMMARY = """Write all of SESSION as lines of JSON, from which 'gc3session load' makes it again exactly.

There is a line for each schema (class and field names) and for each record: the session's tasks
in the order of adding, what they refer to, and, unless other sessions use the store, too, what
was forgotten.  FORMAT.md tells how values are written; the classes need not be installed.

\b
    $ gc3session dump runs -o runs.jsonl.gz
    $ gc3session dump runs | jq -r 'select(.fields.state == "RUNNING").id'

The dump is one state of the session, whoever writes to it meanwhile.  The exit status is 1 if
some records can't be read: the dump has their bytes.
"""


@click.command(help=_SUMMARY, short_help="Write all of a session as lines of JSON.")
@click.argument("session")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write to FILE, compressed if it ends with .gz or .zst (by the package zstandard), instead of"
    " standard output.  FILE is whole, or is not there.",
)
def dump(session: str, output: str | None) -> int:
    """Write the dump, and return the exit status."""
    with open_session(session, read_only=True) as source, Interrupts() as interrupts:
        try:
            with interrupts.waiting(), ProgressBar(output is not None or not sys.stdout.isatty()) as bar:
                target: Any = output
                if target is None:
                    target = sys.stdout.buffer if hasattr(sys.stdout, "buffer") else sys.stdout
                dumped = dump_session(source, target, progress=bar.update)
        except KeyboardInterrupt:
            complain("interrupted; the dump is not complete" if output is None else "interrupted; nothing dumped")
            return 128 + (interrupts.caught or 2)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failure(f"{output or 'standard output'}: {error.strerror}") from error
    if output is not None:
        click.echo(escaped(f"dumped {quantity(dumped.records, 'record')} of {session} to {output}"))
    return _findings(dumped)


def _findings(dumped: Dumped) -> int:
    """Complain of what could not be dumped as it should, and return the exit status."""
    for id_ in dumped.unreadable[:_SHOWN]:
        complain(f"{id_} is unreadable; the dump has its bytes")
    for number in dumped.missing[:_SHOWN]:
        complain(
            f"the session's index has an entry for record {number}, which is not in the store; it is left out"
        )
    for found, what in ((dumped.unreadable, "unreadable"), (dumped.missing, "missing")):
        if len(found) > _SHOWN:
            complain(f"and {quantity(len(found) - _SHOWN, 'more')} {what}".replace("mores", "more"))
    return 1 if dumped.unreadable or dumped.missing else 0
