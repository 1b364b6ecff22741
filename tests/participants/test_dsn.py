"""Connection strings: what works for psql works with both drivers, or the refusal names what does not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from psycopg.pq import PGconn

from tests.participants.support import Database, participant_at, run_on
from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import ParticipantError, ParticipantRefused
from undoubt.participants.postgres.asyncpg.dsn import connect_arguments, password_for
from undoubt.participants.postgres.dsn import read_dsn

WAYS = ("",)

ODD = 'O\'Brien "x" & ü/?#%'


def arguments(dsn: str, password: str | None = None) -> dict[str, Any]:
    return connect_arguments(read_dsn("p", dsn), password)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes ``[orders]`` into a service file, and makes libpq read it."""

    def write(*lines: str) -> None:
        (tmp_path / "services").write_text("\n".join(["# of the test", "[orders]", *lines, ""]))

    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    return write


@pytest.mark.parametrize(
    ("dsn", "hosts", "ports"),
    [
        ("postgresql://u@[2001:db8::5]:7/d", ["2001:db8::5"], [7]),
        ("postgresql://u@[2001:db8::5],[::1]:8/d", ["2001:db8::5", "::1"], [5432, 8]),
        ("host=2001:db8::5 port=7 user=u", ["2001:db8::5"], [7]),
        ("host=2001:db8::5,db port=7,8 user=u", ["2001:db8::5", "db"], [7, 8]),
        ("host=db hostaddr=2001:db8::5 user=u", ["2001:db8::5"], [5432]),
        ("postgresql://u@[fe80::1%25eth0]/d", ["fe80::1%eth0"], [5432]),
        ("postgresql://u@%2Fsome%2Ffolder:7/d", ["/some/folder"], [7]),
        ("host=db hostaddr='' user=u", ["db"], [5432]),
        ("host=db,x hostaddr=,10.0.0.1 user=u", ["db", "10.0.0.1"], [5432, 5432]),
    ],
)
def test_asyncpg_gets_the_hosts_that_libpq_would_take(dsn: str, hosts: list[str], ports: list[int]) -> None:
    """Broken if a password goes to the host ``2001``."""
    given = arguments(dsn)
    assert (given["host"], given["port"]) == (hosts, ports)
    assert "2001" not in given["dsn"]


def test_hosts_of_a_service_and_of_the_environment(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncpg would split them at the first colon itself; and several hosts mean the primary among them."""
    service("host=2001:db8::5,2001:db8::6", "port=7", "user=u", "dbname=d", "password=s")
    given = arguments("service=orders")
    assert (given["host"], given["port"]) == (["2001:db8::5", "2001:db8::6"], [7, 7])
    assert (given["user"], given["database"], given["password"]) == ("u", "d", "s")
    assert given["target_session_attrs"] == "read-write"
    assert "target_session_attrs=read-write" in read_dsn("p", "service=orders").for_libpq()
    monkeypatch.setenv("PGHOST", "2001:db8::7")
    assert arguments("user=u")["host"] == ["2001:db8::7"]


@pytest.mark.parametrize(
    "asked",
    [
        "sslcrldir=/x",
        f"scram_client_key={'A' * 43}=",
        "sslkeylogfile=/x",
        "require_auth=none",
        "channel_binding=require",
        "min_protocol_version=3.2",
        "sslsni=0",
        "gssencmode=require",
        "requirepeer=postgres",
    ],
)
@pytest.mark.parametrize("where", ["dsn", "service"])
def test_what_asyncpg_cannot_promise_is_refused_by_name(service: Any, asked: str, where: str) -> None:
    """A key that reaches the server as a setting fails there, or worse, does not: what was asked for is not
    kept, and nobody is told."""
    service("host=db", *([asked] if where == "service" else []))
    dsn = "service=orders" + (f" {asked}" if where == "dsn" else "")
    with pytest.raises(ParticipantRefused, match=rf"asks for {asked.partition('=')[0]}\b.*driver asyncpg"):
        arguments(dsn)


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_host")
@pytest.mark.parametrize(
    ("dsn", "at"),
    [
        ("postgresql://u:secret@/d?port=7", 0),
        ("dbname=d user=u password=secret port=7", 0),
        ("host=10.0.0.1, port=8,7 user=u password=secret", 1),
        ("hostaddr=2001:db8::5, port=8,7 user=u password=secret", 1),
    ],
)
def test_asyncpg_gets_the_host_that_libpq_takes_by_default(dsn: str, at: int) -> None:
    """Broken if asyncpg looks for one by itself: a stranger's socket in /tmp is then given the password."""
    refused = psycopg.pq.PGconn.connect_start(b"user=u port=7 sslmode=nonsense")
    own = refused.host.decode()
    refused.finish()
    assert own
    given = arguments(dsn)
    assert (given["host"][at], given["port"][at]) == (own, 7)
    assert all(given["host"])


@pytest.mark.usefixtures("no_host")
async def test_nobody_is_given_the_password_but_libpqs_own_socket() -> None:
    """Of either driver. The one who listens in /tmp is no server of the administrator's."""
    default = read_dsn("p", "user=u").default_host
    assert default != "/tmp", "this libpq was compiled for /tmp: then the driver would be right to ask there"  # noqa: S108
    asked = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(8))
        writer.close()

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    path = Path(f"/tmp/.s.PGSQL.{port}")  # noqa: S108 - where a stranger would
    server = await asyncio.start_unix_server(listen, path)
    try:
        participant = participant_at(f"postgresql://u:secret@/d?port={port}")
        with pytest.raises(ParticipantError, match="no connection"):
            await participant.in_doubt()
        await participant.close()
    finally:
        server.close()
        path.unlink(missing_ok=True)
    assert asked == []


