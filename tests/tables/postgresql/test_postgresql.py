"""What is particular to a store on PostgreSQL: its URL and secrets, its errors, and machines that share it."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

import gc3session.index.mirror
from children import in_child, run_python
from consistency import check, read_mirror
from examples import Simulation
from gc3session import (
    AccessDenied,
    Error,
    InvalidArgument,
    ReadOnlyError,
    Session,
    StoreFull,
    StoreUnreachable,
    Task,
    UnknownFormat,
    WriteError,
    check_session,
    diff,
    dump_session,
    load_dump,
    make_store,
)
from gc3session.tables.postgresql.address import address_of
from postgresql_server import Server, refuse

SECRET = "s3cret w0rd/%"
KIT = Path(__file__).parents[3] / "tools" / "crashkit"


@pytest.fixture
def guarded(postgresql: Server) -> Iterator[str]:
    """The URL of a database that asks its user, who has a password and no rights, for it."""
    user = f"guarded{secrets.token_hex(4)}"
    with postgresql.connect() as connection:
        # For the socket all are trusted, so this one is asked for over TCP/IP.
        [(port,)] = connection.execute("SELECT setting FROM pg_settings WHERE name = 'port'").fetchall()
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), sql.Literal(SECRET))
        )
    hba = postgresql.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"local all {user} scram-sha-256\n{before}")
    with postgresql.connect() as connection:
        connection.execute("SELECT pg_reload_conf()")
    yield f"postgresql://{user}@:{port}/postgres?host={quote(os.fspath(postgresql.directory), safe='')}"
    hba.write_text(before)
    with postgresql.connect() as connection:
        connection.execute("SELECT pg_reload_conf()")
        connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(user)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


def with_password(url: str, password: str) -> str:
    return url.replace("@", f":{quote(password, safe='')}@", 1)


def allow(server: Server, url: str, schema: str) -> None:
    user = url.partition("://")[2].partition("@")[0]
    with server.connect() as connection:
        connection.execute(
            sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(schema), sql.Identifier(user))
        )


# -- passwords ----------------------------------------------------------------


def test_password_in_the_url_opens_the_store_and_is_written_nowhere(
    postgresql: Server, guarded: str, tmp_path: Path
) -> None:
    schema = f"own{secrets.token_hex(4)}"
    allow(postgresql, guarded, schema)
    url = f"{guarded}&schema={schema}"
    for secret in (with_password(url, SECRET), f"{url}&password={quote(SECRET, safe='')}"):
        path = tmp_path / secrets.token_hex(4)
        script = """
            import sys
            from gc3session import Session, Task
            with Session(sys.argv[1], store_or_url=sys.argv[2]) as session:
                session.add(Task())
                print(repr(session), session.store_url, repr(session.store), session.store.tables)
            with Session(sys.argv[1], store_or_url=sys.argv[2]) as session:
                print(len(session), session.info())
        """
        written = run_python(script, path, secret)
        written += "".join(file.read_text() for file in path.iterdir())
        assert (path / "store.url").read_text().startswith(url)
        for form in (SECRET, quote(SECRET, safe=""), "s3cret"):
            assert form not in written


def test_password_is_in_no_error(postgresql: Server, guarded: str, tmp_path: Path) -> None:
    urls = {
        with_password(guarded, "wr0ng"): AccessDenied,
        with_password(guarded, "wr0ng") + "&nosuchoption=1": InvalidArgument,
        with_password(guarded, "wr0ng") + "#x": InvalidArgument,
        with_password(guarded, "wr0ng") + "&schema=": InvalidArgument,
        with_password(guarded, "wr0ng%") + "&sslmode=nosuchmode": InvalidArgument,
        with_password(guarded, "wr0ng").replace("postgresql:", "postgres:"): InvalidArgument,
        "postgresql://u:wr0ng@127.0.0.1:1/db": StoreUnreachable,
    }
    for url, kind in urls.items():
        with pytest.raises(kind) as caught:
            Session(tmp_path / "session", store_or_url=url)
        shown = "".join(traceback.format_exception(caught.value))
        assert "wr0ng" not in shown.replace(repr(url), ""), kind
        assert not (tmp_path / "session" / "store.url").exists()


@pytest.mark.parametrize("place", ["PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE"])
def test_password_is_taken_from_the_usual_places(
    postgresql: Server, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    schema = f"own{secrets.token_hex(4)}"
    allow(postgresql, guarded, schema)
    url = f"{guarded}&schema={schema}"
    if place == "PGPASSWORD":
        monkeypatch.setenv("PGPASSWORD", SECRET)
    elif place == "PGPASSFILE":
        (tmp_path / "pgpass").write_text(f"*:*:*:*:{SECRET}\n")
        (tmp_path / "pgpass").chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", os.fspath(tmp_path / "pgpass"))
    else:
        place_of = address_of(guarded).options
        (tmp_path / "services").write_text(
            f"[ours]\npassword={SECRET}\nhost={place_of['host']}\nport={place_of['port']}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", os.fspath(tmp_path / "services"))
        url = f"postgresql://{place_of['user']}@/{place_of['dbname']}?schema={schema}&service=ours"
    with Session(tmp_path / "session", store_or_url=url) as session:
        session.add(Task())
    assert "s3cret" not in (tmp_path / "session" / "store.url").read_text()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:user:s3cret@host/db",
        "postgresql://user:s3cret?more@host/db",
        "postgresql://user:s3cret/more@host/db",
        "postgresql://user:s3cret#more@host/db",
        "postgresql://user:s3cret and more@host/db",
        "postgresql://user:s3cret@more@host/db",
        "postgresql://user:s3cret@[::1/db",
        "postgresql://user:s3cret@\u2100/db",
        "postgresql://user:s3cret@host/%ff",
        "postgresql://user@host/db?PASSWORD=s3cret",
        "postgresql://user@host/db?oauth_client_secret=s3cret",
        "postgresql://user@host/db?scram_client_key=s3cret",
        "postgresql://user@host/db?sslcert=here&sslkey=/somewhere/engine.so:s3cret",
        "postgresql://user@host/db?sslkeylogfile=/somewhere/s3cret",
        "postgresql://user@host/db?hostaddr=192.0.2.1&application_name=s3cret",
        "postgresql://user@host/db?service=production&application_name=s3cret",
        "postgresql://user@/db?service=production&port=1&application_name=s3cret",
        "postgresql://user@host/db?servicefile=/somewhere/s3cret",
        "postgresql://user@host/db?passfile=/dev/null&application_name=s3cret",
    ],
)
def test_url_that_could_do_harm_or_shows_a_password_is_refused(tmp_path: Path, url: str) -> None:
    """A store.url may come from somebody else; what libpq reads in another way than we do may hold a password."""
    with pytest.raises(InvalidArgument) as caught:
        Session(tmp_path / "session", store_or_url=url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)).replace(repr(url), "")
    assert not (tmp_path / "session").exists()
    with Session(tmp_path / "other") as session:
        session.add(Task())
    (tmp_path / "other" / "store.url").write_text(f"{url}#{'0' * 32}\n")
    with pytest.raises(Error):
        Session(tmp_path / "other")


# -- what can go wrong --------------------------------------------------------


def test_each_error_has_its_class_and_names_the_remedy(postgresql: Server, guarded: str, tmp_path: Path) -> None:
    def opened(url: str) -> None:
        with Session(tmp_path / secrets.token_hex(4), store_or_url=url) as session:
            session.add(Task())

    good = postgresql.url()
    with pytest.raises(StoreUnreachable, match="host and port"):
        opened("postgresql://postgres@127.0.0.1:1/postgres")
    with pytest.raises(StoreUnreachable, match="host and port"):
        opened("postgresql://postgres@/postgres?host=/nosuchdirectory")
    with pytest.raises(AccessDenied, match="pgpass"):
        opened(good.replace("/postgres?", "/nosuchdatabase?"))
    with pytest.raises(AccessDenied, match="pgpass"):
        opened(with_password(guarded, "wrong"))
    with pytest.raises(AccessDenied, match="owner of the database"):
        opened(with_password(guarded, SECRET) + "&schema=mine")
    with pytest.raises(ReadOnlyError, match="read_only=True"):
        opened(good + "&options=-c%20default_transaction_read_only%3Don&schema=readonly")


def test_tables_of_another_version_are_refused(postgresql_url: str, tmp_path: Path) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        session.add(Task())
        statements = session.store.tables._statements  # type: ignore[attr-defined]
    with connected(postgresql_url) as connection:
        connection.execute(
            statements("layout").replace(b"SELECT version FROM", b"UPDATE") + b" SET version = 3", ()
        )
    with pytest.raises(UnknownFormat, match="version 3"):
        Session(tmp_path / "session")
    with connected(postgresql_url) as connection:
        connection.execute(
            statements("layout").replace(b"SELECT version FROM", b"UPDATE") + b" SET version = 2", ()
        )


@pytest.mark.parametrize(
    ("state", "kind", "remedy"),
    [
        ("53100", StoreFull, "make room"),
        ("57014", WriteError, "statement_timeout"),
        ("42501", AccessDenied, "owner"),
    ],
)
def test_refused_commit_keeps_the_batch(
    postgresql_url: str, tmp_path: Path, state: str, kind: type[Exception], remedy: str
) -> None:
    """The server refuses the rows of a batch, as it does where its disk is full."""
    session = Session(tmp_path / "session", store_or_url=postgresql_url)
    kept = [session.add(Task())]
    kept += [session.add(Task(), flush=False) for _ in range(600)]
    name = schema_of(postgresql_url)
    with connected(postgresql_url) as connection:
        refuse(connection, name, "records", state)
        for _ in range(2):
            with pytest.raises(kind, match=remedy):
                session.flush()
        connection.execute(sql.SQL("DROP TRIGGER refuse ON {}").format(sql.Identifier(name, "records")))
    session.flush()
    session.close()
    assert check(tmp_path / "session") == kept


def connected(url: str) -> psycopg.Connection[Any]:
    """Return a connection of the test's own to the database of a store."""
    return psycopg.connect(**address_of(url).options, autocommit=True)


