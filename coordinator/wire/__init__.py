"""The wire: connections between processes that can be trusted to be what they say, and that stay bounded.

What enters: an :class:`PeerIdentity`, an ``accept`` function. What leaves: :class:`Connection`, whose peer is
known, whose version both sides speak, and which carries payloads (bytes, usually msgpack) in frames. Both
sides use it alike; everything runs in callbacks of the event loop, and all time is the loop's::

    class Calls:                                              # a Receiver
        def __init__(self, connection): self.connection = connection
        def received(self, payload): self.connection.send(answer(payload))
        def lost(self, why): ...

    node, client, bounds = Identity(Role.NODE, cluster_id, 1), Identity(Role.CLIENT), WireSettings()
    listener = await serve(Address("127.0.0.1", 7400), node, Calls, bounds)
    connection = await connect(Address("127.0.0.1", 7400), client, Calls, bounds, timeout_s=5)

The duties of whoever uses it, in order: decode with msgspec in ``received`` and let its errors out, so that
the connection is closed; send what came with version N only where ``connection.version`` is at least N;
look at ``unsent_bytes`` before sending much; after ``lost`` connect again, and ask again only what may be
repeated.

===================  ========================================================================================
:mod:`.handshake`    who is there, which version is spoken: pure
:mod:`.frames`       bytes to payloads and back: pure
:mod:`.connection`   a handshake, then frames; bounds; one write per turn of the loop
:mod:`.listener`     ``serve``: the side that is connected to, and how many it takes
:mod:`.dialing`      ``connect``: the side that connects
:mod:`.tls`          certificates: contexts from files, and whom they name
:mod:`.rights`       what the holder of a client's certificate may do: pure
:mod:`.secure`       TLS over a connection's bytes
:mod:`.address`      host and port; what may be listened on without TLS
:mod:`.settings`     the bounds
===================  ========================================================================================
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
