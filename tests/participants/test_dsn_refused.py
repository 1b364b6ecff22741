"""Connection strings that cannot be used: the refusal names the key and the reason, and shows no secret.

No server is needed: the dsn is judged before a driver gets it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.participants.support import participant_at
from undoubt.participants.errors import (
    ParticipantError,
    ParticipantMisconfigured,
    ParticipantRefused,
    ParticipantUnavailable,
)
from undoubt.participants.postgres.asyncpg.dsn import connect_arguments, set_keepalive
from undoubt.participants.postgres.dsn import read_dsn
from undoubt.participants.postgres.dsn_form import UNREADABLE, why_unreadable
from undoubt.participants.postgres.dsn_values import driver_refusal
from undoubt.participants.postgres.session import ServerError
from undoubt.participants.postgres.sqlstate import startup_error

WAYS = ("",)

BASE = "postgresql://u:s3cret@127.0.0.1:1/d"


def refusal(dsn: str) -> str:
    with pytest.raises(ParticipantMisconfigured) as raised:
        read_dsn("p", dsn)
    assert "s3cret" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "asked",
    [
        "keepalives_idle=abc",
        "keepalives_idle=99999999999",
        "keepalives_count=",
        "keepalives_interval=1_0",
        "keepalives=x",
        "tcp_user_timeout=abc",
        "tcp_user_timeout=99999999999",
        "connect_timeout=2s",
        "connect_timeout=1.5",
        "load_balance_hosts=abc",
        "target_session_attrs=x",
        "max_protocol_version=9",
        "sslmode=x",
        "gssencmode=x",
        "channel_binding=x",
        "sslsni=x",
        "gssdelegation=yes",
        "replication=database",
        "hostaddr=abc",
        "host=./x",
        "host=a..b",
        "host=" + "x" * 70,
        "host=/" + "x" * 100,
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(asked: str) -> None:
    """Broken if a driver gets it: it raises whatever it likes then, or connects without it."""
    key, _, value = asked.partition("=")
    told = refusal(f"{BASE}?{asked}")
    assert key in told
    assert value.partition(".")[0] in told
    assert key in refusal(f"host=b password=s3cret {key}='{value}'")


def test_a_value_of_the_environment_is_refused_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2s")
    assert "connect_timeout='2s' (of PGCONNECT_TIMEOUT)" in refusal("host=a")
    monkeypatch.delenv("PGCONNECT_TIMEOUT")
    monkeypatch.setenv("PGUSER", "\udcff")
    assert "PGUSER" in refusal("host=a")


@pytest.mark.parametrize("value", ["5", " 5", "-5", "+5"])
def test_integers_are_taken_as_libpq_takes_them(value: str) -> None:
    given = read_dsn("p", f"host=a keepalives='{value}' keepalives_idle='{value}' connect_timeout='{value}'")
    with socket.socket() as sock:
        set_keepalive(sock, given)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_value_that_the_system_does_not_accept_is_told_by_its_key() -> None:
    """Broken if it is an OSError, which reads as a lost connection, or as a bug."""
    with socket.socket() as sock, pytest.raises(ParticipantMisconfigured, match="keepalives_idle='99999'"):
        set_keepalive(sock, read_dsn("p", "host=a keepalives_idle=99999"))


@pytest.mark.parametrize(
    ("dsn", "tells"),
    [
        (f"{BASE}?pool_size=5", "the key 'pool_size', which is not a key of PostgreSQL but of SQLAlchemy"),
        (f"{BASE}?conn_max_age=5", "Django"),
        (f"{BASE}?search_path=x", "options=-csearch_path%3D"),
        (f"{BASE}?nosuch=x", "the key 'nosuch'"),
        (f"{BASE}?HOST=x", "write 'host'"),
        (
            "host=a user=b pasword=s3cret",
            "'pasword', which is not a key of PostgreSQL: did you mean 'password'",
        ),
        ("host=a password=s3cret pool_size=5", "'pool_size'"),
        ("host=a password='s3cret' nosuch=5", "'nosuch'"),
        ("host=a password=s3cret user=b nosuch=5", "'nosuch'"),
        ("host=a username=b", "write 'user'"),
        ("service=a servicefile=/b", "PGSERVICEFILE"),
        ("host=a port=abc", "port abc is not"),
        ("postgresql://u@h:abc/d", "port abc is not"),
        ("postgresql://u@::1:5/d", "in brackets"),
        ("postgresql://u@[::1/d", "in brackets"),
        ("postgresql://u:s3cret%ss@h/d", "the password of its dsn has a '%'.*%25"),
        ("postgresql://s3cret%ss:p@h/d", "the user of its dsn has a '%'"),
        (f"{BASE}?application_name=%ss", "the application_name of its dsn has a '%'"),
        ("postgresql://u:s3cret%00@h/d", "the password of its dsn has a %00"),
        ("postgresql://u:s3cret%ff@h/d", "the password of its dsn .* UTF-8"),
        ("host=a \udcff", "UTF-8"),
        (f"{BASE}?nosuch", "'nosuch', which has no '='"),
        (f"{BASE}?host=a=b", "'host', which has a second '='"),
        (f" {BASE}", "begins with white space"),
        ("host=a password='s3cret", "closing quote"),
        ("host=a two words", "a value with a space in it has to be quoted"),
        ("host=a port= password=s3cret", "no value for port"),
    ],
)
def test_what_libpq_cannot_read_is_named(dsn: str, tells: str) -> None:
    """Broken if a dsn that is a URI, or a list of keywords, is said to be neither."""
    with pytest.raises(ParticipantMisconfigured, match=tells) as raised:
        read_dsn("p", dsn)
    assert "s3cret" not in str(raised.value)
    assert "neither a URI" not in str(raised.value)


@pytest.mark.parametrize(
    ("dsn", "tells"),
    [
        ("postgresql://u:p@s3cret@h/d", "%40"),
        ("postgresql://u:p@s3cret/x@h/d", "%40"),
        ("postgresql://u:p/s3cret@h/d", "%40"),
        ("postgresql://u:p@s3cret:7@h/d", "%40"),
        ("host=p@s3cret", "%40"),
        ("postgresql://u:p/q?s3cret=s@h/d", "it is not shown"),
        ("postgresql://u@h/d?password=p&s3cret=b", "it is not shown"),
        ("postgresql://u@h/d?passwor%64=p&s3cret=b", "it is not shown"),
        ("host=a password=two s3cret=1", "it is not shown"),
        ("host=a password=two s3cret", "has to be quoted"),
        ("postgresql://u@h/d?password=p&s3cret", "neither a URI"),
        ("postgresql://u:s3cret/d", "the port is not"),
        ("http://u:s3cret@h/d?a=b", "neither a URI"),
        ("hello s3cret", "neither a URI"),
    ],
)
def test_what_may_be_a_part_of_a_password_is_not_shown(dsn: str, tells: str) -> None:
    """Broken if libpq's words, which quote what was not understood, or a host that is the rest of a password,
    get into a message."""
    assert tells in refusal(dsn)


def test_a_message_of_libpq_in_another_language_is_not_passed_on() -> None:
    assert why_unreadable(f"{BASE}?x=s3cret", 'ungültiger Parameter: "s3cret"') == UNREADABLE


@pytest.mark.parametrize(
    "dsn", ["postgresql://u%40b:p%40@h/d%40b", "postgresql:///d?user=u@b&host=h", "host=a."]
)
def test_an_at_that_libpq_understands_is_taken(dsn: str) -> None:
    assert read_dsn("p", dsn).resolved["host"] in {"h", "a."}


@pytest.mark.parametrize(
    ("host", "named"),
    [("nowhere.invalid", "nowhere.invalid"), ("/nonexistent", "/nonexistent/.s.PGSQL.7")],
)
async def test_a_server_that_is_not_reached_is_named(host: str, named: str) -> None:
    """The operating system's own words name neither the host nor the socket."""
    participant = participant_at(f"host={host} port=7 user=u password=s3cret")
    with pytest.raises(ParticipantUnavailable) as raised:
        await participant.in_doubt()
    await participant.close()
    assert named in str(raised.value)


