"""What parent and child of a fork must not share."""

from __future__ import annotations

import fcntl
import os

from children import in_child

from gc3session import Session, Task


def test_child_locks_the_mirror_for_itself(session: Session) -> None:
    # One open file shared by both would let both write the mirror at once.
    session.add(Task())
    parents = os.dup(session._mirror._lock)

    def child() -> bool:
        session.add(Task())
        fcntl.flock(session._mirror._lock, fcntl.LOCK_EX)
        try:
            fcntl.flock(parents, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    try:
        assert in_child(child)
    finally:
        os.close(parents)


def test_child_opens_the_environment_anew(session: Session) -> None:
    # LMDB forbids the use of an environment in a child of the process that opened it.
    id_ = session.add(Task())
    environment = session.store.tables._env
    parents = environment.opened()

    def child() -> bool:
        closed = not environment.is_open
        assert id_ in session
        return closed and environment.opened() is not parents

    assert in_child(child)
    assert id_ in session
