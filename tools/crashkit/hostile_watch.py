"""Ends a process that runs, imports or writes anything that a session has no business with.

What a library written in C does itself, as LMDB opens its files, no hook sees: whether files that stand elsewhere
are as before must be looked at afterwards.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_STARTING: Final = frozenset(
    "compile exec subprocess.Popen os.system os.exec os.fork os.forkpty os.kill os.killpg os.posix_spawn os.spawn "
    "pty.spawn ctypes.dlopen code.__new__ marshal.load marshal.loads pickle.find_class shelve.open socket.__new__ "
    "socket.connect socket.bind socket.getaddrinfo socket.gethostbyname urllib.Request webbrowser.open".split()
)
_CHANGING: Final = frozenset(
    "os.chmod os.chown os.link os.mkdir os.remove os.rename os.rmdir os.setxattr os.symlink os.truncate os.utime "
    "shutil.rmtree".split()
)
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CODE: Final = 99


def forbid_side_effects(allowed: tuple[Path, ...], *, may_start: bool = False) -> None:
    """Have this process end with status 99 if it starts or imports anything, or changes what isn't in *allowed*.

    What each of *allowed* is called while it is made or deleted, `.NAME.X`, is allowed, too.
    With *may_start* it may start programs. This can't be undone.
    """
    loaded = frozenset(sys.modules)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "import":
            if args[0] not in loaded:
                _end(f"import {args[0]}")
        elif event in _STARTING:
            if not may_start and args != (None,):  # of ctypes.dlopen: the libraries that are loaded already
                _end(f"{event} {args!r}")
        elif event == "open":
            flags = args[2] & _WRITING if isinstance(args[2], int) else 0
            # A lock file must be opened for writing to be locked; that nothing was written is looked at later.
            to_lock = flags == os.O_RDWR and str(args[0]).endswith("/writer.lock")
            if flags and not to_lock and not inside(args[0]):
                _end(f"open {args[0]!r} for writing")
        elif event in _CHANGING:
            places = args[1:2] if event == "os.symlink" else args[:2]  # a link changes nothing where it leads to
            if not all(map(inside, places)):
                _end(f"{event} {args!r}")

    inside = _judge(allowed)
    sys.addaudithook(hook)


def _judge(allowed: tuple[Path, ...]) -> Callable[[Any], bool]:
    """Return the function that tells whether a path is allowed."""
    roots = tuple(map(os.fspath, allowed))
    begins = tuple(f"{path}{os.sep}" for path in roots)
    begins += tuple(f"{path.parent}{os.sep}.{path.name}." for path in allowed)
    others = ("/dev/null", "/dev/tty")

    def inside(path: Any) -> bool:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or not path.startswith(os.sep):
            return True  # a descriptor, or relative to one: it was judged when that was opened
        path = os.path.realpath(path) if path.startswith("/proc/self/fd/") else os.path.normpath(path)
        return path.startswith(begins) or path in roots or path in others

    return inside


def _end(what: str) -> None:
    traceback.print_stack()
    sys.stderr.write(f"Traceback (most recent call last):\nSideEffect: {what}\n")
    sys.stderr.flush()
    os._exit(_CODE)
