"""Anything may arrive at a port, in either role, before and after the handshake, with TLS and without: that
connection ends with one line in the log, and nothing else is hurt.

Broken if an attacker or a broken peer could stop a node, fill its log or its memory, or disturb others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.coordinator.wire.attacks import attack, resealed
from tests.coordinator.wire.support import CLIENT, ONE, TWO, Side, dialed, ends, listening, warnings
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.cluster.messages import (
    decode_requests,
)
from undoubt.coordinator.raft import Heartbeat, RequestVote
from undoubt.coordinator.raft import decode as decode_message
from undoubt.coordinator.raft import encode as encode_message
from undoubt.coordinator.rpc.envelope import (
    Request,
    encode,
)
from undoubt.coordinator.wire import VERSIONS, Address, PeerIdentity, TlsSettings, WireSettings
from undoubt.coordinator.wire.connection import HEADER, header
from undoubt.coordinator.wire.handshake import HANDSHAKE_VERSION, hello
from undoubt.coordinator.wire.tls import tls_of
from undoubt.serve.certs import Folder

ATTACKS = 60
HELLOS = [hello(CLIENT, VERSIONS, 0), hello(TWO, VERSIONS, 1)]
REQUESTS = [
    encode([Request(1, calls.InfoCall()), Request(2, calls.OpenSessionCall("name", 10.0))]),
    encode([Request(3, calls.TransactionsCall(10, None))]),
]
MESSAGES = [encode_message(Heartbeat(1, 2, 1, 0, 0)), encode_message(RequestVote(1, 2, 1, 5, 1))]
STAGES = {"before": None, "client": CLIENT, "node": TWO}


def strict(payload: bytes) -> bytes | None:
    """As a node does: requests from clients. Everything else raises."""
    if payload == b"ping":
        return b"pong"
    decode_requests(payload)
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("fuzz"), "shop")
    made.issue({1: [], 2: []}, ["till"])
    return made


def settings(folder: Folder, stem: str) -> WireSettings:
    place: Path = folder.place
    return WireSettings(
        tls=TlsSettings(str(place / "ca.crt"), str(place / f"{stem}.crt"), str(place / f"{stem}.key"))
    )


async def attacked(where: Address, context: ssl.SSLContext | None, data: list[bytes]) -> None:
    """Send it, say no more, and see the connection end."""
    reader, writer = await asyncio.open_connection(where.host, where.port, ssl=context)
    for each in data:
        writer.write(each)
    with contextlib.suppress(OSError):  # it may have ended already
        if context is None:
            writer.write_eof()
        else:
            await writer.drain()
            writer.close()
    await ends(reader, writer)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", [1, 2])
async def test_garbage_costs_one_connection_and_one_line(
    stage: str, tls: bool, seed: int, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """And never an unhandled error: whoever reads the log sees what happened to whom."""
    random, unhandled = Random(f"{stage}{tls}{seed}"), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    me: PeerIdentity | None = STAGES[stage]
    ours = settings(folder, "node-1") if tls else WireSettings()
    stem = "node-2" if me is TWO else "client-till"
    theirs = settings(folder, stem) if tls else WireSettings()
    context = tls_of(theirs.tls).dialing if theirs.tls is not None else None
    async with listening(Side(answer=strict), ONE, ours) as (listener, where):
        good = await dialed(where, CLIENT, settings=settings(folder, "client-till") if tls else ours)
        for _ in range(ATTACKS):
            before = len(warnings(caplog))
            sealed = random.random() < 0.25
            honest = HELLOS if me is None else (REQUESTS if me is CLIENT else MESSAGES)
            version = HANDSHAKE_VERSION if me is None else VERSIONS.highest
            data = [(resealed if sealed else attack)(random, honest, version)]
            if me is not None:
                greeting = hello(me, VERSIONS, 0)
                data.insert(0, header(greeting, HANDSHAKE_VERSION) + greeting)
            await attacked(where, context, data)
            while listener.strangers or len(listener.clients) + len(listener.nodes) > 1:
                await asyncio.sleep(0.001)
            lines = len(warnings(caplog)) - before
            assert lines in ({0, 1} if sealed else {1}), (data, warnings(caplog)[before:])
            good.connection.send(b"ping")
            assert await good.got.get() == b"pong"
    assert unhandled == []
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_garbage_instead_of_tls(seed: int, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """What comes before anybody is known at all."""
    random = Random(seed)
    async with listening(Side(answer=strict), ONE, settings(folder, "node-1")) as (listener, where):
        good = await dialed(where, CLIENT, settings=settings(folder, "client-till"))
        for count in range(1, ATTACKS + 1):
            await attacked(where, None, [attack(random, HELLOS, HANDSHAKE_VERSION)])
            while listener.strangers:
                await asyncio.sleep(0.001)
            assert len(warnings(caplog)) == count, warnings(caplog)[-3:]
        good.connection.send(b"ping")
        assert await good.got.get() == b"pong"


@pytest.mark.parametrize("seed", range(5))
async def test_a_dialer_survives_what_it_reaches(seed: int) -> None:
    """A wrong address, a broken or malicious node: the dialer hears an error it knows."""
    random = Random(seed)

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(attack(random, [hello(ONE, VERSIONS, 0)], HANDSHAKE_VERSION))
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    where = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    for _ in range(30):
        with pytest.raises(ConnectionError):
            await dialed(where)
    server.close()


def test_decoders_raise_what_connections_catch() -> None:
    """Another exception than these would be taken for a bug of ours, with a traceback for each frame."""
    random = Random(7)
    for _ in range(20_000):
        payload = resealed(random, [*REQUESTS, *MESSAGES], 1)[HEADER.size :]
        for decode in (decode_requests, decode_message):
            with contextlib.suppress(ValueError, RecursionError):
                decode(payload)
