"""What is there for a while: directories under a temporary name, each whole in the end or not there, and files that have none."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from ..errors import WriteError
from .filesystem import make_directory, sync_directory


@contextlib.contextmanager
def keeping(what: str) -> Iterator[None]:
    """Within `with`, *what* is written into a temporary file.  Raise WriteError if that can't be made or has no room."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or "a temporary directory"  # which it looks for when it is asked first
        raise WriteError(
            f"{what} can't be kept in {where} ({error.strerror}): make room there, or set TMPDIR to another place"
        ) from error


def temporary_name(path: str) -> str:
    """Return another name beside *path*, which says which process uses it."""
    return f"{path}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def delete_leftovers(path: str, *, files: bool = False) -> None:
    """Delete what processes that are dead had begun to make at *path*: a directory, or with *files* a file."""
    parent, name = os.path.split(path)
    pattern = re.compile(
        rf"{re.escape(name)}(?:\.(\d+)\.[0-9a-f]+\.tmp)+"
    )  # what is made there may be made so, too
    for other in os.listdir(parent) if os.path.isdir(parent) else ():
        match = pattern.fullmatch(other)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            left = os.path.join(parent, other)
            delete_tree(left)
            if files and os.path.isfile(left) and not os.path.islink(left):
                os.unlink(left)


def delete_tree(directory: str) -> None:
    """Delete a directory that nobody uses, as far as that can be done; never what a symbolic link leads to."""
    if os.path.isdir(directory) and not os.path.islink(directory):
        shutil.rmtree(directory, ignore_errors=True)  # what is somebody else's stays, and so means nothing


@contextlib.contextmanager
def made_whole(path: str) -> Iterator[str]:
    """Give the name of a new empty directory that is to be filled; in the end it stands at *path*, on disk.

    Files in it must have been synced by whoever made them.  If the block raises, nothing is left but
    the directories above, which are made if they are missing.  An empty directory at *path* is
    replaced; raise OSError (ENOTEMPTY, EEXIST) for anything else there.
    """
    make_directory(os.path.dirname(path))
    delete_leftovers(path)
    temporary = temporary_name(path)
    os.mkdir(temporary)
    try:
        yield temporary
        sync_directory(temporary)
        os.rename(temporary, path)
    finally:
        try:
            delete_tree(temporary)
        except BaseException:  # of a signal's handler: Ctrl-C may come while another failure is cleaned up
            delete_tree(temporary)
            raise
    sync_directory(os.path.dirname(path))
