"""TLS: the certificates of both sides, and the options for them, which `store.url` keeps without passwords."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from children import in_child
from consistency import check
from gc3session import AccessDenied, Session, Task
from postgresql_server import Server, server_user
from test_cli import one_error, run

PASSPHRASE = "s3cret"


class Certificates:
    """Keys and certificates in a directory: NAME.key and NAME.crt."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()

    def path(self, name: str) -> str:
        return os.fspath(self.place / name)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.place)

    def authority(self, name: str) -> None:
        self._openssl(
            *f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
            f" -keyout {name}.key -out {name}.crt".split()
        )

    def signed(self, name: str, by: str, extension: str = "basicConstraints=CA:FALSE") -> None:
        self._openssl(
            *f"req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name}"
            f" -keyout {name}.key -out {name}.csr".split()
        )
        (self.place / "extension").write_text(extension)
        self._openssl(
            *f"x509 -req -in {name}.csr -CA {by}.crt -CAkey {by}.key -set_serial {secrets.randbits(60)} -days 2"
            f" -extfile extension -out {name}.crt".split()
        )
        (self.place / f"{name}.key").chmod(0o600)

    def encrypted(self, name: str, key: str) -> None:
        """Make a key that needs PASSPHRASE of another one."""
        self._openssl(
            "ec", "-aes256", "-in", f"{key}.key", "-out", f"{name}.key", "-passout", f"pass:{PASSPHRASE}"
        )
        (self.place / f"{name}.key").chmod(0o600)


def start(server: Server, made: Certificates) -> None:
    server.start(
        listen_addresses="127.0.0.1",
        ssl="on",
        ssl_cert_file=made.path("server.crt"),
        ssl_key_file=made.path("server.key"),
        ssl_ca_file=made.path("right.crt"),
    )


