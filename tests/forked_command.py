"""The command `gc3session` as a forked child of a process that has imported it: the start takes a tenth of the time.

As a program this is that process. It gets requests through the socket that its three streams
are, each with the three streams of a command, and answers with the status.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

_REQUEST = 1 << 16  # bytes of one, at most


class Ancestor:
    """The process that has imported all, for commands in its *environment*; it ends with this one."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._owner = os.getpid()
        self._variables = _variables()
        self._lock = Lock()
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=there, stdout=there, stderr=there, env=environment
            )

        atexit.register(self._end)

    def _end(self) -> None:
        if os.getpid() == self._owner:
            self._here.close()
            self._process.wait()

    def run(self, argv: Sequence[str], stdin: bytes) -> tuple[int, bytes, bytes] | None:
        """Run a command; return its status, and what it wrote, or None if it needs a process of another kind."""
        request = json.dumps([os.getcwd(), *argv]).encode()
        here = os.getpid() == self._owner and _variables() == self._variables
        if not here or len(request) > _REQUEST or not self._lock.acquire(blocking=False):
            return None
        try:
            (read_in, write_in), (read_out, write_out), (read_err, write_err) = (os.pipe() for _ in range(3))
            theirs = [read_in, write_out, write_err]
            socket.send_fds(self._here, [request], theirs)
            for end in theirs:
                os.close(end)
            with ThreadPoolExecutor(3) as threads:
                threads.submit(_write, write_in, stdin)
                out, err = threads.submit(_read, read_out), threads.submit(_read, read_err)
                return int(self._here.recv(16)), out.result(), err.result()
        finally:
            self._lock.release()


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _write(end: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(end, "wb") as pipe:  # as much as the command wants
        pipe.write(data)


def _read(end: int) -> bytes:
    with open(end, "rb") as pipe:
        return pipe.read()


def main() -> int:
    """Fork a command for each request; return its status in the child, or 0 when there are no more requests."""
    import gc3session.cli

    for module in pkgutil.walk_packages(gc3session.__path__, "gc3session."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    program = Path(gc3session.cli.__file__).parent.parent / "__main__.py"
    gc.freeze()
    requests = socket.socket(fileno=os.dup(0))
    while True:
        request, streams, _, _ = socket.recv_fds(requests, _REQUEST, 3)
        if not request:
            return 0
        child = os.fork()
        if child == 0:
            requests.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            place, *argv = json.loads(request)
            os.chdir(place)
            sys.path[0] = place  # as for `python -m`
            sys.argv = [str(program), *argv]
            return gc3session.cli.main()
        for stream in streams:
            os.close(stream)
        requests.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


if __name__ == "__main__":
    sys.exit(main())
