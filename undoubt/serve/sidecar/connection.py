"""The HTTP protocol of one connection: uvicorn's, which also identifies the peer and bounds the wait for it.

A head of a request that arrives too late, or is too large, ends the connection, and so does an answer that
the peer does not take. What is no HTTP is refused with a problem document. If it follows a request that is
being carried out, that request gets its own answer, or none: its client would take the refusal for it.

A request that offers another protocol (``Upgrade``) is answered in HTTP/1.1, as RFC 9110, 7.8, allows:
java.net.http offers HTTP/2 with its first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from undoubt.serve.sidecar.problems import MEDIA_TYPE, RequestRefused

HEAD_BYTES_MAX = 32 * 1024
PEER = "undoubt.peer"
"""The key of the :class:`Peer` in the ASGI scope of a request."""

_UCRED = struct.Struct("iII")
_OFFER = frozenset({b"upgrade", b"http2-settings"})
"""Headers that offer another protocol."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The peer of a connection. ``uid``: the user of a process at a unix socket, None over TCP;
    ``certificate``: the names in a verified TLS certificate."""

    uid: int | None = None
    certificate: tuple[str, ...] = ()


class _Parser(httptools.HttpRequestParser):
    """llhttp takes no body of a request that offers another protocol. So such a request is parsed a second
    time, without the offer, and only then begins."""

    def __init__(self, protocol: SidecarProtocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._protocol = protocol

    @property
    def offers(self) -> bool:
        """Another protocol for the request of now. CONNECT is no offer: no body of HTTP follows it."""
        return bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes | bytearray | memoryview[int] | array[int]) -> None:
        rest = data
        while True:
            try:
                super().feed_data(rest)
            except httptools.HttpParserUpgrade as stopped:
                if not self.offers:
                    raise
                super().feed_data(self._protocol.head_without_offer())
                [taken] = stopped.args  # bytes of ``rest``
                rest = memoryview(rest)[taken:]
            else:
                return


class SidecarProtocol(HttpToolsProtocol):
    """See the module. The server sets ``head_timeout_s`` on a subclass."""

    head_timeout_s = 10.0
    parser: _Parser

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = peer_of(transport)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._expect_head()
        self._unsent = 0
        self._looking = self.loop.call_later(self.head_timeout_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        cycle: Any = self.cycle  # None before the first request
        if self._head_timer is None and (cycle is None or cycle.response_complete):
            self._expect_head()
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what the parser refuses; the log has ``msg``."""
        cycle: Any = self.cycle
        if self.pipeline:
            self.transport.abort()
        elif cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False  # its answer is the last one
        else:
            self.transport.write(_not_http())
            self.transport.close()

    def resume_writing(self) -> None:
        self._unsent = 0
        super().resume_writing()

    def _look(self) -> None:
        """End a connection of which the other side has taken nothing since the last look: its answers keep
        memory and, also after it was closed here, its descriptor."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if 0 < before <= self._unsent:
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(self.head_timeout_s, self._look)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[PEER] = self._peer

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_arrived()
        if not self.parser.offers:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.offers:
            super().on_message_complete()

    def head_without_offer(self) -> bytes:
        """Of the request whose head was read."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                kept = b", ".join(each for each in _listed(value) if each.lower() not in _OFFER)
            if name not in _OFFER and (kept or not value):
                lines.append(name + b": " + kept)
        return b"\r\n".join([*lines, b"", b""])

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError("the head of the request is too large")  # uvicorn answers 400, and closes

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_slow)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self.transport.abort()


def _not_http() -> bytes:
    refusal = RequestRefused(
        400,
        "NotHttp",
        f"what came is no request of HTTP/1.1, or its head has more than {HEAD_BYTES_MAX} bytes",
    )
    body = refusal.body()
    lines = (
        f"HTTP/1.1 {refusal.status} {refusal.problem.title}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


def _listed(value: bytes) -> list[bytes]:
    return [each.strip() for each in value.split(b",")]


def peer_of(transport: asyncio.Transport) -> Peer:
    """Who has connected."""
    door = transport.get_extra_info("socket")
    if door is not None and door.family == socket.AF_UNIX:
        _, uid, _ = _UCRED.unpack(door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return Peer(uid=uid)
    shown: Mapping[str, Any] = {}
    with contextlib.suppress(ValueError):  # no certificate was verified
        shown = transport.get_extra_info("peercert") or {}
    return Peer(certificate=names_in(shown))


def names_in(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Common names, DNS names and URIs of ``ssl.SSLSocket.getpeercert()``."""
    common = [
        value for group in certificate.get("subject", ()) for key, value in group if key == "commonName"
    ]
    other = [value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "URI"}]
    return (*common, *other)