def schema_of(url: str) -> str:
    return address_of(url).schema


def test_libpqs_own_options_are_passed_on(postgresql_url: str) -> None:
    url = "postgresql://me@one:1,two:2/db?sslmode=verify-full&sslrootcert=/a+b%20c&target_session_attrs=read-write"
    address = address_of(f"{url}&schema=jobs")
    assert address.options["sslmode"] == "verify-full"
    assert address.options["sslrootcert"] == "/a+b c"
    assert (address.options["host"], address.options["port"]) == ("one,two", "1,2")
    assert address.options["target_session_attrs"] == "read-write"
    assert "schema" not in address.options
    store = make_store(f"{postgresql_url}&sslmode=disable")
    assert store.url.endswith("&sslmode=disable")
    store.close()


def test_commits_wait_for_the_disk_whatever_the_site_says(postgresql_url: str) -> None:
    with make_store(f"{postgresql_url}&options=-c%20synchronous_commit%3Doff") as store:
        store.save(Task())
        tables: Any = store.tables
        settings = [tables.write(lambda writer: writer._answer(b"SHOW synchronous_commit")) for _ in range(10)]
    assert settings == [[("on",)]] * 10


# -- forks and machines -------------------------------------------------------


def test_forked_child_has_a_connection_of_its_own(postgresql_url: str, tmp_path: Path) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        session.add(Task())
        own = backend(session)
        theirs = in_child(lambda: (backend(session), session.add(Task()), backend(session)))
        assert theirs[0] == theirs[2] != own
        assert backend(session) == own, "the child has ended its parent's connection"
        assert len(session) == 2


