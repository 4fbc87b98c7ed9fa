"""IDs on the command line, and from standard input for `-`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from .console import Failure, complain

STDIN = "-"


def given_ids(ids: Iterable[str]) -> Iterator[str]:
    """Give the IDs, those of standard input (a line each; blank lines are passed over) in the place of a `-`."""
    for id_ in ids:
        if id_ == STDIN:
            yield from _read()
        else:
            yield id_


def _read() -> Iterator[str]:
    if sys.stdin is None:
        raise Failure("standard input is closed: pipe the IDs in, or write them on the command line", 2)
    if sys.stdin.isatty():
        complain("reading an ID a line from the terminal; end with Ctrl-D")
    try:
        for line in sys.stdin.buffer:
            id_ = line.decode(errors="backslashreplace").strip()
            if id_:
                yield id_
    except OSError as error:
        raise Failure(f"standard input: {error.strerror}") from error
