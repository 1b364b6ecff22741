"""One connection: a handshake, then frames.

A frame is four bytes of length (big-endian, of all that follows), a version byte, a CRC-32 of the payload,
and the payload. Length and version are checked as soon as the header is complete: no bytes are buffered for a
frame that will be refused. The checksum is for connections without TLS: TCP's own has only sixteen bits, and
one wrong bit can make COMMIT of ABORT."""

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
from undoubt.coordinator.wire.tls import check_names, names_in, reason_of, tls_of

log = logging.getLogger(__name__)

HEADER = struct.Struct("!IBI")
_BEHIND = HEADER.size - 4
"""The bytes of the header that the length includes."""

_FOREIGN = {
    b"\x16\x03": "it uses TLS, and this port does not",
    b"GET ": "it sends HTTP",
    b"POST": "it sends HTTP",
    b"HEAD": "it sends HTTP",
}
"""The first bytes of other protocols, for a message that helps if the port is the wrong one."""


class FrameReader:
    """Splits received bytes into payloads. ``version`` and ``bytes_max`` may be changed between two
    payloads."""

    def __init__(self, version: int, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.version = version
        self.bytes_max = bytes_max
        self._kept = bytearray()  # less than one frame
        self._wanted = 0  # with fewer bytes than this ``_kept`` has no complete header or frame

    @property
    def within(self) -> bool:
        """Whether a part of a frame has been received."""
        return bool(self._kept)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that ``data`` completes. Raises :class:`RemoteProtocolError`; the reader is unusable
        afterwards."""
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
                raise RemoteProtocolError(f"a frame of {length} bytes does not match its checksum")
            yield payload
            start = end
        if start < size:
            self._kept += data[start:] if start else data

    def _wrong(self, length: int, version: int, begin: bytes) -> str:
        for foreign, why in _FOREIGN.items():
            if begin.startswith(foreign):
                return why
        if not _BEHIND <= length <= self.bytes_max:
            return f"a frame of {length} bytes; {_BEHIND} to {self.bytes_max} are allowed"
        return f"a frame of version {version}; this connection uses version {self.version}"


def header(payload: bytes, version: int) -> bytes:
    """The header of a frame with ``payload``."""
    return HEADER.pack(_BEHIND + len(payload), version, crc32(payload))


class Receiver(Protocol):
    """The user of a connection after its handshake. Called in the event loop, one call at a time."""

    def received(self, payload: bytes) -> None:
        """Handle the payload of one frame. The connection is closed if this raises
        :class:`RemoteProtocolError` or ``ValueError`` (the base of msgspec's errors)."""

    def lost(self, why: str) -> None:
        """Called once, at the end of the connection, whatever the reason. Nothing is received afterwards."""


Accept = Callable[["Connection"], Receiver]
"""Called after the handshake, before any frame is received: ``connection.peer`` and ``version`` are set, and
``send`` works. May raise :class:`HandshakeRefused`: the peer gets the reason, and the connection is
closed."""


class Connection(asyncio.Protocol, abc.ABC):
    """One connection of either side. Payloads that are sent within one turn of the loop are written together.

    On a connection that was lost, ``send`` drops the payload: after ``lost``, repeat the call on another
    connection.
    """

    peer: PeerIdentity
    """The identity of the peer. Set from the end of the handshake."""

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
        self._reviewing: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.secured: Secured | None = None
        self.certificate = ""
        """The name in the certificate of a client, checked; empty without TLS."""
        self.right = Right.OPERATE
        """The right that the client's certificate gives; ``OPERATE`` without TLS."""

    # Called by asyncio.

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
            self._break_off(f"it does not follow the protocol: {error}")
            return
        if self.secured is not None and self.secured.ended and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._reviewing):
            if timer is not None:
                timer.cancel()
        if not self.closed and self._reader.within:
            self._log_closing("it ended in the middle of a frame")
        elif not self.closed and self.secured is not None and self.secured.shaking:
            self._log_closing("it ended in the middle of TLS's handshake")
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
        """Called once the transport is connected."""

    @abc.abstractmethod
    def _established(self) -> None:
        """Called once TLS is established, or immediately if the connection has no TLS."""

    def _secure(self, context: ssl.SSLContext, *, server_side: bool) -> None:
        """Start TLS: from now on everything is read and sent through it."""
        self.secured = Secured(context, server_side=server_side)
        self.secured.shake()
        self._write(self.secured.take())

    def _decrypted(self, secured: Secured, data: bytes) -> bytes:
        if self.closed:
            return b""
        established = secured.established
        try:
            plain = secured.received(data)
        except ssl.SSLError as error:
            self._write(secured.take())
            self._break_off(reason_of(error))
            return b""
        self._write(secured.take())
        if secured.established and not established:
            self._established()
        return plain

    def _write(self, data: bytes) -> None:
        if data and self.transport is not None:
            self.transport.write(data)

    @abc.abstractmethod
    def _shake(self, payload: bytes) -> None:
        """Handle one frame of the handshake. Raises what ``Receiver.received`` may raise."""

    @abc.abstractmethod
    def _lost(self, receiver: Receiver | None, why: str) -> None:
        """Called at the end of the connection. ``receiver`` is None if the handshake was not completed."""

    @abc.abstractmethod
    def _log_closing(self, why: str) -> None:
        """Log that this side ends the connection because of an error of the peer."""

    def _check_certificate(self, peer: PeerIdentity, cluster: str) -> str:
        """The name in the peer's certificate; empty without TLS. Raises :class:`HandshakeRefused` if the
        certificate does not belong to ``peer``."""
        return "" if self.secured is None else check_names(names_in(self.secured.shown), peer, cluster)

    def _opened(self, peer: PeerIdentity, version: int) -> None:
        """End the handshake: from now on frames have ``version``. Raises :class:`HandshakeRefused`."""
        self.peer, self.version = peer, version
        self._reader.version = version
        self._reader.bytes_max = self._settings.frame_bytes_max
        self._receiver = self._accept(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if self.secured is not None:
            self._review()

    def _review(self) -> None:
        """End the connection if the peer's certificate was revoked meanwhile; else look again later."""
        tls, secured = self._settings.tls, self.secured
        if self.closed or tls is None or not tls.crl or secured is None:
            return
        if tls_of(tls).refuses(secured.shown):
            self._break_off("its certificate has been revoked")
        else:
            self._reviewing = self._loop.call_later(self._settings.review_s, self._review)

    def _too_late(self) -> None:
        self._break_off(f"no handshake within {self._settings.handshake_s:g} s")

    def _break_off(self, why: str) -> None:
        if not self.closed:
            self._log_closing(why)
            self.abort(why)

    # Called by the user of the connection.

    def send(self, payload: bytes) -> None:
        """Queue one payload. Raises :class:`LocalProtocolError` if it is too large for a frame."""
        if len(payload) > self._settings.frame_bytes_max - HEADER.size:
            raise LocalProtocolError(
                f"a frame of {len(payload)} bytes; the limit is {self._settings.frame_bytes_max}"
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
        """The bytes that are queued here and not yet given to the operating system. Check before sending
        much."""
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
        """Send what is queued, read nothing more, then close. If the peer does not read the queued bytes
        within ``handshake_s``, the connection is aborted."""
        if self.closed or self.transport is None:
            return
        self._flush()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(self._settings.handshake_s, self.transport.abort)
        self.closed, self._why = True, why
        self.transport.close()

    def abort(self, why: str = "closed by this side") -> None:
        """Close immediately; nothing more is read or sent."""
        if self.transport is None:
            return
        if not self.closed:
            self.closed, self._why = True, why
        self.transport.abort()


def address_of(transport: asyncio.BaseTransport) -> str:
    """The address of the peer, for messages."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"[{peer[0]}]:{peer[1]}" if ":" in str(peer[0]) else f"{peer[0]}:{peer[1]}"
    return str(peer) if peer else "a local process"
