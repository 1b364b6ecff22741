"""One connection: a handshake, then frames.

A frame is four bytes of length (big-endian, of what follows), a version byte, a CRC-32, and what it is of.
Length and version are checked as soon as the header is there: nothing is kept for a frame that will be
refused. The checksum is for wires without TLS: TCP's own has sixteen bits, and a single one is what tells
COMMIT from ABORT.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import ssl
import struct
from collections.abc import Callable, Iterator
from typing import Protocol, cast
from zlib import crc32

from undoubt.coordinator.wire.errors import LocalProtocolError, RemoteProtocolError
from undoubt.coordinator.wire.handshake import HANDSHAKE_BYTES_MAX, HANDSHAKE_VERSION, PeerIdentity, Versions
from undoubt.coordinator.wire.rights import Right
from undoubt.coordinator.wire.secure import Secured
from undoubt.coordinator.wire.settings import FRAME_BYTES_MAX, WireSettings
from undoubt.coordinator.wire.tls import check_names, names_in, reason_of

log = logging.getLogger(__name__)

HEADER = struct.Struct("!IBI")
_BEHIND = HEADER.size - 4
"""Bytes of the header that the length counts."""

_FOREIGN = {
    b"\x16\x03": "it speaks TLS, and this port does not",
    b"GET ": "it speaks HTTP",
    b"POST": "it speaks HTTP",
    b"HEAD": "it speaks HTTP",
}
"""How other protocols begin, for a message that helps whoever mistook the port."""


class FrameReader:
    """Bytes in, payloads out. ``version`` and ``bytes_max`` may be changed between two payloads."""

    def __init__(self, version: int, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.version = version
        self.bytes_max = bytes_max
        self._kept = bytearray()  # less than one frame
        self._wanted = 0  # bytes without which looking at ``_kept`` again is of no use

    @property
    def within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._kept)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that are complete now. Raises :class:`RemoteProtocolError`; of no more use then."""
        if self._kept:
            self._kept += data
            if len(self._kept) < self._wanted:
                return
            data = bytes(self._kept)
            self._kept.clear()
        start, size = 0, len(data)
        self._wanted = HEADER.size
        while size - start >= HEADER.size:
            length, version, checksum = HEADER.unpack_from(data, start)
            if version != self.version or not _BEHIND <= length <= self.bytes_max:
                raise RemoteProtocolError(self._wrong(length, version, data[start : start + 4]))
            end = start + 4 + length
            if end > size:
                self._wanted = 4 + length
                break
            payload = data[start + HEADER.size : end]
            if crc32(payload) != checksum:
                raise RemoteProtocolError(f"a frame of {length} bytes that does not match its checksum")
            yield payload
            start = end
        if start < size:
            self._kept += data[start:] if start else data

    def _wrong(self, length: int, version: int, begin: bytes) -> str:
        for foreign, why in _FOREIGN.items():
            if begin.startswith(foreign):
                return why
        if not _BEHIND <= length <= self.bytes_max:
            return f"a frame of {length} bytes, from {_BEHIND} to {self.bytes_max} are taken"
        return f"a frame of version {version}, {self.version} is spoken here"


def header(payload: bytes, version: int) -> bytes:
    """What goes before a payload."""
    return HEADER.pack(_BEHIND + len(payload), version, crc32(payload))


class Receiver(Protocol):
    """What a connection is used by, from the end of its handshake on. Called in the loop, never at once."""

    def received(self, payload: bytes) -> None:
        """One frame. May raise :class:`RemoteProtocolError` or ``ValueError``, which msgspec's are: the
        connection is closed then."""

    def lost(self, why: str) -> None:
        """Once, however it ended. Nothing is received afterwards."""


Accept = Callable[["Connection"], Receiver]
"""Called when the handshake is done, before any frame arrives: ``connection.peer`` and ``version`` are known,
and ``send`` works. May raise :class:`HandshakeRefused`: the peer is told, and the connection closed."""


