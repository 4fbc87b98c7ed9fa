"""The environments that this process has open: one for each directory, shared by all that use it.

LMDB breaks if a process opens the same environment twice, or keeps using one after a fork. So `acquire` gives
all users of a directory the same environment; and before a fork all environments are closed, so that
parent and child each open theirs again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...system.forks import ENVIRONMENTS, Lock, at_fork
from .environment import Environment
from .locks import exclusive_lock, in_use

_environments: list[Environment] = []  # of a directory more than one, if its files were replaced meanwhile
_registry = threading.Lock()


def acquire(path: str, user: object, read_only: bool, map_size: int, verify: bool | None) -> Environment:
    """Return the environment in the directory *path* for one more *user*, which calls `release` in the end."""
    with _registry:
        there = [env for env in _of(path) if not env.was_replaced]
        for former in _of(path):
            if former not in there:
                _close_unused(former)
        env = there[0] if there else Environment(path, read_only, map_size, verify)
        if not there:
            _environments.append(env)
        elif env.read_only and not read_only:
            with env.idle():
                env.close()
                env.read_only = False
        env.users.add(user)
        return env


def release(env: Environment, user: object) -> None:
    """Take a user away from *env*; when there are none left it is closed."""
    with _registry:
        env.users.discard(user)
        _close_unused(env)


def discard(path: str) -> None:
    """Close the environment in the directory *path*, which is about to be deleted, for all its users."""
    with _registry:
        envs = _of(path)
        for env in envs:
            _environments.remove(env)
    for env in envs:
        env.suspend()


@contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Within `with`, nobody has the environment in the directory *path* open. Raise StoreInUse if anybody has."""
    # This process is asked first: closing `lock.mdb` would give up the lock that LMDB holds on it for the process.
    with _registry:
        for env in _of(path):
            _close_unused(env)
        if _of(path):
            raise in_use(path, here=True)
    with exclusive_lock(path):
        yield


def _of(path: str) -> list[Environment]:
    return [env for env in _environments if env.path == path]


def _close_unused(env: Environment) -> None:
    if not env.users:
        env.suspend()
        if env in _environments:
            _environments.remove(env)


def _locks() -> list[Lock]:
    return [_registry, *(lock for env in [*_environments] for lock in (env.writing, env.reading))]


def _before_fork() -> None:
    # LMDB's state can neither be used nor closed in a child while the parent reads on: where the
    # child closed it, the parent read wrong data within seconds. So nothing is left open.
    for env in _environments:
        env.close()


def _after_in_child() -> None:
    global _registry
    _registry = threading.Lock()
    for env in _environments:
        env.renew_locks()


at_fork(ENVIRONMENTS, _after_in_child, locks=_locks, before=_before_fork)
