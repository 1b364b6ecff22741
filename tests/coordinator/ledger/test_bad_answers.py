"""Answers that cannot be read, to everybody who asks a ledger: a second process, a client of a cluster, an
operator, a leader of Paxos Commit.

Broken if one bad answer leaves its caller waiting for ever, or takes the connection from the callers beside
it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from tests.prove.poison.frames import poisoned
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.cluster.acceptor_client import AcceptorClient
from undoubt.coordinator.ledger.cluster.ledger import LeaderClient
from undoubt.coordinator.ledger.cluster.messages import (
    SnapshotCall,
    decode_requests,
)
from undoubt.coordinator.ledger.cluster.status import ask
from undoubt.coordinator.ledger.contract import LedgerInfo
from undoubt.coordinator.ledger.sqlite import unix_socket
from undoubt.coordinator.ledger.sqlite.owner_client import OwnerConnection
from undoubt.coordinator.paxos import Accepted, Ask, Ballot, BranchInstance, Known, Phase2b, Value
from undoubt.coordinator.quorum import Joint
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.envelope import (
    LeaderHint,
)
from undoubt.coordinator.rpc.envelope import (
    encode as encode_list,
)
from undoubt.coordinator.wire import (
    Address,
    Connection,
    Listener,
    PeerIdentity,
    PeerRole,
    WireSettings,
    serve,
)
from undoubt.participants.ids import TxId

ME = PeerIdentity(PeerRole.NODE, "f" * 16, 1)
CLIENT = PeerIdentity(PeerRole.CLIENT, name="test")
TXID = TxId(1, "a" * 16, 1)
TIMEOUT_S = 10.0
_raw = msgspec.msgpack.Encoder().encode
ODD = [msgspec.Raw(raw) for raw in (b"\xa2\xff\xfe", b"\xd6\xff\x00\x00\x00\x00", _raw([1]), _raw("no"))]


class Answering:
    """Answers requests in turn with what it is given, ``framed`` as its callers expect."""

    def __init__(self, framed: bool) -> None:
        self.results: list[msgspec.Raw] = []
        self.framed = framed
        self.accepted = 0

    def accept(self, connection: Connection) -> Side:
        self.accepted += 1
        if self.framed:
            connection.send(encode_list([LeaderHint("f" * 16, True, "")]))
        return Side(self, connection)


class Side:
    """A Receiver."""

    def __init__(self, answering: Answering, connection: Connection) -> None:
        self._answering = answering
        self._connection = connection

    def received(self, payload: bytes) -> None:
        framed = self._answering.framed
        for request in decode_requests(payload) if framed else [calls.decode_request(payload)]:
            answer = envelope.Reply(request.number, self._answering.results.pop(0))
            self._connection.send(encode_list([answer]) if framed else envelope.encode(answer))

    def lost(self, why: str) -> None:
        pass


Asking = Callable[[], Awaitable[Any]]


async def served(stack: AsyncExitStack, where: Address | socket.socket, answering: Answering) -> Listener:
    listener = await serve(where, ME, answering.accept, WireSettings())
    stack.callback(listener.close)
    return listener


async def second_process(stack: AsyncExitStack, folder: Path, answering: Answering) -> Asking:
    listening = unix_socket.listen(folder / "ledger.db")
    await served(stack, listening, answering)
    connected = unix_socket.connect(folder / "ledger.db")
    assert isinstance(connected, socket.socket)
    connection = await OwnerConnection.connect(connected, timeout_s=TIMEOUT_S)
    stack.push_async_callback(connection.close)
    return lambda: connection.request(calls.InfoCall())


async def client(stack: AsyncExitStack, folder: Path, answering: Answering) -> Asking:
    listener = await served(stack, Address("127.0.0.1", 0), answering)
    route = LeaderClient([Address("127.0.0.1", listener.port)], CLIENT, WireSettings(), Random(1))
    stack.push_async_callback(route.close)
    return lambda: route.ask(calls.InfoCall(), TIMEOUT_S)


async def operator(stack: AsyncExitStack, folder: Path, answering: Answering) -> Asking:
    listener = await served(stack, Address("127.0.0.1", 0), answering)
    return lambda: ask(f"127.0.0.1:{listener.port}", SnapshotCall(), TIMEOUT_S, WireSettings())


async def leader(stack: AsyncExitStack, folder: Path, answering: Answering) -> Asking:
    listener = await served(stack, Address("127.0.0.1", 0), answering)

    async def address_of(node: int) -> str:
        return f"127.0.0.1:{listener.port}"

    links = AcceptorClient(CLIENT, WireSettings(), address_of)
    stack.push_async_callback(links.close)

    async def ask() -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        links.ask(1, Ask(TXID, Joint(frozenset({1, 2, 3}))), answered.set_result)
        result = await answered
        if isinstance(result, Exception):
            raise result
        return result

    return ask


VOTED = Known((BranchInstance(1, "orders"),), (Accepted(Ballot(0, 0), Value(True, b"")),))
INFO = LedgerInfo("f" * 16, 1, "raft://", "raft", "1", 0.0, 1, 1, 0, 0, 0)
DOORS: list[tuple[Any, bool, object, bool]] = [
    (second_process, False, INFO, True),
    (client, True, INFO, True),
    (leader, True, Phase2b(TXID, 1, VOTED), True),
    (operator, True, 7, False),
]


def odd_for(sound: object) -> Iterator[msgspec.Raw]:
    yield from ODD
    if isinstance(sound, msgspec.Struct):
        yield from map(msgspec.Raw, poisoned(sound, long=1_001))


@pytest.mark.parametrize(("asking", "framed", "sound", "kept"), DOORS)
async def test_a_bad_answer_is_one_callers_trouble(
    asking: Any, framed: bool, sound: object, kept: bool, tmp_path: Path
) -> None:
    """``kept``: all callers of the process share one connection, which goes on."""
    answering, refused = Answering(framed), 0
    first: object
    second: object
    async with AsyncExitStack() as stack:
        ask = await asking(stack, tmp_path, answering)
        for odd in odd_for(sound):
            answering.results = [odd, msgspec.Raw(_raw(sound))]
            async with asyncio.timeout(TIMEOUT_S):
                first, second = await asyncio.gather(ask(), _after(ask), return_exceptions=True)
            if isinstance(first, BaseException):
                assert isinstance(first, LedgerUnavailable), first
                refused += 1
            assert second == sound, odd
    assert refused >= len(ODD)
    assert answering.accepted == 1 or not kept


async def _after(ask: Asking) -> Any:
    await asyncio.sleep(0)
    return await ask()
