"""What the commands read: lines of a file or a pipe as they arrive, IDs, JSON, and answers."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from .console import Failure, complain, escaped, os_error_text
from .interrupts import Interrupts

STDIN: Final = "-"
"""What stands for standard input on the command line."""

LINE_BYTES: Final = 64 << 20
"""The length of the longest line that is read whole."""

_CHUNK_BYTES: Final = 1 << 18  # read at once
_PAUSE_SECONDS: Final = 0.5  # without input


def stdin(remedy: str, prompt: str = "", status: int = 1) -> IO[bytes]:
    """Return standard input. Raise Failure, whose message has the *remedy*, if it is closed.

    The *prompt* says what is read, if it is a terminal.
    """
    if sys.stdin is None:
        raise Failure(f"standard input is closed: {remedy}", status)
    if prompt and sys.stdin.isatty():
        complain(f"reading {prompt} from the terminal; end with Ctrl-D")
    return sys.stdin.buffer


# -- lines --------------------------------------------------------------------


@contextmanager
def opened(file: str) -> Iterator[int]:
    """Open a file, or standard input for '-', and give its descriptor."""
    if file == STDIN:
        yield stdin("pass a file, or pipe the tasks in", "one JSON object per line").fileno()
        return
    try:
        source = open(file, "rb", buffering=0)  # noqa: SIM115 (`with` comes next)
    except OSError as error:
        raise Failure(os_error_text(error, file)) from error
    with source:
        yield source.fileno()


def lines_of(fd: int, interrupts: Interrupts) -> Iterator[bytes | None]:
    """Give the lines of a file, and None where it pauses; of a line that is too long, a bit more than LINE_BYTES.

    Raise KeyboardInterrupt between two lines once a signal has been caught.
    """
    begun = bytearray()  # of a line whose end has not been read
    cut = False  # the beginning of that line has been given already, as it is too long
    pause: float | None = _PAUSE_SECONDS
    while True:
        if not interrupts.ready(fd, pause):
            yield None
            pause = None
            continue
        pause = _PAUSE_SECONDS
        chunk = os.read(fd, _CHUNK_BYTES)
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if interrupts.caught is not None:
                raise KeyboardInterrupt
            if not cut:
                yield bytes(begun) + line
            begun.clear()
            cut = False
        begun += rest if not cut else b""
        if begun and (not chunk or len(begun) > LINE_BYTES):
            yield bytes(begun)
            begun.clear()
            cut = True
        if not chunk:
            return


# -- IDs ----------------------------------------------------------------------


def ids_from_args(ids: Iterable[str]) -> Iterator[str]:
    """Give the IDs; for each '-' those of standard input, one a line, without blank lines."""
    for id_ in ids:
        if id_ != STDIN:
            yield id_
            continue
        source = stdin("pipe the IDs in, or write them on the command line", "one ID per line", 2)
        try:
            yield from filter(None, (line.decode(errors="backslashreplace").strip() for line in source))
        except OSError as error:
            raise Failure(os_error_text(error, "standard input")) from error


# -- JSON ---------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; NaN and Infinity in it are floats.

    Raise ValueError, which says what is wrong and where, if it is not JSON or an object has a key twice.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte, place = data[error.start], error.start + 1
        raise ValueError(f"it is not UTF-8: byte 0x{byte:02x} at position {place}") from None
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        what = error.msg.removesuffix(" at")
        raise ValueError(f"it is not JSON: {what} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        limit = sys.get_int_max_str_digits()
        raise ValueError(f"it has an integer of more than {limit} digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, in which no key may be dropped in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has the key {twice!r} twice in one object")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


# -- answers ------------------------------------------------------------------


yes_option = click.option("-y", "--yes", is_flag=True, help="Do it without asking.")


def ensure_may_ask(command: str, yes: bool, *, stdin_has_ids: bool = False) -> None:
    """Raise Failure with status 2 if *yes* is False and nobody can answer on standard input."""
    if not yes and (stdin_has_ids or sys.stdin is None or not sys.stdin.isatty()):
        why = "gives the IDs" if stdin_has_ids else "is no terminal"
        raise Failure(f"{command} asks before it begins, but standard input {why}: add --yes to do it unasked", 2)


def confirmed(question: str, yes: bool, interrupts: Interrupts) -> bool:
    """Return whether *yes* is True or the answer to the question, asked on stderr, is yes.

    The end of input means no. Raise KeyboardInterrupt for a signal.
    """
    if yes:
        return True
    sys.stderr.write(f"{escaped(question)} [y/N] ")
    sys.stderr.flush()
    interrupts.ready(sys.stdin.fileno())
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    return answer.strip().lower() in ("y", "yes")
