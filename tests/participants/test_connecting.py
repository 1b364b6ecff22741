"""Getting in: dsn, password, rights, and what is said when it fails."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.participants.hands import at
from tests.participants.support import new_gid, participant_at, run_on
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Evidence, Settled, Vote, XactStatus
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable

WAYS = ("",)


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedServer]:
    """A server that wants a password from user ``locked``, none from ``guest``, and does not let ``banned``
    in at all."""
    server = EmbeddedServer(
        durable=False,
        hba=["host all guest 127.0.0.1/32 trust", "host all banned 127.0.0.1/32 reject"],
    )
    asyncio.run(server.start())
    asyncio.run(_users(server))
    yield server
    asyncio.run(server.close())


async def _users(server: EmbeddedServer) -> None:
    connection = await asyncpg.connect(server.dsn())
    await connection.execute(
        "create role locked login password 's3cret/@:%'; create role banned login; create role guest login"
    )
    await connection.close()


@pytest.mark.parametrize(
    ("dsn", "error", "tells"),
    [
        ("postgresql://locked:wr0ng@127.0.0.1:{port}/postgres", ParticipantRefused, "password"),
        ("postgresql://locked@127.0.0.1:{port}/postgres", ParticipantRefused, "password"),
        ("postgresql://banned:wr0ng@127.0.0.1:{port}/postgres", ParticipantRefused, "pg_hba.conf"),
        ("postgresql://guest@127.0.0.1:{port}/nowhere", ParticipantRefused, "no such database"),
        ("postgresql://nobody:wr0ng@127.0.0.1:{port}/nowhere", ParticipantRefused, "nobody"),
        ("postgresql://postgres:wr0ng@127.0.0.1:1/postgres", ParticipantUnavailable, "no connection"),
        ("host=127.0.0.1 port=1 user=x password=wr0ng", ParticipantUnavailable, "no connection"),
        ("postgresql://postgres:a/wr0ng@127.0.0.1:{port}/postgres", ParticipantRefused, "percent-encoded"),
        ("user=postgres wr0ng", ParticipantRefused, "its dsn"),
        ("mysql://postgres:wr0ng@127.0.0.1/x", ParticipantRefused, "its dsn"),
        ("host=127.0.0.1 port={port} target_session_attrs=standby", ParticipantRefused, "primary"),
        (
            "host=127.0.0.1 port={port} user=guest require_auth=scram-sha-256",
            ParticipantRefused,
            "require_auth|requirement",
        ),
        (
            "host=127.0.0.1 port={port} user=guest channel_binding=require",
            ParticipantRefused,
            "channel.binding",
        ),
    ],
)
async def test_connecting_fails(
    guarded: EmbeddedServer, dsn: str, error: type[Exception], tells: str
) -> None:
    """The message names the participant and the way out, and never the password."""
    participant = participant_at(dsn.format(port=guarded.port), connect_timeout_s=5.0)
    with pytest.raises(error) as raised:
        await participant.in_doubt()
    seen: BaseException | None = raised.value
    assert "'p'" in str(seen)
    assert re.search(tells, str(seen))
    assert "wr0ng" not in str(seen)
    with pytest.raises(error):
        await participant.begin(new_gid(), timeout_s=5)
    await participant.close()


async def test_connecting_to_nobody(guarded: EmbeddedServer) -> None:
    """A host that takes the connection and says nothing is unavailable after connect_timeout_s."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        participant = participant_at(f"postgresql://x@127.0.0.1:{port}/x", connect_timeout_s=0.2)
        with pytest.raises(ParticipantUnavailable, match="connect_timeout_s"):
            await participant.in_doubt()
        await participant.close()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://locked:s3cret%2F%40%3A%25@127.0.0.1:{port}/postgres",
        "host=127.0.0.1 port={port} user=locked password='s3cret/@:%' dbname=postgres connect_timeout=3",
        "postgresql:///postgres?host=127.0.0.1&port={port}&user=locked&password=s3cret%2F%40%3A%25&keepalives=1",
    ],
)
async def test_ways_to_write_a_dsn(guarded: EmbeddedServer, dsn: str) -> None:
    """What psql takes, a participant takes."""
    participant = participant_at(dsn.format(port=guarded.port))
    assert list(await participant.in_doubt()) == []
    await participant.close()


async def test_password_file(guarded: EmbeddedServer, tmp_path: Path) -> None:
    """Its first line is the password; a missing file is named."""
    path = tmp_path / "password"
    dsn = f"postgresql://locked@127.0.0.1:{guarded.port}/postgres"
    missing = participant_at(dsn, password_file=str(path))
    with pytest.raises(ParticipantRefused, match="password_file"):
        await missing.in_doubt()
    await missing.close()
    path.write_text("s3cret/@:%\nsecond line\n")
    participant = participant_at(dsn, password_file=str(path))
    assert list(await participant.in_doubt()) == []
    await participant.close()


async def test_no_privilege_is_needed(guarded: EmbeddedServer) -> None:
    """An ordinary role can do everything, evidence included."""
    dsn = f"postgresql://locked:s3cret%2F%40%3A%25@127.0.0.1:{guarded.port}/postgres"
    participant = participant_at(dsn)
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute("select pg_current_xact_id()")
    evidence = (await branch.prepare()).evidence
    assert evidence is not None
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await participant.evidence(evidence) is XactStatus.COMMITTED
    assert list(await participant.waits()) == []
    await participant.close()


async def test_server_without_books(guarded: EmbeddedServer, kind: str) -> None:
    """A cloud that hides pg_control_system() gives no evidence, and all the rest works."""
    database = await guarded.create_database(f"bookless_{kind}")
    await run_on(database, "revoke execute on function pg_control_system() from public")
    dsn = f"postgresql://locked:s3cret%2F%40%3A%25@127.0.0.1:{guarded.port}/bookless_{kind}"
    participant = participant_at(dsn)
    gid = new_gid()
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute("select pg_current_xact_id()")
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    assert result.evidence is not None
    assert result.evidence == Evidence(result.evidence.xid), "the id alone"
    assert [row.gid for row in await participant.in_doubt()] == [gid]
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    await participant.close()
