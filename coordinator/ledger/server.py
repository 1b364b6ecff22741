"""Answers the calls of other processes on the SQLite ledger that this process owns."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Sequence

import msgspec

from undoubt.coordinator.ledger.acting import user_name
from undoubt.coordinator.ledger.calls import AnyLedgerCall, RecordActCall, decode_request
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.rpc.envelope import Answer, Failed, Request, decode_unread, encode, unreadable
from undoubt.coordinator.rpc.server import Requests
from undoubt.coordinator.wire import (
    Connection,
    Listener,
    PeerIdentity,
    PeerRole,
    WireSettings,
    serve,
)

REQUESTS_PER_CONNECTION_MAX = 10_000
"""Most unanswered requests on one connection; a peer with more is faulty."""


class LedgerServer:
    """Serves ``ledger`` on a listening unix socket, to processes of the same user and of root."""

    def __init__(self, ledger: StateMachineLedger) -> None:
        self._ledger = ledger
        self._listener: Listener | None = None

    async def start(self, listening: socket.socket) -> None:
        me = PeerIdentity(PeerRole.NODE, self._ledger.ledger_id, name=f"process {os.getpid()}")
        self._listener = await serve(
            listening, me, self._accept, WireSettings(), roles=frozenset({PeerRole.CLIENT}), admits=_same_user
        )

    async def close(self) -> None:
        """Stop listening and close all connections; their callers repeat their calls at the next owner."""
        if self._listener is not None:
            self._listener.close()

    def _accept(self, connection: Connection) -> _Calls:
        return _Calls(self._ledger, connection)


class _Calls(Requests[AnyLedgerCall]):
    def __init__(self, ledger: StateMachineLedger, connection: Connection) -> None:
        super().__init__(connection, requests_max=REQUESTS_PER_CONNECTION_MAX, who="the ledger's owner")
        self._ledger = ledger

    def lost(self, why: str) -> None:
        """Nothing to do: calls that have begun continue."""

    def read(self, payload: bytes) -> tuple[Sequence[Request[AnyLedgerCall]], Sequence[Failed]]:
        try:
            return [decode_request(payload)], []
        except (ValueError, RecursionError) as error:
            # Only this call is answered with the error: all callers of the peer share this connection.
            return [], [unreadable(decode_unread(payload).number, error)]

    def begin(self, number: int, call: AnyLedgerCall) -> None:
        self.later(number, call, self._signed(call).serve(self._ledger, remote=True))

    def say(self, answer: Answer) -> None:
        self.connection.send(encode(answer))

    def _signed(self, call: AnyLedgerCall) -> AnyLedgerCall:
        """``call``; the ``who`` of an act is replaced by the system user of the connected process."""
        if not isinstance(call, RecordActCall) or self.connection.transport is None:
            return call
        act = call.act
        user = f"{user_name(_credentials(self.connection.transport)[1])}@{socket.gethostname()}"
        # The same user with a note on sudo is kept: it names the user who ran sudo.
        who = act.who if act.who == user or act.who.startswith(f"{user} ") else user
        return RecordActCall(msgspec.structs.replace(act, who=who, certificate=""))


def _same_user(transport: asyncio.BaseTransport) -> str:
    """Why the peer's process may not use the ledger; empty if it may. It must belong to this process's user
    or to root (unix(7), SO_PEERCRED)."""
    _, uid, _ = _credentials(transport)
    if uid in {0, os.geteuid()}:
        return ""
    return f"user {uid} may not use the ledger of user {os.geteuid()}"


def _credentials(transport: asyncio.BaseTransport) -> tuple[int, int, int]:
    """The ids of the peer's process, user and group."""
    peer = transport.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, group = struct.unpack("3i", credentials)
    return process, user, group
