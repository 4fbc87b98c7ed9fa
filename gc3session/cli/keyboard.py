"""Keys of a terminal as they are pressed, without waiting for the end of a line."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Any, Final

_DISABLED: Final = b"\0"  # _POSIX_VDISABLE of Linux


class Keyboard:
    r"""Within `with`, keys come one by one and aren't echoed; the terminal's modes are restored in the end.

    Ctrl-C asks to end, as always; Ctrl-Z and Ctrl-\ do nothing, as they would leave the terminal
    as it is now.  If stdin is no terminal there are no keys.
    """

    def __init__(self) -> None:
        self._modes: list[Any] | None = None
        self._fd: int | None = None

    def __enter__(self) -> Keyboard:
        if sys.stdin is not None and sys.stdin.isatty():
            self._fd = sys.stdin.fileno()
            self._modes = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            modes = termios.tcgetattr(self._fd)
            modes[6][termios.VSUSP] = modes[6][termios.VQUIT] = _DISABLED
            termios.tcsetattr(self._fd, termios.TCSADRAIN, modes)
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._fd is not None and self._modes is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._modes)
            except termios.error:  # the terminal is gone
                self._modes = None

    def pressed(self, seconds: float) -> str:
        """Wait for keys, at most so long, and return them; '' if there were none."""
        if not select.select([] if self._fd is None else [self._fd], [], [], seconds)[0] or self._fd is None:
            return ""
        keys = os.read(self._fd, 64)
        if not keys:  # the terminal is gone: it would be ready for ever
            self._fd = None
        return keys.decode(errors="replace")
