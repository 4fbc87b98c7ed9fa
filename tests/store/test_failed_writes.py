"""What a failed write leaves in the data file, and what the crash kit found there."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import gc3session.tables.lmdb.data_file.meta
from consistency import check
from gc3session import CorruptStore, OpenError, Session, Task, WriteError
from gc3session.tables.lmdb.data_file.meta import meta_pages_of

MakeSession = Callable[..., Session]

ROOT = 88 + 40
"""Where a meta page has the root of the tree of tables."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data file of a closed session with three tasks."""
    with Session(tmp_path / "session") as session:
        for _ in range(3):
            session.add(Task())
    return tmp_path / "session" / "jobs" / "data.mdb"


def damage(data: Path, newer: bool) -> None:
    """Let one of the meta pages have a root beyond the last page."""
    transactions = [meta.transaction for meta in meta_pages_of(str(data))]
    page = transactions.index((max if newer else min)(transactions))
    with open(data, "r+b") as file:
        file.seek(page * 4096 + ROOT)
        file.write(struct.pack("=Q", 1 << 40))


def test_meta_page_that_does_not_hold_may_have_impossible_trees(data: Path) -> None:
    # LMDB leaves one, for ever, where writing a meta page has failed.
    damage(data, newer=False)
    with Session(data.parent.parent) as session:
        assert not list(session.check())
        session.add(Task())
    assert len(check(data.parent.parent)) == 4


def test_meta_page_that_holds_may_not(data: Path) -> None:
    damage(data, newer=True)
    with pytest.raises(CorruptStore, match="impossible"):
        Session(data.parent.parent)


def test_disk_that_fails_while_the_store_is_opened_gives_an_error_of_ours(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(gc3session.tables.lmdb.data_file.meta, "read_meta_pages", fail)
    with pytest.raises(OpenError, match="look after the disk"):
        Session(data.parent.parent)


def test_disk_that_fails_while_the_end_is_noted_gives_an_error_of_ours(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(WriteError):
            session.set_end_timestamp()
    assert session.finished is None