def backend(session: Session) -> int:
    [(pid,)] = session.store.tables._ask(b"SELECT pg_backend_pid()")  # type: ignore[attr-defined]
    return int(pid)


def on_machine(host: str, path: Path, url: str, count: int) -> list[str]:
    """Add tasks as a machine of that name would: its boot is in the note of the mirror."""
    gc3session.index.mirror._boot_id = lambda: f"boot of {host}"  # type: ignore[assignment]
    with Session(path, store_or_url=url) as session:
        ids = []
        for i in range(count):
            ids.append(session.add(Simulation(jobname=f"{host}/{i}")))
            if i % 20 == 0:
                session.flush()
                assert set(ids) <= set(read_mirror(path))
        return ids


@pytest.mark.parametrize("same", [False, True])
def test_two_machines_work_on_one_store_at_once(postgresql_url: str, tmp_path: Path, same: bool) -> None:
    from children import Child

    paths = [tmp_path / "one", tmp_path / "two"]
    Session(paths[0], store_or_url=postgresql_url).close()
    if same:
        shutil.copytree(paths[0], paths[1])
    children = [Child(on_machine, f"host{i}", path, postgresql_url, 60) for i, path in enumerate(paths)]
    ids = [child.result() for child in children]
    assert len({*ids[0], *ids[1]}) == 120
    for mine, path in zip(ids, paths, strict=True):
        with Session(path) as session:
            order = list(session.tasks)
            assert set(order) == ({*ids[0], *ids[1]} if same else set(mine))
            assert [id_ for id_ in order if id_ in set(mine)] == mine
            session.flush()
        assert check(path) == order


