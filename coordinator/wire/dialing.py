"""``connect``: opens a connection and completes its handshake."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

from undoubt.coordinator.wire import handshake
from undoubt.coordinator.wire.address import Address
from undoubt.coordinator.wire.connection import Accept, Connection, Receiver
from undoubt.coordinator.wire.errors import HandshakeRefused
from undoubt.coordinator.wire.handshake import VERSIONS, PeerIdentity, Versions
from undoubt.coordinator.wire.settings import WireSettings
from undoubt.coordinator.wire.tls import reason_of, tls_of

log = logging.getLogger(__name__)


async def connect(
    where: Address | socket.socket,
    me: PeerIdentity,
    accept: Accept,
    settings: WireSettings,
    *,
    timeout_s: float,
    for_number: int = 0,
    versions: Versions = VERSIONS,
) -> Connection:
    """A connection whose handshake is complete. ``where`` may be a connected unix socket; ``for_number`` is
    the node that is expected there, 0 for any node. Raises :class:`HandshakeRefused` if this side refuses the
    peer, or with the peer's reason if the peer refuses; ``OSError`` if there is no peer that follows the
    protocol; and :class:`TlsUnusable`."""
    loop = asyncio.get_running_loop()
    unix = isinstance(where, socket.socket)
    context = tls_of(settings.tls).dialing if settings.tls is not None and not unix else None
    dialed = Dialed(me, accept, settings, versions, for_number=for_number, context=context)
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(where, socket.socket):
                await loop.create_unix_connection(lambda: dialed, sock=where)
            else:
                await loop.create_connection(lambda: dialed, where.host, where.port)
            await dialed.opened
    except TimeoutError:
        raise ConnectionError(f"no answer from {_named(where)} within {timeout_s:g} s") from None
    except OSError as error:
        raise ConnectionError(f"cannot connect to {_named(where)}: {reason_of(error)}") from error
    finally:
        if dialed.transport is not None and not dialed.ready:
            dialed.abort()
    return dialed


def _named(where: Address | socket.socket) -> str:
    return str(where) if isinstance(where, Address) else "the process at the other end of the socket"


class Dialed(Connection):
    """A connection that this side has opened. ``opened`` is done when the handshake is complete. It raises
    :class:`HandshakeRefused`, or ``ConnectionError`` if the peer does not follow the protocol."""

    def __init__(
        self,
        me: PeerIdentity,
        accept: Accept,
        settings: WireSettings,
        versions: Versions,
        *,
        for_number: int,
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(me, accept, settings, versions)
        self._for_number = for_number
        self._context = context
        self.opened: asyncio.Future[None] = self._loop.create_future()

    @property
    def ready(self) -> bool:
        return self._receiver is not None

    def _begin(self) -> None:
        if self._context is None:
            self._established()
        else:
            self._secure(self._context, server_side=False)

    def _established(self) -> None:
        self.send(handshake.hello(self.me, self._versions, self._for_number))

    def _shake(self, payload: bytes) -> None:
        try:
            peer, version = handshake.check_answer(payload, self.me, self._versions, self._for_number)
            self._check_certificate(peer, peer.cluster_id)
            self._opened(peer, version)
        except HandshakeRefused as error:
            self._end(error)
            self.abort(error.reason)
        else:
            self._end(None)

    def _lost(self, receiver: Receiver | None, why: str) -> None:
        if receiver is not None:
            receiver.lost(why)
        self._end(ConnectionError(why))

    def _log_closing(self, why: str) -> None:
        if self._receiver is not None:
            log.warning("closing the connection to %s at %s: %s", self.peer, self.address, why)

    def _end(self, error: Exception | None) -> None:
        if self.opened.done():
            return
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)
            self.opened.exception()  # marks it as retrieved: the waiting caller may have been cancelled
