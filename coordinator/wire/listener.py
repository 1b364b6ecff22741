"""The side that is connected to: many connections on one port, bounded."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import msgspec

from undoubt.coordinator.wire import handshake
from undoubt.coordinator.wire.address import Address
from undoubt.coordinator.wire.connection import Accept, Connection, Receiver
from undoubt.coordinator.wire.errors import HandshakeRefusal, HandshakeRefused
from undoubt.coordinator.wire.handshake import HANDSHAKE_VERSION, VERSIONS, PeerIdentity, PeerRole, Versions
from undoubt.coordinator.wire.rights import right_of
from undoubt.coordinator.wire.settings import WireSettings
from undoubt.coordinator.wire.tls import names_in, tls_of

log = logging.getLogger(__name__)

PAUSE_READING_BYTES = 1024 * 1024
"""A client that leaves so much unread is not read from until it catches up: its requests are answers to come.
Two nodes that did so to each other would wait for ever, so between nodes nothing is paused."""


async def serve(
    where: Address | socket.socket,
    me: PeerIdentity,
    accept: Accept,
    settings: WireSettings,
    *,
    roles: frozenset[PeerRole] = frozenset(PeerRole),
    admits: Callable[[asyncio.BaseTransport], str] | None = None,
    versions: Versions = VERSIONS,
) -> Listener:
    """Listen there; ``where`` may be a bound unix socket. ``accept`` is called for each peer whose handshake
    is done and whose role is among ``roles``; ``admits`` answers why somebody may not even say who it is, or
    nothing. Raises ``OSError`` if the place cannot be listened on, :class:`TlsUnusable`."""
    listener = Listener(me, accept, settings, versions=versions, roles=roles, admits=admits)
    await listener.start(where)
    return listener


class Listener:
    """Made by :func:`serve`."""

    def __init__(
        self,
        me: PeerIdentity,
        accept: Accept,
        settings: WireSettings,
        *,
        versions: Versions,
        roles: frozenset[PeerRole],
        admits: Callable[[asyncio.BaseTransport], str] | None,
    ) -> None:
        self.me = me
        self.settings = settings
        self.versions = versions
        self.roles = roles
        self.admits = admits
        self.tls = tls_of(settings.tls) if settings.tls is not None else None
        self.closed = False
        self.strangers: dict[InboundConnection, None] = {}  # in the order of their coming
        self.clients: set[InboundConnection] = set()
        self.nodes: set[InboundConnection] = set()
        self._accept = accept
        self._server: asyncio.AbstractServer | None = None

    async def start(self, where: Address | socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(where, socket.socket):
            self.tls = None
            self._server = await loop.create_unix_server(
                lambda: InboundConnection(self, self._accept), sock=where
            )
        else:
            self._server = await loop.create_server(
                lambda: InboundConnection(self, self._accept), where.host, where.port
            )

    @property
    def port(self) -> int:
        """The one that it listens on, also if 0 was asked for."""
        sockets = getattr(self._server, "sockets", ())
        return int(sockets[0].getsockname()[1]) if sockets else 0

    def check_room(self, peer: PeerIdentity) -> None:
        """Raises :class:`HandshakeRefused` where there is none."""
        if peer.role is PeerRole.CLIENT and len(self.clients) >= self.settings.clients_max:
            raise HandshakeRefused(
                HandshakeRefusal.BUSY, f"{self.me} serves {len(self.clients)} clients already"
            )

    def close(self) -> None:
        """Stop listening and drop every connection, also those that are being accepted at this moment."""
        self.closed = True
        if self._server is not None:
            self._server.close()
        for connection in [*self.strangers, *self.clients, *self.nodes]:
            connection.abort("the other side is shutting down")


class InboundConnection(Connection):
    """One connection that somebody made to this port."""

    def __init__(self, listener: Listener, accept: Accept) -> None:
        super().__init__(listener.me, accept, listener.settings, listener.versions)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        strangers = self._listener.strangers
        strangers[self] = None
        super().connection_made(transport)
        if self._listener.closed:
            self.abort("the other side is shutting down")
            return
        if len(strangers) > self._settings.strangers_max:
            next(iter(strangers))._break_off("too many connections that did not say who they are")

    def _begin(self) -> None:
        transport, admits = self.transport, self._listener.admits
        if admits is not None and transport is not None and (why := admits(transport)):
            self._break_off(why)
        elif self._listener.tls is not None:
            self._secure(self._listener.tls.listening, server_side=True)

    def _established(self) -> None:
        """Who dials speaks first."""

    def _shake(self, payload: bytes) -> None:
        try:
            peer, version = handshake.check_hello(payload, self.me, self._versions, self._listener.roles)
            name = self._check_certificate(peer, self.me.cluster_id)
            self.certificate = name
            if self.secured is not None:
                self.right = right_of(names_in(self.secured.shown), self.me.cluster_id)
            if name and peer.role is PeerRole.CLIENT:
                peer = msgspec.structs.replace(peer, name=f"{name} ({peer.name})" if peer.name else name)
            self._listener.check_room(peer)
            self.send(handshake.welcome(self.me, version))
            self._opened(peer, version)
        except HandshakeRefused as error:
            self._tell(error.reason)
            self._outgoing.clear()
            self.version = HANDSHAKE_VERSION
            self.send(handshake.refused(error))
            self.close(error.reason)
        else:
            del self._listener.strangers[self]
            if peer.role is PeerRole.NODE:
                self._listener.nodes.add(self)
            else:
                self._listener.clients.add(self)
                if self.transport is not None:
                    self.transport.set_write_buffer_limits(PAUSE_READING_BYTES)

    def _lost(self, receiver: Receiver | None, why: str) -> None:
        self._listener.strangers.pop(self, None)
        self._listener.clients.discard(self)
        self._listener.nodes.discard(self)
        if receiver is not None:
            receiver.lost(why)

    def _tell(self, why: str) -> None:
        who = f"{self.peer} at {self.address}" if self._receiver is not None else self.address
        log.warning("closing the connection from %s: %s", who, why)

    def pause_writing(self) -> None:
        if self._pauses and self.transport is not None and not self.closed:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._pauses and self.transport is not None and not self.closed:
            self.transport.resume_reading()

    @property
    def _pauses(self) -> bool:
        return self._receiver is not None and self.peer.role is PeerRole.CLIENT
