"""A command in a process of its own, because a damaged data file can make LMDB end the process.

LMDB maps the data file into memory. If the file is damaged inside, or somebody cuts it while it is
open, the process gets SIGBUS or SIGSEGV, or LMDB aborts; no check before the opening finds all such
damage in constant time. So the command runs in a child, and its parent reports what has happened.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_CRASHES: Final = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL))
_FORWARDED: Final = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG of prctl(2)


def guarded(function: Callable[[], int]) -> int:
    """Call *function* in a child process, and return its exit status there.

    The parent doesn't return: it ends as the child does, or with status 2 if LMDB has ended the child.
    """
    watched = _FORWARDED | {signal.SIGCHLD}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return function()
    while True:
        received = signal.sigwaitinfo(watched)
        if received.si_signo != signal.SIGCHLD:
            if received.si_code <= 0:  # sent by kill(2); a signal of the terminal reaches the child, too
                os.kill(child, received.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
    code = os.waitstatus_to_exitcode(status)
    if -code in _CRASHES:
        sys.stderr.write(
            f"gc3session: LMDB has ended the command ({signal.Signals(-code).name}): the store's data file is"
            " damaged, or was cut while it was open. 'gc3session check' shows what is wrong, 'gc3session"
            " repair' repairs it\n"
        )
        sys.stderr.flush()
        os._exit(2)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        os.kill(os.getpid(), -code)
        code = 128 - code
    os._exit(code)
