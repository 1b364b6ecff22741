"""Answers other processes' calls on the ledger that this process owns."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct

import msgspec

from coordinator.errors import LedgerUnavailable
from coordinator.ledger.calls import Hello, Reply, Request, decode_request, encode, failed, perform
from coordinator.ledger.local import LocalLedger
from coordinator.wire.frames import FrameProtocol, RemoteProtocolError
from participants.errors import UndoubtError

log = logging.getLogger(__name__)

REQUESTS_PER_CONNECTION_MAX = 10_000
"""More than that unanswered on one connection is a peer gone wrong."""


class LedgerServer:
    """Serves ``ledger`` on a listening unix socket, to processes of the same user and of root."""

    def __init__(self, ledger: LocalLedger) -> None:
        self._ledger = ledger
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, sock=listening)

    async def close(self) -> None:
        """Stop listening and drop every connection; their callers ask whoever owns the ledger next."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def _accept(self) -> FrameProtocol:
        return _Connection(self._ledger, self._connections)


class _Connection(FrameProtocol):
    def __init__(self, ledger: LocalLedger, open_now: set[_Connection]) -> None:
        super().__init__(self._requested, self._gone)
        self._ledger = ledger
        self._open_now = open_now
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not _same_user(transport):
            self.abort()
            return
        self._open_now.add(self)
        self.send(encode(Hello(self._ledger.ledger_id)))

    def _gone(self) -> None:
        # What was asked goes on: it may be half recorded, and whoever asked will ask again.
        self._open_now.discard(self)

    def _requested(self, payload: bytes) -> None:
        request = decode_request(payload)
        if len(self._tasks) >= REQUESTS_PER_CONNECTION_MAX:
            raise RemoteProtocolError(f"more than {REQUESTS_PER_CONNECTION_MAX} requests at once")
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request) -> None:
        try:
            result = await perform(self._ledger, request.call, remote=True)
            answer = encode(Reply(request.number, msgspec.Raw(encode(result))))
        except UndoubtError as error:
            answer = encode(failed(request.number, error))
        except Exception as error:  # a bug of ours; the caller must hear something, and the owner lives on
            log.exception("ledger call %s failed", type(request.call).__name__)
            why = LedgerUnavailable(f"the ledger's owner failed: {type(error).__name__}: {error}")
            answer = encode(failed(request.number, why))
        self.send(answer)


def _same_user(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer's process belongs to this process's user or to root (unix(7), SO_PEERCRED)."""
    peer = transport.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid in {0, os.geteuid()}:
        return True
    log.warning("user %d may not use the ledger of user %d; connection closed", uid, os.geteuid())
    return False
