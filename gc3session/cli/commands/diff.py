"""`gc3session diff`: what differs between two sessions or dumps."""

from __future__ import annotations

import sys
from collections import Counter

import click

from ...errors import InvalidArgument
from ...transfer.diff import diff as differences
from ..console import Failure, colours, complain, escaped

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}

_SUMMARY = """Show what differs from A to B, each a session or a file that 'gc3session dump' has written.

A line for each task: '+ ID' only B has it, '- ID' only A has it, '~ ID: FIELD, ...' those fields
differ; tasks inside collections count, too.  The exit status is 0 if nothing differs, 1 if
something does, 2 if one of them can't be read.

\b
    $ gc3session diff yesterday.jsonl.gz runs
    + Task.17
    ~ Task.3: state, history
"""


@click.command(help=_SUMMARY, short_help="Show what differs between two sessions or dumps.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
def diff(first: str, second: str) -> int:
    """Write a line for each difference, and return the exit status."""
    counts: Counter[str] = Counter()
    coloured = colours(sys.stdout)
    try:
        for kind, id_, fields in differences(first, second):
            counts[kind] += 1
            sign, colour = _SIGNS[kind]
            text = escaped(f"{sign} {id_}{': ' if fields else ''}{', '.join(fields)}")
            sys.stdout.write(f"{click.style(text, fg=colour) if coloured else text}\n")
    except InvalidArgument as error:
        raise Failure(str(error), 2) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2) from error
    if counts and sys.stderr.isatty():
        complain(", ".join(f"{counts[kind]:,} {kind}" for kind in _SIGNS if counts[kind]))
    return 1 if counts else 0
