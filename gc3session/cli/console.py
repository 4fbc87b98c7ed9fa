"""What every command uses: opening a session, texts, messages on stdout and stderr, colours."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from functools import cache
from typing import IO, Any, Final

import click

from .. import InvalidArgument, Session
from ..text import escaped as escaped

_COMPLAINT_LENGTH: Final = 2000  # characters of a message at most; of a longer one the middle is left out
_COMPLAINT_END: Final = 400  # characters of the end of such a message
CLEAR_LINE: Final = "\r\x1b[K"
"""Takes the cursor of a terminal to the beginning of its line, and clears that."""

_COMPLAINTS: Final = 20  # messages of one kind that are written; of more only the number


class Failure(Exception):
    """The end of a command: one line on stderr, and the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


# -- sessions -----------------------------------------------------------------


def open_session(path: str, *, read_only: bool, create: bool = True) -> Session:
    """Return the session at *path*, which is made if it doesn't exist, *create* is True and *read_only* False.

    Raise OpenError, or Failure with status 2, if it can't be opened.
    """
    try:
        return Session(path, create=create and not read_only, read_only=read_only)
    except InvalidArgument as error:  # the path is wrong, or the URL of the store
        raise Failure(str(error), 2) from error
    except OSError as error:
        raise Failure(os_error_text(error, path), 2) from error


# -- texts --------------------------------------------------------------------


def quantity(number: int, noun: str) -> str:
    """Return '1 task' or '2,000 tasks'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_zone(time: datetime, zone: tzinfo | None = None) -> datetime | None:
    """Return an aware time in local time, or in *zone*; None if that is beyond the ends of the calendar."""
    try:
        return time.astimezone(zone)
    except (ValueError, OverflowError, OSError):
        return None


def time_of(seconds: Any, zone: tzinfo | None = None) -> datetime | None:
    """Return the time of *seconds* since 1970, naive and local without a *zone*; None for any other value."""
    try:
        return datetime.fromtimestamp(seconds, zone)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def os_error_text(error: OSError, file: str = "") -> str:
    """Return the message of an error of the system, with the file that it names or else *file*."""
    where = error.filename or file
    return f"{where}: {error.strerror or error}" if where else str(error)


# -- messages -----------------------------------------------------------------


def say(message: str) -> None:
    """Write one line on stdout, before whatever stderr gets afterwards."""
    sys.stdout.write(f"{escaped(message)}\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """Write one line on stderr, beginning with the program's name."""
    text = escaped(message)
    if len(text) > _COMPLAINT_LENGTH:
        text = f"{text[: _COMPLAINT_LENGTH - _COMPLAINT_END]} ... {text[-_COMPLAINT_END:]}"
    try:
        sys.stderr.write(f"{CLEAR_LINE if sys.stderr.isatty() else ''}gc3session: {text}\n")
        sys.stderr.flush()
    except OSError:  # the message can't be shown; the exit status still says that something is wrong
        pass


def complain_of_each(found: Sequence[Any], message: Callable[[Any], str], more: str) -> None:
    """Complain of each of *found*; of many only of the first, and say how many more there are.

    *more* ends that last line, 'and 7 more ...'.
    """
    for one in found[:_COMPLAINTS]:
        complain(message(one))
    if len(found) > _COMPLAINTS:
        complain(f"and {len(found) - _COMPLAINTS:,} more {more}")


def complain_of_missing(numbers: Sequence[int]) -> None:
    """Complain of records that a copy lacks because the store has lost them."""
    complain_of_each(
        numbers,
        lambda n: f"the session's index has an entry for record {n}, which is not in the store; it is left out",
        "missing",
    )


def wait_while_read(seconds: float) -> None:
    """Flush stdout and wait. Raise BrokenPipeError as soon as its reader has ended."""
    sys.stdout.flush()
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)  # no event but errors, which are always reported
    if reader.poll(seconds * 1000):
        raise BrokenPipeError


# -- terminals ----------------------------------------------------------------


def terminal_width(stream: IO[str]) -> int | None:
    """Return how many columns the terminal has that *stream* is; None if it isn't one."""
    return os.get_terminal_size(stream.fileno()).columns or 80 if stream.isatty() else None


Style = Callable[[str, str], str]
"""(text, style) -> the text with the codes of 'bold', 'label', 'dim' or a colour, or as it is."""

_STYLES: Final[dict[str, dict[str, Any]]] = {"bold": {"bold": True}, "label": {"fg": "blue"}, "dim": {"dim": True}}


def style_on(stream: IO[str]) -> Style:
    """Return the function that styles text for *stream*."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return lambda text, _: text
    return lambda text, style: text.join(_codes(style)) if text and style else text


@cache
def _codes(style: str) -> list[str]:
    """Return what stands before and after a text of that style."""
    return click.style("\0", **_STYLES.get(style, {"fg": style})).split("\0")


_STATE_COLOURS: Final = {
    "NEW": "bright_black",
    "SUBMITTED": "yellow",
    "RUNNING": "cyan",
    "STOPPED": "magenta",
    "TERMINATING": "blue",
    "TERMINATED": "green",
    "UNKNOWN": "red",
}


def state_colour(state: Any, returncode: Any = None) -> str:
    """Return the colour of a task's state, or ''; a task that ended with a return code other than 0 has failed.

    Both may be any value: a record may hold what no `Task` has.
    """
    if isinstance(returncode, int) and returncode != 0:
        return "red"
    return _STATE_COLOURS.get(state, "") if isinstance(state, str) else ""
