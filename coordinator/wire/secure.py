"""TLS over the bytes of one connection: bytes in, bytes out.

The event loops' own TLS is not used: asyncio's says nothing of handshakes that fail at a server, and calls
one that was cut off a success; upgrading a connection races with its first bytes on uvloop. Here it is the
same on every loop, for both sides, and within the one deadline of the handshake.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

READ_BYTES = 256 * 1024


class Secured:
    """After each call there may be something to :meth:`take` for the other side. Errors are ``ssl.SSLError``:
    the connection is of no use then, but for what is to be taken, which tells the other side why."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._begun = False
        self.established = False
        self.ended = False
        """The other side has said that it says nothing more."""

    @property
    def shaking(self) -> bool:
        """Whether the other side has begun the handshake, and not ended it."""
        return self._begun and not self.established

    def shake(self) -> None:
        """Go on with the handshake, as far as what has come allows."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.established = True

    def received(self, data: bytes) -> bytes:
        """What the other side said with it; nothing before the handshake is done."""
        self._begun = True
        self._incoming.write(data)
        if not self.established:
            self.shake()
        said = []
        while self.established:
            try:
                piece = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            if not piece:
                self.ended = True
                break
            said.append(piece)
        return said[0] if len(said) == 1 else b"".join(said)

    def send(self, data: bytes) -> None:
        with memoryview(data) as rest:
            sent = 0
            while sent < len(data):
                sent += self._tls.write(rest[sent:])

    def take(self) -> bytes:
        """For the other side."""
        return self._outgoing.read()

    @property
    def shown(self) -> Mapping[str, Any]:
        """The other side's certificate, as :meth:`ssl.SSLSocket.getpeercert` has it."""
        return self._tls.getpeercert() or {}
