"""Directories that are made under a temporary name, so that they appear whole or not at all; temporary files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

from ..errors import WriteError
from .filesystem import TEMPORARY_ENDING, make_directory, pid_namespace, sync, temporary_name


@contextlib.contextmanager
def keeping(what: str) -> Iterator[None]:
    """Within `with`, *what* is written to a temporary file. Raise WriteError if that can't be made or has no room."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "a temporary directory"  # it is None until tempfile has chosen one
        raise WriteError(
            f"{what} can't be kept in {where} ({error.strerror}): make room there, or set TMPDIR to another place"
        ) from error


def delete_leftovers(path: str, *, files: bool = False) -> None:
    """Delete the directories, and with *files* the files, that dead processes have left half made for *path*.

    Of a process in another container it isn't known here whether it is dead.
    """
    parent, name = os.path.split(path)
    pattern = re.compile(rf"{re.escape(name)}(?:{TEMPORARY_ENDING})+")  # twice if made inside of such a one
    for other in os.listdir(parent) if os.path.isdir(parent) else ():
        match = pattern.fullmatch(other)
        if match and int(match[2]) == pid_namespace() != 0 and not os.path.exists(f"/proc/{match[1]}"):
            left = os.path.join(parent, other)
            delete_tree(left)
            if files and os.path.isfile(left) and not os.path.islink(left):
                os.unlink(left)


def delete_tree(directory: str) -> None:
    """Delete a directory that nobody uses, as far as possible; a symbolic link and what it leads to stay."""
    if os.path.isdir(directory) and not os.path.islink(directory):
        shutil.rmtree(directory, ignore_errors=True)  # what another user owns stays, and does no harm


@contextlib.contextmanager
def made_whole(path: str) -> Iterator[str]:
    """Yield the name of a new empty directory for the block to fill; then it is renamed to *path*, on disk.

    Directories above *path* are made if they are missing, and stay. The block must flush the files that it
    makes. If it raises, nothing of the new directory is left. An empty directory at *path* is replaced. Raise
    OSError (ENOTEMPTY, EEXIST) if anything else is there.
    """
    make_directory(os.path.dirname(path))
    delete_leftovers(path)
    temporary = temporary_name(path)
    os.mkdir(temporary)
    try:
        yield temporary
        sync(temporary)
        os.rename(temporary, path)
    finally:
        delete_tree(temporary)
    sync(os.path.dirname(path))
