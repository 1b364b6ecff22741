"""Peers for the wire's tests: real sockets on loopback, receivers that remember."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    Connection,
    HandshakeRefused,
    Listener,
    PeerIdentity,
    PeerRole,
    WireSettings,
    connect,
    serve,
)

ONE = PeerIdentity(PeerRole.NODE, "shop", 1)
TWO = PeerIdentity(PeerRole.NODE, "shop", 2)
CLIENT = PeerIdentity(PeerRole.CLIENT, name="till 7")
_dialed: list[Box] = []  # to be ended with the listener


class Box:
    """A receiver that keeps what it got. ``answer`` makes what is sent back, if anything."""

    def __init__(self, connection: Connection, answer: Callable[[bytes], bytes | None]) -> None:
        self.connection = connection
        self.got: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answer = answer

    def received(self, payload: bytes) -> None:
        self.got.put_nowait(payload)
        if (answer := self._answer(payload)) is not None:
            self.connection.send(answer)

    def lost(self, why: str) -> None:
        self.ended.set_result(why)


class Side:
    """One side's ``accept``, and what came of it. ``refusing``: the reason it refuses everybody with."""

    def __init__(
        self,
        answer: Callable[[bytes], bytes | None] = lambda _: None,
        refusing: HandshakeRefused | None = None,
    ) -> None:
        self.boxes: asyncio.Queue[Box] = asyncio.Queue()
        self._answer = answer
        self._refusing = refusing

    def __call__(self, connection: Connection) -> Box:
        if self._refusing is not None:
            raise self._refusing
        box = Box(connection, self._answer)
        self.boxes.put_nowait(box)
        return box


@contextlib.asynccontextmanager
async def listening(
    side: Side, me: PeerIdentity = ONE, settings: WireSettings | None = None, **more: Any
) -> AsyncIterator[tuple[Listener, Address]]:
    listener = await serve(Address("127.0.0.1", 0), me, side, settings or WireSettings(), **more)
    try:
        yield listener, Address("127.0.0.1", listener.port)
    finally:
        listener.close()
        while listener.strangers or listener.clients or listener.nodes:
            await asyncio.sleep(0.001)
        for box in _dialed:
            box.connection.abort()
            await box.ended
        _dialed.clear()


async def dialed(
    where: Address,
    me: PeerIdentity = CLIENT,
    side: Side | None = None,
    settings: WireSettings | None = None,
    **more: Any,
) -> Box:
    """A connection with its receiver."""
    side = side or Side()
    await connect(where, me, side, settings or WireSettings(), **({"timeout_s": 30.0} | more))
    box = side.boxes.get_nowait()
    _dialed.append(box)
    return box


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Everything a log reader is bothered with."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What comes until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        got = await reader.read(-1)
    writer.transport.abort()
    return got


__all__ = ["VERSIONS", "Box", "Side", "dialed", "ends", "listening", "warnings"]