def test_a_writer_does_not_wait_for_that_of_another_session(postgresql_url: str, tmp_path: Path) -> None:
    with (
        Session(tmp_path / "a", store_or_url=postgresql_url) as one,
        Session(tmp_path / "b", store_or_url=postgresql_url) as two,
    ):
        one.add(Task())
        two.add(Task())

        def unit(writer: object) -> None:
            one_unit(writer)
            for _ in range(40):  # it needs numbers, too
                two.add(Task())
            assert len(two) == 41

        def one_unit(writer: object) -> None:
            writer.lock("sessions", [one._index.identity])  # type: ignore[attr-defined]
            writer.put("records", [(b"\xff" * 8, b"x")])  # type: ignore[attr-defined]
            assert writer.scan("records", b"\xff")  # type: ignore[attr-defined]
            writer.delete("records", [b"\xff" * 8])  # type: ignore[attr-defined]

        one.store.tables.write(unit)


# -- between stores -----------------------------------------------------------


def test_dump_and_load_move_a_session_either_way_with_the_same_bytes(postgresql_url: str, tmp_path: Path) -> None:
    with Session(tmp_path / "local") as session:
        ids = session.add_many(Simulation(jobname=f"n{i}", state="NEW" if i % 3 else "DONE") for i in range(700))
        session.remove(ids[5])
        session.forget(ids[7])
        session.load(ids[7], add=True)
    dumps = [tmp_path / name for name in ("1", "2", "3")]
    with (
        Session(tmp_path / "local") as local,
        Session(tmp_path / "remote", store_or_url=postgresql_url) as remote,
        Session(tmp_path / "back") as back,
    ):
        dump_session(local, dumps[0])
        load_dump(remote, dumps[0])
        dump_session(remote, dumps[1])
        load_dump(back, dumps[1])
        dump_session(back, dumps[2])
        assert list(diff(local, remote)) == list(diff(remote, back)) == []
    # The first line says when each session was made, and by which command.
    first, second, third = (dump.read_bytes().partition(b"\n")[2] for dump in dumps)
    assert first == second == third
    for name in ("remote", "back"):
        assert list(check_session(tmp_path / name)) == []
        check(tmp_path / name)


