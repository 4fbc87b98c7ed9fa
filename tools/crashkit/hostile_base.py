"""The sound sessions that hostile directories are made from, held in memory, and the canary beside them."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import attrs

import lmdb
from gc3session import Session, Task, TaskCollection, dump_session

FILES = "created session_ids.txt store.url finished jobs/data.mdb jobs/lock.mdb jobs/writer.lock".split()
"""The files of a session, but for what marks its data file as made here: a hostile directory has no such mark."""


@attrs.frozen
class Sound:
    """A sound session: its files, and the IDs of some of its tasks."""

    files: dict[str, bytes]
    ids: list[str]
    identity: str

    @property
    def data(self) -> bytes:
        return self.files["jobs/data.mdb"]

    def write(self, path: Path) -> None:
        """Make the session at *path*."""
        (path / "jobs").mkdir(parents=True)
        for name, data in self.files.items():
            with open(path / name, "wb") as file:
                file.write(data)

    @classmethod
    def read(cls, path: Path) -> Sound:
        """Return the session at *path*, which nobody writes."""
        with Session(path, read_only=True) as session:
            ids = list(session.tasks)
        files = {name: (path / name).read_bytes() for name in FILES}
        return cls(files, ids, files["store.url"].decode().strip().rpartition("#")[2])


@attrs.frozen
class Bases:
    """What hostile directories are made from.

    Attributes:
        sessions: a small one, one with values on overflow pages, and one with many tasks, of which another
            session of its store holds some, too.
        version_3: a data file of LMDB 1.0.
        other_tables: a data file of LMDB 0.9 that has other tables.
        dump: a dump of the first session.
    """

    sessions: list[Sound]
    version_3: bytes
    other_tables: bytes
    dump: bytes

    @classmethod
    def made(cls, work: Path) -> Bases:
        """Return the bases, which are made in the empty directory *work*."""
        for name, fill in (("small", _small), ("large", _large), ("many", _many)):
            fill(work / name)
        dump = work / "dump.jsonl"
        with Session(work / "small", read_only=True) as session:
            dump_session(session, dump)
        return cls(
            [Sound.read(work / name) for name in ("small", "large", "many")],
            _environment(work / "version_3", lib_version=1),
            _environment(work / "other_tables", lib_version=0),
            dump.read_bytes(),
        )


def _finish(session: Session) -> None:
    session.set_end_timestamp(1_700_000_000.0)


def _small(path: Path) -> None:
    with Session(path) as session:
        ids = [session.add(Task(jobname=f"t{n}", extra={"at": datetime.now(UTC), "n": 1 << 70})) for n in range(8)]
        session.add(TaskCollection(jobname="all", tasks=[Task(jobname="inner"), session[ids[0]]]))
        session.remove(ids[3])
        _finish(session)


def _large(path: Path) -> None:
    with Session(path) as session:
        for n in range(12):
            session.add(Task(jobname=f"large{n}", extra={"data": bytes([n]) * (900 * n * n)}))
        session.remove(next(iter(session.tasks)))
        _finish(session)


def _many(path: Path) -> None:
    with Session(path) as session:
        states = ("NEW", "RUNNING", "STOPPED", "x" * 600)
        session.add_many(Task(jobname=f"m{n}", state=states[n % 4], extra={"n": n}) for n in range(700))
        ids = list(session.tasks)
        for id_ in ids[:40]:
            session.forget(id_)
        for id_ in ids[:20]:
            session.load(id_, add=True)
        session.remove(ids[50])
        with Session(path.with_name("other"), store_or_url=session.store_url) as other:
            for id_ in ids[10:50:10]:  # some of which the first session holds
                other.load(id_, add=True)
            other.add(Task(jobname="the other's"))
        _finish(session)


def _environment(path: Path, lib_version: int) -> bytes:
    path.mkdir()
    env = lmdb.open(str(path), map_size=1 << 24, max_dbs=4, lib_version=lib_version)
    table: Any = env.open_db(b"other")
    with env.begin(write=True) as txn:
        for n in range(200):
            txn.put(b"key%d" % n, b"value" * 20, db=table)
    env.close()
    return (path / "data.mdb").read_bytes()


class Target:
    """A session directory to be spoilt, and what stands beside it."""

    def __init__(self, work: Path, bases: Bases, rng: Random) -> None:
        self.case = work / "case"
        self.canary = work / "canary"
        self.bases = bases
        self.rng = rng
        self.data = self.case / "jobs" / "data.mdb"
        self.lock = self.case / "jobs" / "lock.mdb"


class Canary:
    """What stands beside a hostile session and must stay as it is."""

    def __init__(self, work: Path, bases: Bases) -> None:
        self.work = work
        self.path = work / "canary"
        self._bases = bases
        self.renew()

    def renew(self) -> None:
        """Make the canary again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        (self.path / "victim.txt").write_bytes(b"precious\n")
        (self.path / "empty.mdb").touch()
        (self.path / "directory").mkdir()
        (self.path / "link").symlink_to("directory")
        self._bases.sessions[1].write(self.path / "session")  # whose identity no hostile store.url has
        shutil.copytree(self.path / "session" / "jobs", self.path / "store")
        self._state = self._seen()

    def changes(self) -> list[str]:
        """Return what has changed beside the hostile session, and make it as it was."""
        now = self._seen()
        changed = sorted({name for name, _ in now.items() ^ self._state.items()})
        if changed:
            for name in changed:
                if name.partition("/")[0] not in ("canary", ""):
                    path = self.work / name
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
                        missing_ok=True
                    )
            self.renew()
        return changed

    def _seen(self) -> dict[str, tuple[int, ...]]:
        """Return what there is beside the hostile session, and its status."""
        found: dict[str, tuple[int, ...]] = {}
        pending = [self.work]
        while pending:
            place = pending.pop()
            for entry in os.scandir(place):
                if entry.path == str(self.work / "case"):
                    continue
                status = entry.stat(follow_symlinks=False)
                # A directory changes with its names, which are here; a lock file is used by each reader.
                skip = entry.is_dir(follow_symlinks=False) or entry.name == "lock.mdb"
                size = (0, 0) if skip else (status.st_size, status.st_mtime_ns)
                name = os.path.relpath(entry.path, self.work)
                found[name] = (status.st_mode, status.st_uid, status.st_ino, *size)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
        return found
