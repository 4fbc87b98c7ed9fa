"""The walk through a data file against `lmdb.verify` (3.0.0), which comes with py-lmdb: no false alarms, nothing missed.

Where lmdb.verify misses damage: test_hostile.py.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import lmdb.verify
import pytest

from children import Child
from examples import Simulation
from gc3session import OpenError, Session, Task, check_session, repair_session
from gc3session.tables.lmdb.data_file.meta import newest_meta_page, opened_data_file
from gc3session.tables.lmdb.data_file.pages import Pages
from gc3session.tables.lmdb.data_file.structure import check_structure


def make(path: Path, size: int = 100) -> Path:
    """Make a session; return its data file."""
    with Session(path) as session:
        session.add_many(Simulation(mesh="m" * size) for _ in range(40))
    return path / "jobs" / "data.mdb"


def problems_of(data: Path) -> list[str]:
    """Return the faults in the structure of a data file that nobody writes."""
    found: list[str] = []
    with opened_data_file(str(data)) as file:
        try:
            meta = newest_meta_page(str(data), file.fileno())
        except OpenError as error:
            return [str(error)]
        check_structure(Pages(str(data), file.fileno(), meta), found.append)
    return found


def test_a_file_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    # lmdb.verify looks at pages of several states: false alarms beside a live writer.
    data = make(tmp_path / "s")

    def write() -> None:
        with Session(tmp_path / "s") as session:
            while not (tmp_path / "stop").exists():
                ids = list(session.add_many(Task() for _ in range(5)))
                session.remove_many(ids)

    writer = Child(write)
    try:
        for _ in range(50):
            assert list(check_session(tmp_path / "s")) == []
    finally:
        (tmp_path / "stop").touch()
        writer.result()
    assert problems_of(data) == []


def test_whatever_lmdb_verify_finds_in_a_damaged_page_is_found(tmp_path: Path) -> None:
    data = make(tmp_path / "s", size=200)
    whole = data.read_bytes()
    for page in range(2, len(whole) // 4096):
        for place in (0, 10, 12, 14, 16, 18, 4000):
            damaged = bytearray(whole)
            damaged[page * 4096 + place] ^= 0xFF
            data.write_bytes(damaged)
            try:
                problems = [
                    line
                    for line in lmdb.verify.verify(os.fspath(data))
                    if "leak" not in line and "neither" not in line
                ]
            except Exception as error:
                problems = [str(error)]
            if problems:
                assert problems_of(data), (page, place, problems)
    data.write_bytes(whole)


def resized(data: Path, key: int, value: int) -> None:
    """Make the keys of all copies of a record longer by *key* bytes, and its value by *value*, and change nothing else."""
    whole = bytearray(data.read_bytes())
    wanted = (9).to_bytes(2, sys.byteorder) + b"\x0b" + (20).to_bytes(8, "big")
    place = whole.find(wanted)
    while place >= 0:
        size = int.from_bytes(whole[place - 6 : place - 4], sys.byteorder)
        whole[place - 6 : place - 4] = (size + value).to_bytes(2, sys.byteorder)
        whole[place : place + 2] = (9 + key).to_bytes(2, sys.byteorder)
        place = whole.find(wanted, place + 1)
    data.write_bytes(whole)


@pytest.mark.parametrize(("key", "value"), [(512, -512), (0, 2), (0, -2), (-2, 0), (-9, 9)])
def test_sizes_of_which_lmdb_would_spoil_the_page_are_found_and_mended(
    tmp_path: Path, key: int, value: int
) -> None:
    # LMDB reads them, and moves other bytes than those of the node when it is deleted or replaced.
    data = make(tmp_path / "s", size=900)
    resized(data, key, value)
    assert problems_of(data)
    assert repair_session(tmp_path / "s").quarantined
    assert list(check_session(tmp_path / "s")) == []
    with Session(tmp_path / "s") as session:
        assert len(session) == 39


def test_pages_that_lmdb_has_written_have_neither_gaps_nor_nodes_that_overlap(tmp_path: Path) -> None:
    chance = random.Random(1)
    data = make(tmp_path / "s")
    with Session(tmp_path / "s") as session:
        for _ in range(200):
            ids = list(session.ids())
            session.add_many(Simulation(mesh="m" * chance.randrange(4000)) for _ in range(20))
            session.remove_many(chance.sample(ids, min(15, len(ids))))
            for id_ in chance.sample(ids[20:], min(5, len(ids[20:]))):
                task = session.store.load(id_) if id_ in session else None
                if task is not None:
                    task.mesh = "m" * chance.randrange(6000)
            session.save_all()
            assert problems_of(data) == []