@pytest.mark.usefixtures("no_host")
def test_a_host_that_nobody_can_tell_is_refused() -> None:
    read = read_dsn("p", "user=u")
    with pytest.raises(ParticipantRefused, match=r"names no host.*write host="):
        connect_arguments(dataclasses.replace(read, default_host=""), None)
    with pytest.raises(ParticipantRefused, match="abstract socket"):
        read_dsn("p", "host=@here user=u")


@pytest.mark.parametrize("dsn", ["postgresql://u@127.0.0.1:99999/d", "host=127.0.0.1 port=0 user=u dbname=d"])
async def test_a_port_that_is_none_is_a_bad_dsn(dsn: str) -> None:
    """And not an error of the socket's, or a server that may answer later."""
    participant = participant_at(dsn)
    with pytest.raises(ParticipantRefused, match=r"port (?:99999|0) is not between"):
        await participant.in_doubt()
    await participant.close()


async def test_a_database_that_is_a_connection_string_is_refused() -> None:
    """psql would follow it, libpq takes it for a name, and asyncpg would go to localhost with that name."""
    participant = participant_at("dbname=postgresql://u@127.0.0.1:7/d")
    with pytest.raises(ParticipantRefused, match="connection string itself"):
        await participant.in_doubt()
    await participant.close()
    assert read_dsn("p", "dbname='a=b'").resolved["dbname"] == "a=b"


def test_nothing_else_reaches_the_server() -> None:
    given = arguments(
        "host=db user=u application_name=x connect_timeout=3 keepalives=0 min_protocol_version=3.0"
        " max_protocol_version=3.2 load_balance_hosts=random options='-c search_path=s' krbsrvname=k"
        " sslmode=disable"
    )
    assert given["server_settings"] == {"options": "-c search_path=s"}
    assert given["krbsrvname"] == "k"
    assert given["dsn"] == "postgresql://?sslmode=disable"


@pytest.mark.parametrize(
    ("dsn", "tells"),
    [
        (
            "postgresql+asyncpg://u:s3cret@h/d",
            r"remove '\+asyncpg', and name the driver in participants\.p\.driver",
        ),
        ("postgresql+psycopg://u:s3cret@h/d", r"remove '\+psycopg'"),
        ("postgres+psycopg2://u:s3cret@h/d", r"remove '\+psycopg2'"),
        ("jdbc:postgresql://h/d?password=s3cret", "remove 'jdbc:'"),
        ("service=nowhere password=s3cret", 'definition of service "nowhere" not found'),
        ("host=a,b port=1,2,3 password=s3cret", "3 port numbers"),
        ("host=a sslmode=full password=s3cret", "invalid sslmode"),
        ("host=a target_session_attrs=prefer-standby password=s3cret", "only a primary"),
        ("host=a port=99999 password=s3cret", "port 99999 is not between 1 and 65535"),
        ("host=a,b port=5432,0 password=s3cret", "port 0 is not"),
        ("postgresql://u:s3cret@h:70000/d", "port 70000 is not"),
        ("postgresql://u:70000/s3cret@h/d", "percent-encoded"),
        ("dbname=postgresql://u:s3cret@127.0.0.1:7/d", "dbname of its dsn is a connection string itself"),
        ("dbname=postgres://u:s3cret@127.0.0.1:7/d", "is a connection string itself"),
        ("host=a dbname='host=h password=s3cret'", "is a connection string itself"),
    ],
)
def test_what_libpq_does_not_take_says_why(service: Any, dsn: str, tells: str) -> None:
    service("host=db")
    with pytest.raises(ParticipantRefused, match=tells) as raised:
        read_dsn("p", dsn)
    assert "s3cret" not in str(raised.value)


