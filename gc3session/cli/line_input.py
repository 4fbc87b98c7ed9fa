"""Lines as they arrive, from a file or a pipe, with a pause in the input told and signals minded."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from .console import Failure, complain
from .interrupts import Interrupts

STDIN: Final = "-"
"""What stands for standard input on the command line."""

LONGEST: Final = 64 << 20
"""Bytes of a line; of a longer one only the beginning is given."""

_CHUNK: Final = 1 << 18  # bytes read at once
_PAUSE: Final = 0.5  # seconds without input that are a pause


@contextmanager
def opened(file: str) -> Iterator[int]:
    """Open a file, or standard input for '-', and give its descriptor."""
    if file == "-":
        if sys.stdin is None:
            raise Failure("standard input is closed: pass a file, or pipe the tasks in")
        if sys.stdin.isatty():
            complain("reading a JSON object a line from the terminal; end with Ctrl-D")
        yield sys.stdin.fileno()
        return
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise Failure(f"{file}: Is a directory")
        yield fd
    finally:
        os.close(fd)


class Lines:
    """The lines of a file as (number, bytes); where it pauses, (number of the last line, None).

    Of a line that is too long only the beginning is given, a little more than is allowed.

    Attributes:
        position: how many bytes have been read.
    """

    def __init__(self, fd: int, interrupts: Interrupts) -> None:
        self._fd = fd
        self._interrupts = interrupts
        self.position = 0

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        """Raise KeyboardInterrupt between two lines once a signal has been caught."""
        number = 0
        begun = bytearray()  # of a line whose end has not been read
        cut = False  # that line has been given already, as it is too long
        for chunk in self._chunks():
            if chunk is None:
                yield number, None
                continue
            *lines, rest = chunk.split(b"\n")
            for line in lines:
                if self._interrupts.caught is not None:
                    raise KeyboardInterrupt
                number += 1
                if not cut:
                    yield number, bytes(begun) + line if begun else line
                begun.clear()
                cut = False
            if not cut:
                begun += rest
                if len(begun) > LONGEST:
                    yield number + 1, bytes(begun)
                    begun.clear()
                    cut = True
        if begun:
            yield number + 1, bytes(begun)

    def _chunks(self) -> Iterator[bytes | None]:
        pause: float | None = _PAUSE
        while True:
            chunk = os.read(self._fd, _CHUNK) if self._interrupts.ready(self._fd, pause) else None
            if chunk == b"":
                return
            self.position += len(chunk or b"")
            yield chunk
            pause = None if chunk is None else _PAUSE


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
