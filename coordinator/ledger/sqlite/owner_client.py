"""Sends calls to the process that owns the ledger, over one connection."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any, TypeVar

from undoubt.coordinator.errors import LedgerUnavailable, VersionHeldBack
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.ledger_call import LedgerCall
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.client import PendingCall, Replies, into
from undoubt.coordinator.wire import (
    Connection,
    HandshakeRefused,
    PeerIdentity,
    PeerRole,
    WireSettings,
    connect,
)

R = TypeVar("R")


class ConnectionGone(LedgerUnavailable):
    """The connection ended before this call was answered. The call may be repeated at the present owner."""


class OwnerConnection:
    """The client side of one connection. Made by :meth:`connect`; unusable once ``gone`` is done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._replies = Replies[PendingCall](strict=True)
        self.ledger_id = connection.peer.cluster_id
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, connected: socket.socket, *, timeout_s: float) -> OwnerConnection:
        """Complete the handshake over a connected unix socket. Raises :class:`ConnectionGone`."""
        made: list[OwnerConnection] = []

        def accept(connection: Connection) -> OwnerConnection:
            made.append(cls(connection))
            return made[0]

        me = PeerIdentity(PeerRole.CLIENT, name=f"process {os.getpid()}")
        try:
            await connect(connected, me, accept, WireSettings(), timeout_s=timeout_s)
        except (OSError, HandshakeRefused) as error:
            raise ConnectionGone(f"the ledger's owner does not answer: {error}") from error
        return made[0]

    async def close(self) -> None:
        self._connection.abort()
        await self.gone

    def received(self, payload: bytes) -> None:
        self._replies.received([envelope.decode_answer(payload)])

    def lost(self, why: str) -> None:
        self._replies.fail(lambda: ConnectionGone(f"the connection to the ledger's owner was lost: {why}"))
        if not self.gone.done():
            self.gone.set_result(None)

    async def request(self, call: LedgerCall[R]) -> Any:
        """Send ``call``; returns the owner's answer. Raises what the contract raises, and
        :class:`ConnectionGone`."""
        if self._connection.closed:
            raise ConnectionGone("the connection to the ledger's owner was lost")
        if call.since() > self._connection.version:
            raise VersionHeldBack("the process that owns the ledger runs an older version of undoubt")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        number = self._replies.add(PendingCall(calls.DECODE_REPLY[type(call)], into(future)))
        self._connection.send(envelope.encode(envelope.Request(number, call)))
        return await future