class Connection(asyncio.Protocol, abc.ABC):
    """What is sent within one turn of the loop leaves in one write.

    Of a connection that was lost ``send`` drops what it is given: ask again elsewhere after ``lost``.
    """

    peer: PeerIdentity
    """Who is there; from the end of the handshake on."""

    def __init__(self, me: PeerIdentity, accept: Accept, settings: WireSettings, versions: Versions) -> None:
        self.me = me
        self.address = "?"
        self.closed = False
        self.version = HANDSHAKE_VERSION
        self._accept = accept
        self._settings = settings
        self._versions = versions
        self._receiver: Receiver | None = None
        self._reader = FrameReader(HANDSHAKE_VERSION, HANDSHAKE_BYTES_MAX)
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._why = ""
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.secured: Secured | None = None
        self.certificate = ""
        """The name in the certificate of a client, checked; empty without TLS."""
        self.right = Right.OPERATE
        """What a client's certificate lets it do; all of it without TLS."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.address = address_of(transport)
        self._deadline = self._loop.call_later(self._settings.handshake_s, self._too_late)
        self._begin()

    def data_received(self, data: bytes) -> None:
        if self.secured is not None:
            data = self._decrypted(self.secured, data)
        try:
            for payload in self._reader.feed(data):
                if self.closed:
                    return
                if self._receiver is None:
                    self._shake(payload)
                else:
                    self._receiver.received(payload)
        except (RemoteProtocolError, ValueError, RecursionError) as error:
            self._break_off(f"it does not speak our protocol: {error}")
            return
        if self.secured is not None and self.secured.ended and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.closed and self._reader.within:
            self._tell("it ended in the middle of a frame")
        elif not self.closed and self.secured is not None and self.secured.shaking:
            self._tell("it ended in the middle of TLS's handshake")
        self.closed = True
        self.transport = None
        self._outgoing.clear()
        lost = f"the connection was lost: {reason_of(exc)}" if exc else "the peer closed the connection"
        why = self._why or lost
        receiver, self._receiver = self._receiver, None
        self._lost(receiver, why)

    # The handshake.

    @abc.abstractmethod
    def _begin(self) -> None:
        """The transport is there."""

    @abc.abstractmethod
    def _established(self) -> None:
        """TLS is there."""

    def _secure(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        """Nothing is read or sent from now on but through TLS."""
        self.secured = Secured(context, server_side=server_side)
        self.secured.shake()
        self._write(self.secured.take())

    def _decrypted(self, secured: Secured, data: bytes) -> bytes:
        if self.closed:
            return b""
        established = secured.established
        try:
            said = secured.received(data)
        except ssl.SSLError as error:
            self._write(secured.take())
            self._break_off(reason_of(error))
            return b""
        self._write(secured.take())
        if secured.established and not established:
            self._established()
        return said

    def _write(self, data: bytes) -> None:
        if data and self.transport is not None:
            self.transport.write(data)

    @abc.abstractmethod
    def _shake(self, payload: bytes) -> None:
        """One frame of the handshake. Raises what ``received`` may."""

    @abc.abstractmethod
    def _lost(self, receiver: Receiver | None, why: str) -> None:
        """The end. Without a receiver: the handshake was not done."""

    @abc.abstractmethod
    def _tell(self, why: str) -> None:
        """This side ends the connection because of what the other one does."""

    def _check_certificate(self, peer: PeerIdentity, cluster: str) -> str:
        """The name in it; empty without TLS. Raises :class:`HandshakeRefused`."""
        return "" if self.secured is None else check_names(names_in(self.secured.shown), peer, cluster)

    def _opened(self, peer: PeerIdentity, version: int) -> None:
        """From now on frames of that version. Raises :class:`HandshakeRefused`."""
        self.peer, self.version = peer, version
        self._reader.version = version
        self._reader.bytes_max = self._settings.frame_bytes_max
        self._receiver = self._accept(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def _too_late(self) -> None:
        self._break_off(f"no handshake within {self._settings.handshake_s:g} s")

    def _break_off(self, why: str) -> None:
        if not self.closed:
            self._tell(why)
            self.abort(why)

    # What its user calls.

    def send(self, payload: bytes) -> None:
        """Queue one payload. Raises :class:`LocalProtocolError` if the peer would not take its size."""
        if len(payload) > self._settings.frame_bytes_max - HEADER.size:
            raise LocalProtocolError(
                f"a frame of {len(payload)} bytes; {self._settings.frame_bytes_max} are the most"
            )
        if self.closed:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(header(payload, self.version))
        self._outgoing.append(payload)
        self._outgoing_bytes += len(payload)

    @property
    def unsent_bytes(self) -> int:
        """What the peer, or the way to it, has not taken yet. Who has much to send looks at it first."""
        buffered = self.transport.get_write_buffer_size() if self.transport is not None else 0
        return self._outgoing_bytes + buffered

    def _flush(self) -> None:
        if not self.closed and self.transport is not None:
            data = b"".join(self._outgoing)
            if self.secured is not None:
                self.secured.send(data)
                data = self.secured.take()
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > self._settings.unsent_bytes_max:
                self._break_off(f"it left more than {self._settings.unsent_bytes_max} bytes unread")
        self._outgoing.clear()
        self._outgoing_bytes = 0

    def close(self, why: str = "closed by this side") -> None:
        """Send what is queued, read nothing more, then close. A peer that does not take it is cut off."""
        if self.closed or self.transport is None:
            return
        self._flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(self._settings.handshake_s, self.transport.abort)
        self.closed, self._why = True, why
        self.transport.close()

    def abort(self, why: str = "closed by this side") -> None:
        """Close at once; nothing more is read or sent."""
        if self.transport is None:
            return
        if not self.closed:
            self.closed, self._why = True, why
        self.transport.abort()


def address_of(transport: asyncio.BaseTransport) -> str:
    """The other end, for messages."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"[{peer[0]}]:{peer[1]}" if ":" in str(peer[0]) else f"{peer[0]}:{peer[1]}"
    return str(peer) if peer else "a local process"