PASSFILE = r"""
# host:port:database:user:password
a:5432:*:u:of\:a
\:\:1:*:d:u:of\\six
localhost:5432:d:u:of:the socket
*:7:d:u:of seven
"""


@pytest.mark.parametrize(
    ("host", "port", "password"),
    [
        ("a", "5432", "of:a"),
        ("a", "7", "of seven"),
        ("::1", "9", r"of\six"),
        ("/run/sockets", "5432", "of:the socket"),
        ("", "5432", "of:the socket"),
        ("/run/sockets/", "5432", None),
        ("/tmp", "5432", None),  # noqa: S108 - the default of another libpq
        ("b", "5432", None),
    ],
)
def test_password_files_are_read_as_libpq_reads_them(
    tmp_path: Path, host: str, port: str, password: str | None
) -> None:
    path = tmp_path / "pgpass"
    path.write_text(PASSFILE)
    path.chmod(0o600)
    assert password_for(str(path), host, port, "d", "u", default_host="/run/sockets") == password
    path.chmod(0o644)
    assert password_for(str(path), host, port, "d", "u", default_host="/run/sockets") is None
    assert password_for(str(tmp_path / "missing"), host, port, "d", "u", default_host="/run/sockets") is None


@pytest.mark.parametrize("folder", ["/tmp", "/run/postgresql", "/var/run/postgresql"])  # noqa: S108
def test_a_folder_is_localhost_only_where_libpq_goes_by_itself(tmp_path: Path, folder: str) -> None:
    """Broken if asyncpg offers whoever listens in a folder, which in /tmp is anybody, the password that psql
    would keep for the server of this machine. libpq itself is asked beside it."""
    path = tmp_path / "pgpass"
    path.write_text("localhost:*:*:*:of this machine\n")
    path.chmod(0o600)
    dsn = f"host={folder} user=u passfile={path}"
    asked = PGconn.connect_start(f"{dsn} connect_timeout=2".encode())
    told = asked.password.decode()
    asked.finish()
    assert arguments(dsn)["password"] == told
    default = read_dsn("p", "user=u").default_host
    assert (told == "of this machine") is (folder == default)


def test_no_host_is_offered_the_password_of_another(tmp_path: Path) -> None:
    """asyncpg takes the first one that fits any host, and offers it to all of them."""
    path = tmp_path / "pgpass"
    path.write_text("a:*:*:*:of a\nb:*:*:*:of b\n10.0.0.1:*:*:*:of an address\n")
    path.chmod(0o600)
    with pytest.raises(ParticipantRefused, match="different passwords"):
        arguments(f"host=a,b user=u passfile={path}")
    assert arguments(f"host=a,a user=u passfile={path}")["password"] == "of a"
    assert arguments(f"host=a hostaddr=10.0.0.1 user=u passfile={path}")["password"] == "of a"
    assert arguments(f"host=a,b user=u passfile={path}", "of the caller")["password"] == "of the caller"


def test_a_password_file_of_the_configuration_goes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", "of the environment")
    assert not read_dsn("p", "host=a").has_password
    assert arguments("host=a")["password"] == "of the environment"
    assert read_dsn("p", "host=a password=x").has_password


