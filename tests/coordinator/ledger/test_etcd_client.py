"""The client of an etcd's JSON gateway: what an answer proves, and what waits for what. Each test's docstring
says what breaks if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.etcd_stage import place_in, store_of
from tests.etcd import EtcdCluster
from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import CONNECTIONS_MAX, EtcdClient, EtcdRefused
from undoubt.coordinator.settings import LedgerSettings

NO_ROOM = "etcdserver: mvcc: database space exceeded"


@asynccontextmanager
async def answering(status: int, body: object) -> AsyncIterator[EtcdClient]:
    """A client whose only member answers every request with that."""
    content = (body if isinstance(body, str) else json.dumps(body)).encode()

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client gave up
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
            length = f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            writer.write(f"HTTP/1.1 {status} Said\r\n{length}".encode() + content)
            await writer.drain()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = EtcdClient(LedgerSettings(url=f"etcd://127.0.0.1:{port}", request_timeout_s=0.5))
        try:
            yield client
        finally:
            await client.close()
            await asyncio.gather(*filter(None, serving))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"error": "stream terminated by RST_STREAM", "code": 13}),
        (503, {"message": "etcdserver: request timed out", "code": 14}),
        (504, {"error": "etcdserver: leader changed", "code": 8}),
        (502, {"status": 502}),
        (502, "<html>Bad Gateway</html>"),
        (200, "[]"),
        (200, {}),
        (200, {"error": {"grpc_code": 2, "message": "context canceled"}}),
    ],
)
async def test_an_answer_that_proves_nothing_is_no_answer(status: int, body: object) -> None:
    """A proxy, or a gateway that has lost its member, says that a decision was refused which was recorded."""
    async with answering(status, body) as client:
        with pytest.raises(LedgerUnavailable, match="no answer"):
            await client.transact(messages.EtcdTransaction())


async def test_a_full_etcd_is_no_proof_that_nothing_was_recorded() -> None:
    """The request before, whose answer was lost, may have found room."""
    async with answering(500, {"error": NO_ROOM, "code": 8}) as client:
        with pytest.raises(LedgerUnavailable, match="no room") as caught:
            await client.transact(messages.EtcdTransaction())
    assert "nothing" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": "etcdserver: requested lease not found", "code": 5}, EtcdRefused),
        ({"error": "etcdserver: request is too large", "code": 3}, EtcdRefused),
        ({"error": "grpc: received message larger than max (9 vs. 8)", "code": 8}, EtcdRefused),
        ({"error": "etcdserver: permission denied", "code": 7}, LedgerUnusable),
        ({"error": "unknown method", "code": 12}, LedgerUnusable),
    ],
)
async def test_what_etcd_refuses_is_told_at_once(body: object, kind: type[Exception]) -> None:
    """A request that can never be carried out is repeated until its caller gives up."""
    async with answering(400, body) as client:
        with pytest.raises(kind):
            await client.transact(messages.EtcdTransaction())


class Watch(msgspec.Struct):
    """A request whose answer does not end."""

    create_request: dict[str, str]


def _connections(port: int) -> int:
    """The connections that are open to ``port``."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_a_renewal_waits_behind_no_other_request(etcd: EtcdCluster) -> None:
    """A live process would lose its locks, and its transactions, through its own requests."""
    async with place_in(etcd) as place:
        ledger = await place.open()
        session = await ledger.open_session("test", 600)
        client = store_of(ledger).client
        watch = Watch({"key": "YQ=="})
        asking = [
            asyncio.create_task(client.attempt(client.bases[0], "watch", watch, messages.Renewed, 600))
            for _ in range(2 * CONNECTIONS_MAX)
        ]
        try:
            async with asyncio.timeout(60):
                while _connections(etcd.clients["one"]) < CONNECTIONS_MAX:
                    await asyncio.sleep(0.01)
            for _ in range(3):
                await ledger.keep_alive(session, 1)
            assert not any(task.done() for task in asking)
        finally:
            for task in asking:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*asking)
