"""One connection to the process that owns the ledger."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from coordinator.errors import LedgerUnavailable
from coordinator.ledger import calls
from coordinator.wire.frames import FrameProtocol, RemoteProtocolError


class ConnectionGone(LedgerUnavailable):
    """The connection ended with this call unanswered. Asking whoever owns the ledger now is safe."""


class LedgerConnection:
    """See the module. Made by :meth:`connect`; of no more use once ``gone`` is done."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._protocol = FrameProtocol(self._answered, self._lost)
        self._waiting: dict[int, tuple[calls.Call, asyncio.Future[Any]]] = {}
        self._number = 0
        self._hello: asyncio.Future[str] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.ledger_id = ""

    @classmethod
    async def connect(cls, connected: socket.socket, *, timeout_s: float) -> LedgerConnection:
        """Speak over a connected unix socket. Raises :class:`ConnectionGone`."""
        connection = cls()
        await asyncio.get_running_loop().create_unix_connection(lambda: connection._protocol, sock=connected)
        try:
            connection.ledger_id = await asyncio.wait_for(connection._hello, timeout_s)
        except TimeoutError:
            connection._protocol.abort()
            raise ConnectionGone("the ledger's owner does not answer") from None
        return connection

    async def close(self) -> None:
        self._protocol.abort()
        await self.gone

    def _answered(self, payload: bytes) -> None:
        answer: calls.Answer = calls.decode_answer(payload)
        match answer:
            case calls.Hello(ledger_id=ledger_id):
                if not self._hello.done():
                    self._hello.set_result(ledger_id)
            case calls.Reply(number=number, result=result):
                call, future = self._take(number)
                if not future.done():
                    future.set_result(calls.decode_result(call, result))
            case calls.Failed():
                _, future = self._take(answer.number)
                if not future.done():
                    future.set_exception(calls.raised(answer))

    def _take(self, number: int) -> tuple[calls.Call, asyncio.Future[Any]]:
        if number not in self._waiting:
            raise RemoteProtocolError(f"an answer to request {number}, which was not asked")
        return self._waiting.pop(number)

    def _lost(self) -> None:
        gone = ConnectionGone("the connection to the ledger's owner was lost")
        if not self._hello.done():
            self._hello.set_exception(gone)
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(gone)
        self._waiting.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    async def request(self, call: calls.Call) -> Any:
        """The owner's answer. Raises what the contract raises, and :class:`ConnectionGone`."""
        if self._protocol.transport is None:
            raise ConnectionGone("the connection to the ledger's owner was lost")
        self._number += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = (call, future)
        self._protocol.send(calls.encode(calls.Request(self._number, call)))
        return await future
