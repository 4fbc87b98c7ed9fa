"""Options and fixtures of all suites."""

from __future__ import annotations

import faulthandler
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from urllib.parse import quote

import hypothesis
import hypothesis.configuration
import psycopg
import pytest
from psycopg import sql

from consistency import check
from gc3session import Session
from postgresql_server import Server, shared_server, working_directory

SERVERS = "GC3SESSION_TEST_SERVERS"
"""Environment variable: the directory of the servers of this run, for all its processes."""


KINDS = ["lmdb", "postgresql"]

SECONDS, SECONDS_LONG = 600, 7200
"""After which a test hangs: so many that one on a busy machine never takes them."""

STDERR = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms: more examples, more kills")
    parser.addoption("--no-postgresql", action="store_true", help="skip what needs a PostgreSQL server")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell starts what runs in the background; what the tests interrupt would never hear of it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # No deadline: how long an example takes says nothing about whether it is right.
    options = {"deadline": None, "print_blob": True}
    hypothesis.settings.register_profile("default", max_examples=100, stateful_step_count=30, **options)
    hypothesis.settings.register_profile("long", max_examples=3000, stateful_step_count=80, **options)
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "default")
    if not hasattr(config, "workerinput") and not config.getoption("--no-postgresql"):
        os.environ[SERVERS] = os.fspath(working_directory())
    cache = getattr(config, "cache", None)
    if cache is not None:  # not `.hypothesis` in whatever directory the tests are started from
        hypothesis.configuration.set_hypothesis_home_dir(cache.mkdir("hypothesis"))
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        config.stash[STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    directory = os.environ.get(SERVERS)
    if directory is not None and not hasattr(config, "workerinput"):
        Server(Path(directory, "shared")).stop()
        shutil.rmtree(directory)
        del os.environ[SERVERS]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Show where all threads are if a test hangs, and end its process.

    An exception raised in the test would not end it: a wait in C goes on, and Hypothesis takes the exception for
    a failure that it looks for a shorter example of.
    """
    limit = SECONDS_LONG if item.config.getoption("--long") else SECONDS
    faulthandler.dump_traceback_later(limit, exit=True, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of modules that say so on every kind of store."""
    everywhere = getattr(metafunc.module, "ON_EVERY_STORE", False)
    if everywhere and "store_kind" in metafunc.fixturenames and not list(metafunc.definition.iter_markers("lmdb")):
        metafunc.parametrize("store_kind", KINDS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, unless the long forms are asked for, what takes long on a server."""
    if config.getoption("--long"):
        return
    slow = [item for item in items if list(item.iter_markers("slow_on_servers")) and "postgresql" in item.name]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def long_form(request: pytest.FixtureRequest) -> bool:
    """Whether the long forms are asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def not_ignored() -> Iterator[None]:
    """Have programs that the test starts end by signals, also where `nohup` or a shell has these tests ignore them."""
    ignored = [n for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def nothing_left_in_cwd(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Run each test in an empty directory, which must be empty again after it."""
    here = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(here)
    yield
    assert os.listdir(here) == [], "the test left files in the current directory"


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Path:
    """The directory in which this run has its PostgreSQL servers."""
    if request.config.getoption("--no-postgresql"):
        pytest.skip("--no-postgresql")
    return Path(os.environ[SERVERS])


@pytest.fixture(scope="session")
def postgresql(servers: Path) -> Iterator[Server]:
    """The PostgreSQL server that the tests share."""
    with shared_server(servers) as server:
        yield server


@pytest.fixture
def server(servers: Path) -> Iterator[Server]:
    """A server that a test has for itself, and may kill."""
    server = Server.made(servers / secrets.token_hex(4))
    server.start()
    yield server
    server.delete()


@pytest.fixture(scope="module")
def postgresql_urls(request: pytest.FixtureRequest) -> Iterator[Iterator[str]]:
    """URLs of stores that aren't there yet, each in a schema of its own."""
    given = os.environ.get("PGTEST_URL")
    if given is None or request.config.getoption("--no-postgresql"):
        server: Server = request.getfixturevalue("postgresql")
        given = server.url()
    schemas: list[str] = []

    def urls() -> Iterator[str]:
        while True:
            schemas.append(f'Test "{secrets.token_hex(8)}" %s %')
            yield f"{given}{'&' if '?' in given else '?'}schema={quote(schemas[-1])}"

    yield urls()
    with psycopg.connect(given, autocommit=True, options="-c lock_timeout=60s") as connection:
        for schema in schemas:  # a transaction that a test has left open keeps one from being dropped
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


@pytest.fixture
def postgresql_url(postgresql_urls: Iterator[str]) -> str:
    """The URL of a store that isn't there yet, in a schema of its own."""
    return next(postgresql_urls)


@pytest.fixture
def role(postgresql: Server) -> Iterator[str]:
    """A user of the server who may log in, and nothing else."""
    name = f"role{secrets.token_hex(4)}"
    with postgresql.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="module", params=KINDS)
def shared_session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session, on each kind of store, for all tests of a module."""
    options = {} if request.param == "lmdb" else {"store_or_url": next(request.getfixturevalue("postgresql_urls"))}
    with Session(tmp_path_factory.mktemp("shared") / "session", **options) as session:
        yield session


@pytest.fixture
def store_kind() -> str:
    """The kind of store that sessions are made on; see `pytest_generate_tests`."""
    return "lmdb"


@pytest.fixture
def store_options(store_kind: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """The options of `Session` that make a new one on the store of that kind."""
    return {} if store_kind == "lmdb" else {"store_or_url": request.getfixturevalue("postgresql_url")}


@pytest.fixture
def path(tmp_path: Path, store_options: dict[str, str]) -> Path:
    """The directory of a new session on the store of that kind; `Session(path)` opens it."""
    Session(tmp_path / "session", **store_options).close()
    return tmp_path / "session"


@pytest.fixture
def make_session(tmp_path: Path, store_options: dict[str, str]) -> Iterator[Callable[..., Session]]:
    """A function that opens a session in *tmp_path*; its directory and store are checked after the test."""
    made: list[Session] = []

    def make(name: str = "session", **options: object) -> Session:
        made.append(Session(tmp_path / name, **{**store_options, **options}))
        return made[-1]

    yield make
    for session in made:
        session.close()
    for path in {os.fspath(session.path) for session in made}:
        if os.path.exists(path):
            check(path)


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    """A new session."""
    return make_session()
