"""A mirror that is not as the index says is found and mended, whatever of it is wrong."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from consistency import check, read_mirror

import gc3session.mirror
from gc3session import MirrorWarning, Session, Task

MakeSession = Callable[..., Session]


def write_with_its_time(mirror: Path, contents: bytes) -> None:
    """Change a mirror so that its time does not tell."""
    time = mirror.stat().st_mtime_ns
    mirror.write_bytes(contents)
    os.utime(mirror, ns=(time, time))


def test_mirror_of_another_size_is_mended_though_its_time_is_right(make_session: MakeSession) -> None:
    with make_session() as session:
        ids = [session.add(Task()) for _ in range(5)]
    mirror = Path(session.path, "session_ids.txt")
    write_with_its_time(mirror, mirror.read_bytes()[:-7])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MirrorWarning)
        session = make_session()
    assert read_mirror(session.path) == ids


def test_mirror_of_another_boot_is_mended_without_a_warning(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is not flushed: after a power cut blocks may be lost, with size and time as they were.
    with make_session() as session:
        ids = [session.add(Task()) for _ in range(5)]
    mirror = Path(session.path, "session_ids.txt")
    write_with_its_time(mirror, bytes(mirror.stat().st_size))
    monkeypatch.setattr(gc3session.mirror, "_boot_id", lambda: "another boot")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = make_session()
    assert read_mirror(session.path) == ids
    write_with_its_time(mirror, b"")
    monkeypatch.setattr(gc3session.mirror, "_boot_id", lambda: "a third one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids.append(session.add(Task()))
    assert read_mirror(session.path) == ids
    monkeypatch.undo()
    session.close()
    assert check(session.path) == ids


def test_edited_mirror_is_mended_by_a_flush_of_nothing(session: Session) -> None:
    ids = [session.add(Task()) for _ in range(2)]
    mirror = Path(session.path, "session_ids.txt")
    mirror.write_text("Task.99\n")
    with pytest.warns(MirrorWarning):
        session.flush()
    assert read_mirror(session.path) == ids
