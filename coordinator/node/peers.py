"""Sends messages to each other node over one connection, on which only this node sends; the other node uses
its own.

A message that cannot be sent now is dropped: Raft repeats it. Messages of one turn of the loop are sent in
one write.
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
"""The pause between two attempts to connect to a node, in seconds: the first, and the longest."""
UNSENT_BYTES_MAX = 32 * 1024 * 1024
"""If this many bytes to a peer are unsent, further messages to the peer are dropped."""


class Peers:
    """The connections to all other nodes. ``addresses`` is called before each attempt to connect, since
    addresses change with the configuration."""

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
        """``recognise`` raises ``HandshakeRefused`` for a node that has another disk than before, was
        removed, is too old, or was set back. ``log_index`` returns the last index on this node's disk.
        ``set_back`` is called with a peer's message if this node has acknowledged more than it has."""
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
        """Connect to ``nodes`` before there is something to send."""
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
        """Connect to ``node``, and repeat until that succeeds; None once the node is no longer a member."""
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
                    log.warning("node %d cannot be reached: %s", node, last_trouble)
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
    """The connection to one peer: a Receiver that accepts no messages."""

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
        """Wait until the connection's task has ended, after :meth:`close`."""
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
    """Let the kernel end a connection whose bytes are not acknowledged (tcp(7), TCP_USER_TIMEOUT). Otherwise
    the kernel retries ever more rarely, and a repaired network would be noticed minutes late."""
    peer = connection.transport.get_extra_info("socket") if connection.transport is not None else None
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if peer is not None and option is not None:
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, option, max(round(seconds * 1000), 1))


class FromPeer:
    """The receiving end of a peer's connection to this node. ``step`` processes the messages. If it raises
    ``MessageRefused``, the connection is closed, and the node is not affected."""

    def __init__(self, connection: Connection, step: Callable[[Message], None]) -> None:
        self._number = connection.peer.number
        self._step = step

    def received(self, payload: bytes) -> None:
        message = decode(payload)
        if message.sender != self._number:
            raise RemoteProtocolError(f"node {self._number} sent a message of node {message.sender}")
        try:
            self._step(message)
        except MessageRefused as error:
            raise RemoteProtocolError(str(error)) from error

    def lost(self, why: str) -> None:
        """Do nothing: the peer will connect again."""
