"""Records the calls of programs that change what is on disk, in the order in which they happen.

The recording is done by `recorder.c`, which is built where it is used and loaded into the programs.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from suite import KIT, CannotRun

_ENTRY = struct.Struct("=c3xiQQQqqIIQ")


@attrs.frozen
class Entry:
    """A call, or what a program reported.

    Attributes:
        kind: of the call:

            - `C` a file was made, `T` one was cut to no bytes, `W` one was written to, `L` one has
              another length, `U` one has another time of change;
            - `D` what was written last is on disk (*data* says how many bytes), `F` all of the file is but its
              times, `S` all of it is, or the names in the directory;
            - `M` a directory was made, `R` a name was moved, `E` two names were exchanged, `N` a file has
              one more name, `K` a name was taken away;
            - `A` a program reported *data*.
        pid: of the process.
        inode: of the file or directory.
        parent: the directory that *name* is in.
        target: the directory that *target_name* is in.
        offset: where the bytes were written, or the new length.
        mtime: of the file after the call, in ns.
        name: the last part of its path.
        target_name: that of its new path.
        data: the bytes.
    """

    kind: str
    pid: int
    inode: int
    parent: int
    target: int
    offset: int
    mtime: int
    name: str
    target_name: str
    data: bytes

    @property
    def report(self) -> list[Any]:
        """What the program reported."""
        words: list[Any] = json.loads(self.data)
        return words


class Recorder:
    """Builds the recorder in *work*; programs with its environment are recorded there.

    Attributes:
        root: the directory that is watched.
        log: the file of the entries.
    """

    def __init__(self, work: Path, root: Path) -> None:
        self.root = root.resolve()
        self.log = work.resolve() / "log"
        self._library = build(work)

    def environment(self, fault: str = "", *, log: bool = True) -> dict[str, str]:
        """Return the environment variables for a program; recorder.c explains *fault*."""
        variables = {**os.environ, "LD_PRELOAD": str(self._library), "CRASHKIT_ROOT": str(self.root)}
        if log:
            variables["CRASHKIT_LOG"] = str(self.log)
        if fault:
            variables["CRASHKIT_FAULT"] = fault
        return variables

    def entries(self) -> Iterator[Entry]:
        """Give what was recorded."""
        with open(self.log, "rb") as log:
            while head := log.read(_ENTRY.size):
                kind, pid, inode, parent, target, offset, mtime, name, target_name, data = _ENTRY.unpack(head)
                yield Entry(
                    kind.decode(),
                    pid,
                    inode,
                    parent,
                    target,
                    offset,
                    mtime,
                    os.fsdecode(log.read(name)),
                    os.fsdecode(log.read(target_name)),
                    log.read(data),
                )


def build(work: Path) -> Path:
    """Return the shared library of recorder.c, built in *work*. Raise CannotRun if there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise CannotRun("no C compiler (gcc) to build the recorder with")
    library = work.resolve() / "recorder.so"
    command = [
        compiler,
        "-O2",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(KIT / "recorder.c"),
        "-ldl",
        "-lpthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"the recorder can't be built: {done.stderr.strip().splitlines()[-1:]}")
    return library
