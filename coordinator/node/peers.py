"""To each other node one connection that only this node sends on; the other way is the other node's.

What cannot be sent now is dropped: Raft asks again. Messages of one turn of the loop leave in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from random import Random

import msgspec

from undoubt.coordinator.raft import Message, MessageRefused, decode, encode
from undoubt.coordinator.supervision import Supervised
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    Connection,
    HandshakeRefusal,
    HandshakeRefused,
    PeerIdentity,
    RemoteProtocolError,
    Versions,
    WireSettings,
    connect,
)
from undoubt.participants.backoff import pauses_around

log = logging.getLogger(__name__)

PAUSE_S = (0.02, 0.5)
"""Between two attempts to reach a node: the first, the longest."""
UNSENT_BYTES_MAX = 32 * 1024 * 1024
"""A peer that has not taken so much is sent nothing more until it has."""


class Peers:
    """``addresses`` is read anew whenever a node is to be reached: it changes with the configuration."""

    def __init__(
        self,
        me: PeerIdentity,
        addresses: Callable[[], Mapping[int, str]],
        settings: WireSettings,
        random: Random,
        *,
        silence_s: float,
        recognise: Callable[[Connection], None],
        log_index: Callable[[], int],
        set_back: Callable[[str], None],
        versions: Versions = VERSIONS,
    ) -> None:
        """``recognise`` raises ``HandshakeRefused`` for a node that is not who it was, or was removed, or is
        too old, or was set back. ``log_index``: the last entry that is on this node's disk. ``set_back`` is
        told, in a peer's words, that this node has acknowledged more."""
        self._log_index = log_index
        self._set_back = set_back
        self._versions = versions
        self._me = me
        self._addresses = addresses
        self._settings = settings
        self._random = random
        self._silence_s = silence_s
        self._recognise = recognise
        self._links: dict[int, _Link] = {}

    def send(self, message: Message) -> None:
        link = self._links.get(message.to)
        if link is None:
            if message.to not in self._addresses():
                return
            link = self._links[message.to] = _Link(self, message.to)
        link.send(message)

    def meet(self, nodes: Iterable[int]) -> None:
        """Connect to them, though there is nothing to send yet."""
        for node in nodes:
            if node not in self._links:
                self._links[node] = _Link(self, node)

    async def close(self) -> None:
        links = list(self._links.values())
        self._links.clear()
        for link in links:
            link.close()
        for link in links:
            await link.ended()

    async def reach(self, node: int, link: _Link) -> Connection | None:
        """Connected, however long it takes; None once the node is no member any more."""
        pauses = pauses_around(*PAUSE_S, self._random)
        last_trouble = ""
        while address := self._addresses().get(node):
            try:
                return await self._connect(node, address, link)
            except (OSError, HandshakeRefused) as error:
                if isinstance(error, HandshakeRefused) and error.refusal is HandshakeRefusal.SET_BACK:
                    self._set_back(error.reason)
                if str(error) != last_trouble:
                    last_trouble = str(error)
                    log.warning("node %d is not reached: %s", node, last_trouble)
            await asyncio.sleep(next(pauses))
        if self._links.get(node) is link:
            del self._links[node]
        return None

    async def _connect(self, node: int, address: str, link: _Link) -> Connection:
        def accept(connection: Connection) -> _Link:
            self._recognise(connection)
            return link

        mine = self._addresses().get(self._me.number, "")
        connection = await connect(
            Address.parse(address),
            msgspec.structs.replace(self._me, address=mine, log_index=self._log_index()),
            accept,
            self._settings,
            timeout_s=max(self._silence_s, 1.0),
            for_number=node,
            versions=self._versions,
        )
        _give_up_on_silence(connection, self._silence_s)
        return connection


class _Link:
    """One peer's. A Receiver that expects nothing."""

    def __init__(self, peers: Peers, node: int) -> None:
        self._peers = peers
        self._node = node
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._reach()

    def send(self, message: Message) -> None:
        connection = self._connection
        if connection is not None and connection.unsent_bytes < UNSENT_BYTES_MAX:
            connection.send(encode(message))

    def received(self, payload: bytes) -> None:
        raise RemoteProtocolError("nodes answer on connections of their own")

    def lost(self, why: str) -> None:
        if self._connection is not None:
            self._connection = None
            log.warning("the connection to node %d was lost: %s", self._node, why)
            self._reach()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if self._task is not None:
            self._task.cancel()
        if connection is not None:
            connection.close()

    async def ended(self) -> None:
        """Once nothing of it is left, after :meth:`close`."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _reach(self) -> None:
        self._task = Supervised("node peer", self._run).start(f"undoubt-peer-{self._node}")

    async def _run(self) -> None:
        connection = await self._peers.reach(self._node, self)
        if connection is not None and connection.closed:
            self._reach()
        else:
            self._connection = connection


def _give_up_on_silence(connection: Connection, seconds: float) -> None:
    """Let the kernel end a connection whose bytes nobody acknowledges (tcp(7), TCP_USER_TIMEOUT): else it
    tries ever more rarely, and a healed network would be found minutes late."""
    peer = connection.transport.get_extra_info("socket") if connection.transport is not None else None
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if peer is not None and option is not None:
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, option, max(round(seconds * 1000), 1))


class FromPeer:
    """The receiving end of a peer's connection to this node. ``step`` takes its messages, and raises
    ``MessageRefused``: that costs the peer this connection, and the node nothing."""

    def __init__(self, connection: Connection, step: Callable[[Message], None]) -> None:
        self._number = connection.peer.number
        self._step = step

    def received(self, payload: bytes) -> None:
        message = decode(payload)
        if message.sender != self._number:
            raise RemoteProtocolError(f"node {self._number} speaks for node {message.sender}")
        try:
            self._step(message)
        except MessageRefused as error:
            raise RemoteProtocolError(str(error)) from error

    def lost(self, why: str) -> None:
        """It will come again."""