async def test_whatever_a_driver_raises_for_a_value_is_a_bad_dsn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if an exception of a driver reaches the application raw, or with the password."""

    async def connect(*_: Any, **__: Any) -> Any:
        raise OverflowError("s3cret is too large")

    monkeypatch.setattr("asyncpg.connect", connect)
    monkeypatch.setattr("undoubt.participants.postgres.psycopg.connector._Opener.connect", connect)
    participant = participant_at(BASE)
    with pytest.raises(ParticipantMisconfigured, match="OverflowError") as raised:
        await participant.in_doubt()
    await participant.close()
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_the_text_of_a_driver_is_told_if_it_has_no_secret() -> None:
    told = driver_refusal("p", TypeError("an int is required"), {"sslpassword": "s3cret"}, None)
    assert "TypeError an int is required" in str(told)
    for resolved, password in (({"sslpassword": "s3cret"}, None), ({}, "s3cret")):
        assert "s3cret" not in str(driver_refusal("p", ValueError("s3cret"), resolved, password))


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("42704", ParticipantRefused),
        ("22023", ParticipantRefused),
        ("55P02", ParticipantRefused),
        ("0A000", ParticipantRefused),
        ("57P03", ParticipantUnavailable),
        ("53300", ParticipantUnavailable),
        ("XX000", ParticipantUnavailable),
    ],
)
def test_the_code_tells_whether_a_session_is_refused_for_good(
    sqlstate: str, kind: type[ParticipantError]
) -> None:
    error = startup_error("p", ServerError(sqlstate, "no", fatal=True))
    assert type(error) is kind
    assert error.sqlstate == sqlstate


def test_asyncpg_gets_what_libpq_sends_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """These variables are no parameters of a dsn: libpq sends them as settings."""
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv("PGGEQO", "Default")
    monkeypatch.setenv("PGOPTIONS", "-c search_path=s")
    sent = connect_arguments(read_dsn("p", "host=a user=u"), None)["server_settings"]
    assert sent == {"timezone": "Asia/Tokyo", "datestyle": "German", "options": "-c search_path=s"}


def test_asyncpg_takes_tls_versions_in_any_case() -> None:
    read = read_dsn("p", "host=a user=u ssl_min_protocol_version=tlsv1.3 sslrootcert=system")
    assert connect_arguments(read, None)["ssl"].minimum_version.name == "TLSv1_3"
    read = read_dsn("p", "host=a user=u ssl_min_protocol_version=tlsv1.3")
    assert "TLSv1.3" in connect_arguments(read, None)["dsn"]
