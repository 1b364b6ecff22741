"""``serve``: accepts connections on one port or unix socket, up to a number."""

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
"""If a client leaves so many bytes unread, its requests are not read until it has read the answers.
Connections between nodes are never paused: two nodes that paused each other would wait for ever."""


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
    """Listen at ``where``, which may be a bound unix socket. ``accept`` is called for each peer whose
    handshake is complete and whose role is among ``roles``. ``admits`` is called before the handshake; it
    returns why the connection is refused, or an empty text. Raises ``OSError`` if ``where`` cannot be
    listened on, and :class:`TlsUnusable`."""
    listener = Listener(me, accept, settings, versions=versions, roles=roles, admits=admits)
    await listener.start(where)
    return listener


class Listener:
    """A listening socket and its connections. Made by :func:`serve`."""

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
        self.strangers: dict[
            InboundConnection, None
        ] = {}  # connections before their handshake, the oldest first
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
        """The port that the listener is bound to, also if port 0 was given; 0 for a unix socket."""
        sockets = getattr(self._server, "sockets", ())
        return int(sockets[0].getsockname()[1]) if sockets else 0

    def check_room(self, peer: PeerIdentity) -> None:
        """Raises :class:`HandshakeRefused` if there are ``clients_max`` clients already."""
        if peer.role is PeerRole.CLIENT and len(self.clients) >= self.settings.clients_max:
            raise HandshakeRefused(
                HandshakeRefusal.BUSY, f"{self.me} serves {len(self.clients)} clients already"
            )

    def close(self) -> None:
        """Stop listening, and abort all connections, also those that are being accepted now."""
        self.closed = True
        if self._server is not None:
            self._server.close()
        for connection in [*self.strangers, *self.clients, *self.nodes]:
            connection.abort("this side is shutting down")


class InboundConnection(Connection):
    """A connection that a peer has opened to this port."""

    def __init__(self, listener: Listener, accept: Accept) -> None:
        super().__init__(listener.me, accept, listener.settings, listener.versions)
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        strangers = self._listener.strangers
        strangers[self] = None
        super().connection_made(transport)
        if self._listener.closed:
            self.abort("this side is shutting down")
            return
        if len(strangers) > self._settings.strangers_max:
            next(iter(strangers))._break_off("too many connections without a handshake")

    def _begin(self) -> None:
        transport, admits = self.transport, self._listener.admits
        if admits is not None and transport is not None and (why := admits(transport)):
            self._break_off(why)
        elif self._listener.tls is not None:
            self._secure(self._listener.tls.listening, server_side=True)

    def _established(self) -> None:
        """Nothing to do: the dialer sends the first frame."""

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
            self._log_closing(error.reason)
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

    def _log_closing(self, why: str) -> None:
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
