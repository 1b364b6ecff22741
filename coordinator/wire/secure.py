"""TLS over the bytes of one connection: bytes in, bytes out.

The TLS of the event loops is not used: asyncio does not report handshakes that fail at a server, and reports
a handshake that was cut off as a success; with uvloop, upgrading a connection races with its first bytes.
This module behaves the same on every loop, on both sides, and within the one deadline of the handshake."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

READ_BYTES = 256 * 1024


class Secured:
    """One side of a TLS connection. After each call there may be bytes to :meth:`take` and send to the peer.
    Errors are ``ssl.SSLError``; the connection is then unusable, but the bytes to take still have to be sent:
    they contain the reason for the peer."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._begun = False
        self.established = False
        self.ended = False
        """Whether the peer has ended its direction of TLS (close_notify)."""

    @property
    def shaking(self) -> bool:
        """Whether the peer has begun the handshake, and not completed it."""
        return self._begun and not self.established

    def shake(self) -> None:
        """Continue the handshake as far as the received bytes allow."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.established = True

    def received(self, data: bytes) -> bytes:
        """The plain bytes in ``data``; empty before the handshake is complete."""
        self._begun = True
        self._incoming.write(data)
        if not self.established:
            self.shake()
        plain = []
        while self.established:
            try:
                piece = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            if not piece:
                self.ended = True
                break
            plain.append(piece)
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def send(self, data: bytes) -> None:
        with memoryview(data) as rest:
            sent = 0
            while sent < len(data):
                sent += self._tls.write(rest[sent:])

    def take(self) -> bytes:
        """The encrypted bytes to send to the peer."""
        return self._outgoing.read()

    @property
    def shown(self) -> Mapping[str, Any]:
        """The peer's certificate, in the form of :meth:`ssl.SSLSocket.getpeercert`."""
        return self._tls.getpeercert() or {}
