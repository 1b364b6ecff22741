"""The wire: authenticated, bounded connections between processes.

What enters: a :class:`PeerIdentity`, and an ``accept`` function. What leaves: a :class:`Connection`, whose
peer is known, whose version both sides support, and which carries payloads (bytes, usually msgpack) in
frames. Both sides use it in the same way; everything runs in callbacks of the event loop, and all times are
the loop's::

    class Calls:                                              # a Receiver
        def __init__(self, connection): self.connection = connection
        def received(self, payload): self.connection.send(answer(payload))
        def lost(self, why): ...

    node, client = PeerIdentity(PeerRole.NODE, cluster_id, 1), PeerIdentity(PeerRole.CLIENT)
    bounds = WireSettings()
    listener = await serve(Address("127.0.0.1", 7400), node, Calls, bounds)
    connection = await connect(Address("127.0.0.1", 7400), client, Calls, bounds, timeout_s=5)

The caller's duties, in order: decode with msgspec in ``received`` and let its errors propagate, so that
the connection is closed; send a message of version N only if ``connection.version`` is at least N;
check ``unsent_bytes`` before sending much; after ``lost`` connect again, and repeat only calls that may be
repeated.

In the order in which a connection passes them:

==================  ==========================================================================================
:mod:`.settings`    holds the bounds: sizes, counts and times.
:mod:`.address`     reads host and port, and refuses an exposed address without TLS.
:mod:`.listener`    ``serve``: accepts connections on a port or a unix socket, up to a number.
:mod:`.dialing`     ``connect``: opens a connection, and completes its handshake.
:mod:`.tls`         makes TLS contexts from files, and reads the names in a certificate.
:mod:`.revocation`  reads which certificates a CA has revoked.
:mod:`.secure`      runs TLS over the bytes of one connection.
:mod:`.handshake`   checks the identity of the peer, and chooses the version that both sides support.
:mod:`.rights`      reads from a client's certificate which right its holder has.
:mod:`.connection`  runs one connection: the handshake, then frames, with one write for each turn of the event
                    loop; encodes payloads as frames, and decodes them.
:mod:`.errors`      defines the errors: an error of the peer, an error of this side, a refused handshake.
==================  ==========================================================================================
"""

from __future__ import annotations

from undoubt.coordinator.wire.address import Address, refuse_exposed
from undoubt.coordinator.wire.connection import Accept, Connection, Receiver
from undoubt.coordinator.wire.dialing import connect
from undoubt.coordinator.wire.errors import (
    HandshakeRefusal,
    HandshakeRefused,
    LocalProtocolError,
    RemoteProtocolError,
    TlsUnusable,
)
from undoubt.coordinator.wire.handshake import VERSIONS, PeerIdentity, PeerRole, Versions
from undoubt.coordinator.wire.listener import Listener, serve
from undoubt.coordinator.wire.rights import ROLES, SCHEME, Right, named_right
from undoubt.coordinator.wire.settings import WireSettings
from undoubt.coordinator.wire.tls import Certificate, Tls, TlsSettings, tls_of

__all__ = [
    "ROLES",
    "SCHEME",
    "VERSIONS",
    "Accept",
    "Address",
    "Certificate",
    "Connection",
    "HandshakeRefused",
    "PeerIdentity",
    "Listener",
    "LocalProtocolError",
    "Receiver",
    "HandshakeRefusal",
    "RemoteProtocolError",
    "Right",
    "PeerRole",
    "Tls",
    "TlsSettings",
    "TlsUnusable",
    "Versions",
    "WireSettings",
    "connect",
    "named_right",
    "refuse_exposed",
    "serve",
    "tls_of",
]