@pytest.fixture(scope="module")
def secure(servers: Path, postgresql: Server) -> Iterator[tuple[Server, Certificates]]:
    """A server for TLS alone, and the certificates; the user `certified` logs in with one."""
    if shutil.which("openssl") is None:
        pytest.skip("NOT RUN: the command openssl, which makes the certificates, is missing")
    with postgresql.connect() as connection:
        if connection.execute("SHOW ssl_library").fetchall() == [("",)]:  # as in the wheel
            pytest.skip("NOT RUN: the PostgreSQL server was built without TLS")
    server = Server.made(servers / secrets.token_hex(4))
    made = Certificates(server.directory / "certificates")
    for authority in ("right", "wrong"):
        made.authority(authority)
    made.signed("server", "right", "subjectAltName=IP:127.0.0.1")
    made.signed("certified", "right")
    made.encrypted("encrypted", "certified")
    user = server_user()
    if user is not None:
        for name in ("server.key", "server.crt", "right.crt"):
            os.chown(made.place / name, user.pw_uid, user.pw_gid)
    (server.data / "pg_hba.conf").write_text(
        "local all all trust\n"
        "hostssl all certified 127.0.0.1/32 cert\n"
        "hostssl all all 127.0.0.1/32 trust\n"
        "host all all 127.0.0.1/32 reject\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.port = free.getsockname()[1]
    start(server, made)
    with server.connect() as connection:
        connection.execute("CREATE ROLE certified LOGIN")
        connection.execute("CREATE SCHEMA certified AUTHORIZATION certified")
    yield server, made
    server.delete()


def url_of(server: Server, options: str, user: str = "postgres", host: str = "127.0.0.1") -> str:
    return f"postgresql://{user}@{host}:{server.port}/postgres?{options}"


def uses_tls(session: Session) -> bool:
    statement = b"SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    [(ssl,)] = session.store.tables._ask(statement)  # type: ignore[attr-defined]
    return bool(ssl)


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require"])
def test_server_with_the_right_certificate_is_used(
    secure: tuple[Server, Certificates], tmp_path: Path, mode: str
) -> None:
    server, made = secure
    options = f"sslmode={mode}&sslrootcert={made.path('right.crt')}&schema=s{secrets.token_hex(4)}"
    with Session(tmp_path / "session", store_or_url=url_of(server, options)) as session:
        ids = [session.add(Task())]
        assert uses_tls(session)
    with Session(tmp_path / "session") as session:  # by its store.url
        assert uses_tls(session)
        theirs = in_child(lambda: (session.add(Task()), uses_tls(session)))
        assert theirs[1]
        assert uses_tls(session), "the child has ended its parent's connection"
        ids.append(theirs[0])
    assert check(tmp_path / "session") == ids


def test_server_that_can_not_be_trusted_or_does_not_trust_is_told_with_the_remedy(
    secure: tuple[Server, Certificates], tmp_path: Path
) -> None:
    server, made = secure
    right = f"sslrootcert={made.path('right.crt')}"
    tls, login = "sslrootcert, sslcert and sslkey", "the certificate"
    wrong = {
        url_of(server, f"sslmode=verify-full&sslrootcert={made.path('wrong.crt')}"): tls,
        url_of(server, f"sslmode=verify-full&sslrootcert={made.path('nosuch.crt')}"): tls,
        url_of(server, f"sslmode=verify-full&{right}", host="localhost"): "the name of the host",
        url_of(server, "sslmode=disable"): login,
        url_of(server, f"sslmode=require&{right}", user="certified"): login,
        url_of(server, f"{right}&sslmode=require&sslcert={made.path('nosuch')}", user="certified"): login,
        url_of(
            server,
            f"sslmode=verify-full&{right}&sslcert={made.path('certified.crt')}&sslkey={made.path('server.key')}",
            user="certified",
        ): tls,
    }
    for url, remedy in wrong.items():
        secret = url.replace("@", ":s3cret@")
        with pytest.raises(AccessDenied, match=f"the server is up, but.* {remedy}") as caught:
            Session(tmp_path / "session", store_or_url=secret)
        assert "s3cret" not in str(caught.value)
        assert not (tmp_path / "session" / "store.url").exists()
    Session(tmp_path / "session", store_or_url=url_of(server, right)).close()
    line = (tmp_path / "session" / "store.url").read_text()
    (tmp_path / "session" / "store.url").write_text(
        line.replace("sslrootcert", "sslmode=verify-full&sslrootcert").replace("right.crt", "wrong.crt")
    )
    assert "sslrootcert" in one_error(run("info", tmp_path / "session"), 2)


def test_user_with_a_certificate_logs_in_and_the_keys_password_is_not_written(
    secure: tuple[Server, Certificates], tmp_path: Path
) -> None:
    server, made = secure
    options = f"sslmode=verify-full&sslrootcert={made.path('right.crt')}&sslcert={made.path('certified.crt')}&schema=certified"
    plain = url_of(server, f"{options}&sslkey={made.path('certified.key')}", user="certified")
    with Session(tmp_path / "plain", store_or_url=plain) as session:
        session.add(Task())
        assert uses_tls(session)
    assert (tmp_path / "plain" / "store.url").read_text().startswith(f"{plain}#")
    check(tmp_path / "plain")
    encrypted = url_of(server, f"{options}&sslkey={made.path('encrypted.key')}", user="certified")
    given = f"{encrypted}&sslpassword={PASSPHRASE}"
    with Session(tmp_path / "encrypted", store_or_url=given) as session:
        id_ = session.add(Task())
        assert PASSPHRASE not in repr(session.info()) + session.store_url
    with Session(tmp_path / "encrypted", store_or_url=given) as session:
        assert list(session.tasks) == [id_]
    for file in (tmp_path / "encrypted").iterdir():
        assert PASSPHRASE not in file.read_text()
    with pytest.raises(AccessDenied, match="sslkey"):
        Session(tmp_path / "encrypted", store_or_url=f"{encrypted}&sslpassword=wrong")


def test_server_without_tls_is_not_used_where_it_is_asked_for(
    secure: tuple[Server, Certificates], tmp_path: Path
) -> None:
    server, made = secure
    server.stop()
    try:
        server.start(listen_addresses="127.0.0.1")
        with pytest.raises(AccessDenied, match=r"does not support SSL.*sslmode"):
            Session(tmp_path / "session", store_or_url=url_of(server, "sslmode=require"))
        server.stop()
    finally:
        start(server, made)
