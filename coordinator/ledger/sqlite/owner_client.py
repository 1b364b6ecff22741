"""One connection to the process that owns the ledger."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from undoubt.coordinator.errors import LedgerUnavailable, VersionHeldBack
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.wire import (
    Connection,
    HandshakeRefused,
    PeerIdentity,
    PeerRole,
    RemoteProtocolError,
    WireSettings,
    connect,
)


class ConnectionGone(LedgerUnavailable):
    """The connection ended with this call unanswered. Asking whoever owns the ledger now is safe."""


class LedgerConnection:
    """See the module. Made by :meth:`connect`; of no more use once ``gone`` is done."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: dict[int, tuple[calls.Call, asyncio.Future[Any]]] = {}
        self._number = 0
        self.ledger_id = connection.peer.cluster_id
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, connected: socket.socket, *, timeout_s: float) -> LedgerConnection:
        """Speak over a connected unix socket. Raises :class:`ConnectionGone`."""
        made: list[LedgerConnection] = []

        def accept(connection: Connection) -> LedgerConnection:
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
        answer: calls.Answer = calls.decode_answer(payload)
        match answer:
            case calls.Reply(number=number, result=result):
                call, future = self._take(number)
                if not future.done():
                    try:
                        future.set_result(calls.decode_result(call, result))
                    except (ValueError, RecursionError) as error:
                        future.set_exception(calls.illegible(error))
            case calls.Failed():
                _, future = self._take(answer.number)
                if not future.done():
                    future.set_exception(calls.raised(answer))

    def _take(self, number: int) -> tuple[calls.Call, asyncio.Future[Any]]:
        if number not in self._waiting:
            raise RemoteProtocolError(f"an answer to request {number}, which was not asked")
        return self._waiting.pop(number)

    def lost(self, why: str) -> None:
        gone = ConnectionGone(f"the connection to the ledger's owner was lost: {why}")
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(gone)
        self._waiting.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    async def request(self, call: calls.Call) -> Any:
        """The owner's answer. Raises what the contract raises, and :class:`ConnectionGone`."""
        if self._connection.closed:
            raise ConnectionGone("the connection to the ledger's owner was lost")
        if calls.since(call) > self._connection.version:
            raise VersionHeldBack("the process that owns the ledger is of an older version of undoubt")
        self._number += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = (call, future)
        self._connection.send(calls.encode(calls.Request(self._number, call)))
        return await future