def test_any_walk_over_sessions_on_postgresql_agrees_with_the_model(
    postgresql_urls: Iterator[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_form: bool
) -> None:
    monkeypatch.syspath_prepend(os.fspath(KIT))
    walk = __import__("walk")

    class OnPostgresql(walk.Walk):  # type: ignore[misc,name-defined]
        def new_url(self) -> str:
            return next(postgresql_urls)

        def _mirror_agrees(self, directory: str, ids: set[str]) -> None:
            pass  # it follows at the end, when it is checked

    for number in range(1000 if long_form else 3):
        seed = random.randrange(1 << 32)
        walked = OnPostgresql(tmp_path / f"{number}", f"{seed}")
        try:
            walked.run()
        except BaseException:
            print(f"the walk of the seed {seed}:", *walked.log, sep="\n")
            raise
    assert "psycopg" in sys.modules
    assert psycopg


# -- what the store tells, and what it leaves -----------------------------------


def test_figures_are_those_of_the_server(postgresql_url: str, tmp_path: Path) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session:
        assert session.info().figures == [], "there is nothing yet"
        session.add_many([Simulation() for _ in range(2000)])
        figures = {figure.name: figure for figure in session.info().figures}
        with connected(postgresql_url) as connection:
            assert str(connection.info.server_version // 10000) in figures["server"].text
            [(size,)] = connection.execute(
                "SELECT pg_total_relation_size(%s)",
                (sql.Identifier(schema_of(postgresql_url), "records").as_string(),),
            ).fetchall()
    [records] = [table for table in figures["tables"].values["tables"] if table["table"] == "records"]
    assert records["bytes"] == size > 100_000
    assert figures["tables"].values["bytes"] > size
    assert figures["database"].values["schema"] == schema_of(postgresql_url)
    assert figures["connections"].values["connections"] >= 1
    assert figures["durability"].values["synchronous_commit"] == "on"


def test_closing_deletes_the_tokens_of_its_commits_and_those_that_are_old(
    postgresql_url: str, tmp_path: Path
) -> None:
    commits = sql.Identifier(schema_of(postgresql_url), "commits")
    with connected(postgresql_url) as connection, Session(tmp_path / "s", store_or_url=postgresql_url) as session:
        session.add(Task())
        connection.execute(
            sql.SQL(
                "INSERT INTO {} (token, through, at) VALUES ('old', true, now() - interval '31 days'),"
                " ('of another', true, now() - interval '29 days')"
            ).format(commits)
        )
        assert len(connection.execute(sql.SQL("SELECT token FROM {}").format(commits)).fetchall()) > 2
        session.close()
        left = connection.execute(sql.SQL("SELECT token FROM {}").format(commits), binary=True).fetchall()
    assert left == [(b"of another",)]


def test_read_whose_connection_was_lost_before_it_read_anything_is_made_again(
    postgresql_url: str, tmp_path: Path
) -> None:
    with Session(tmp_path / "session", store_or_url=postgresql_url) as session, connected(postgresql_url) as other:
        id_ = session.add(Task())
        for read in (lambda reader: reader.serial, lambda reader: len(reader.scan("counts", b""))):
            with session.store.reading() as reader:
                other.execute("SELECT pg_terminate_backend(%s, 10000)", (reader.connection.info.backend_pid,))
                assert read(reader)
        with pytest.raises(StoreUnreachable), session.store.reading() as reader:
            assert reader.get("states", b"") is None
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (reader.connection.info.backend_pid,))
            reader.get("states", b"")  # of another state of the store
        assert session.list_ids() == {id_}


def test_removing_many_takes_few_round_trips(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[object] = []
    execute = psycopg.Connection.execute

    def counted(self: psycopg.Connection[Any], query: Any, *args: Any, **options: Any) -> Any:
        statements.append(query)
        return execute(self, query, *args, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", counted)
    session = Session(tmp_path / "session", store_or_url=postgresql_url)
    ids = list(session.add_many([Simulation() for _ in range(1200)]))
    statements.clear()
    session.remove_many(ids[:600])
    assert len(statements) < 60
    session.flush()
    assert check(tmp_path / "session") == ids[600:]
    statements.clear()
    session.destroy()
    assert len(statements) < 60
    with make_store(postgresql_url) as store:
        assert list(store.list()) == []