@pytest.fixture(scope="module")
def odd() -> Iterator[EmbeddedServer]:
    """A server with a database and a role of odd names."""
    server = EmbeddedServer(durable=False)
    asyncio.run(server.start())
    for what in (f'create database "{ODD}"', f'create role "{ODD}" login'):
        asyncio.run(run_on(server.dsn(), what.replace(ODD, ODD.replace('"', '""'))))
    server.dsn(user=ODD)  # gives it a password
    yield server
    asyncio.run(server.close())


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://postgres@[::1]:{dead},127.0.0.1:{port}/postgres",
        "service=orders",
        "postgresql://?service=orders",
        "host=db.example.invalid hostaddr=127.0.0.1 port={port} user=postgres",
        "host={folder} port={port} user=postgres",
        "postgresql://postgres@{quoted}:{port}/postgres",
        "postgresql://postgres@127.0.0.1:{port}/?sslmode=prefer&sslnegotiation=postgres",
        "postgresql://postgres@127.0.0.1:{port}/?min_protocol_version=3.0&max_protocol_version=3.0",
        "postgresql://postgres@127.0.0.1:{port}/?ssl_min_protocol_version=TLSv1.2&krbsrvname=postgres",
        "postgresql://postgres@127.0.0.1:{port},127.0.0.1:{port}/?load_balance_hosts=random",
        "postgresql://postgres@127.0.0.1:{dead},127.0.0.1:{port}/postgres",
        "postgresql://postgres@127.0.0.1:{port}/?target_session_attrs=read-write",
        "postgresql://postgres@127.0.0.1:{port}/?options=-csearch_path%3Dpublic%20-cstatement_timeout%3D9s",
        "postgresql://postgres@127.0.0.1:{port}/?passfile=/nonexistent",
        "postgresql://postgres@127.0.0.1:{port}/?keepalives_idle=60&keepalives_interval=5&tcp_user_timeout=9000",
        "postgres://{odd}@127.0.0.1:{port}/{odd}",
    ],
)
async def test_forms_that_psql_takes(
    odd: EmbeddedServer, service: Any, monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setenv("PGPASSWORD", odd.password)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        dead = bound.getsockname()[1]
    service("host=127.0.0.1", f"port={odd.port}", "user=postgres")
    folder = str(odd.folder)
    filled = dsn.format(
        port=odd.port, dead=dead, folder=folder, quoted=quote(folder, safe=""), odd=quote(ODD, safe="")
    )
    participant = participant_at(filled)
    assert list(await participant.in_doubt()) == []
    await participant.close()


async def test_a_connection_is_kept_alive_as_libpq_does_it(database: Database) -> None:
    """Without it nobody notices that the other host is gone."""
    for more, on in (("?keepalives_idle=77", True), ("?keepalives=0", False)):
        participant = participant_at(database.dsn + more)
        async with participant.admin_pool.session() as session:
            with socket.socket(fileno=os.dup(socket_of(session))) as door:
                assert bool(door.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is on
                if on:
                    assert door.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        await participant.close()


async def test_a_network_that_delivers_nothing_is_noticed(database: Database) -> None:
    """Broken if a statement of the application waits on a dead connection until its transaction's timeout."""
    for more, timeout_ms in (("", 7_500), ("?tcp_user_timeout=9000", 9_000), ("?tcp_user_timeout=0", 0)):
        participant = participant_at(database.dsn + more, statement_timeout_s=7.5)
        async with participant.admin_pool.session() as session:
            with socket.socket(fileno=os.dup(socket_of(session))) as door:
                found = door.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert found == timeout_ms
        await participant.close()


def socket_of(session: Any) -> int:
    if hasattr(session, "pgconn"):
        return int(session.pgconn.socket)
    return int(session.connection._transport.get_extra_info("socket").fileno())


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed one and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / f"{name}.crt", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(pem))
    paths[1].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths[1].chmod(0o600)
    return paths


@contextlib.contextmanager
def tls_server(certificate: Path, key: Path) -> Iterator[int]:
    """The port of one that begins as PostgreSQL does, shows its certificate, and says no more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(20)
                client.recv(8, socket.MSG_WAITALL)
                client.sendall(b"S")
                with context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "case", ["unknown", "another name", "no file", "no such client certificate", "system"]
)
async def test_a_certificate_that_is_not_accepted_is_told_as_such(
    tmp_path: Path, case: str, kind: str
) -> None:
    """And not as a dsn that cannot be read, which it is not."""
    paths = certificate(tmp_path, "db.example")
    other, _ = certificate(tmp_path, "other")
    root = {"unknown": other, "no file": tmp_path / "missing.crt", "system": "system"}.get(case, paths[0])
    mode = "verify-full" if case in {"another name", "system"} else "verify-ca"
    with tls_server(*paths) as port:
        dsn = f"host=localhost port={port} user=u dbname=d sslmode={mode} sslrootcert={root}"
        if case == "no such client certificate":
            dsn += f" sslcert={tmp_path}/mine.crt sslkey={tmp_path}/mine.key"
        participant = participant_at(dsn, connect_timeout_s=2)
        with pytest.raises(ParticipantError) as raised:
            await participant.in_doubt()
        await participant.close()
    told = str(raised.value)
    assert "neither a URI" not in told
    if case == "no such client certificate":
        # libpq looks for it when the server asks, and this one does not.
        assert kind == "psycopg" or "mine.crt" in told
        return
    assert isinstance(raised.value, ParticipantRefused)
    assert ("missing.crt" if case == "no file" else "certificate") in told


def test_asyncpg_takes_the_roots_of_the_system() -> None:
    given = arguments("host=db user=u sslrootcert=system sslnegotiation=direct")
    assert given["ssl"].verify_mode is ssl.CERT_REQUIRED
    assert given["ssl"].check_hostname
    assert given["direct_tls"] is True
    for weaker in ("hostaddr=10.0.0.1", "sslcrl=/dev/null"):
        with pytest.raises(ParticipantRefused, match=weaker.partition("=")[0]):
            arguments(f"host=db user=u sslrootcert=system {weaker}")
