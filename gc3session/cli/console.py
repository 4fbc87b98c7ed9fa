"""What the commands share: opening a session, text that is safe to show, error lines, colours."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import IO, Any, Final

from ..errors import InvalidArgument
from ..session.session import Session
from ..text import escaped as escaped

_LONGEST_COMPLAINT: Final = 2000  # characters


class Failure(Exception):
    """The end of a command: one line on stderr, and the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


# -- sessions -----------------------------------------------------------------


def open_session(path: str, *, read_only: bool, create: bool = True) -> Session:
    """Return the session at *path*; unless it is only read, or with *create* False, one is made if there is none.

    Raise OpenError, or Failure with status 2, if it can't be opened.
    """
    try:
        return Session(path, create=create and not read_only, read_only=read_only)
    except InvalidArgument as error:  # what is wrong is the path, or the URL of the store
        raise Failure(str(error), 2) from error
    except OSError as error:
        raise Failure(f"{error.filename or path}: {error.strerror or error}", 2) from error


# -- text ---------------------------------------------------------------------


def quantity(number: int, noun: str) -> str:
    """Return '1 task' or '2,000 tasks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def time_of(seconds: Any, zone: tzinfo | None = None) -> datetime | None:
    """Return the time of *seconds* since 1970, naive and local if no zone is told; None if they are none."""
    try:
        return datetime.fromtimestamp(seconds, zone)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def complain(message: str) -> None:
    """Write one line on stderr, beginning with the program's name; one of endless length is cut."""
    text = escaped(message)
    if len(text) > _LONGEST_COMPLAINT:
        text = f"{text[: _LONGEST_COMPLAINT - 400]} ... {text[-400:]}"
    try:
        sys.stderr.write(f"gc3session: {text}\n")
        sys.stderr.flush()
    except OSError:  # nobody can be told; the exit status still tells
        pass


def wait_while_read(seconds: float) -> None:
    """Show what has been written on stdout, and wait.  Raise BrokenPipeError as soon as nobody reads it."""
    sys.stdout.flush()
    gone = select.poll()
    gone.register(sys.stdout.fileno(), 0)  # errors are always told
    if gone.poll(seconds * 1000):
        raise BrokenPipeError


def colours(stream: IO[str]) -> bool:
    """Return whether colours are wanted on *stream*."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


Style = Callable[[str, str], str]
"""(text, style) -> the text with the codes of 'bold', 'label', 'faint' or a colour, or as it is."""

_STYLES: Final[dict[str, dict[str, Any]]] = {
    "bold": {"bold": True},
    "label": {"fg": "blue"},
    "faint": {"dim": True},
    "": {},
}


def style_on(stream: IO[str]) -> Style:
    """Return what styles a text that is to be written on *stream*."""
    return _coloured if colours(stream) else lambda text, _: text


def _coloured(text: str, style: str) -> str:
    import click

    return click.style(text, **_STYLES.get(style, {"fg": style}))


STATE_COLOURS: Final = {
    "NEW": "bright_black",
    "SUBMITTED": "yellow",
    "RUNNING": "cyan",
    "STOPPED": "magenta",
    "TERMINATING": "blue",
    "TERMINATED": "green",
    "UNKNOWN": "red",
}
FAILED_COLOUR: Final = "red"


def state_colour(state: Any, returncode: Any) -> str | None:
    """Return the colour of a task's state; a task that ended with a return code but 0 has failed.

    Each may be any value: a record may hold what no `Task` has.
    """
    if isinstance(returncode, int) and returncode != 0:
        return FAILED_COLOUR
    return STATE_COLOURS.get(state) if isinstance(state, str) else None
