"""Authenticates clients by bearer tokens, certificates, and the user at the unix socket.

A TCP connection does not identify a user. Every request over TCP therefore needs a token, or a certificate
that was signed by a CA in ``sidecar.tls_ca``. The configuration contains hashes of tokens, each with a name,
roles and participants. On the unix socket the kernel reports the user of the other process (``SO_PEERCRED``,
unix(7)): the sidecar's own user needs no token.

A browser on the same machine can also connect to TCP. A page of a server whose name resolves to this address
sends that name as Host (DNS rebinding); a page of any other server sends its Origin. Both are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from undoubt.serve.sidecar.connection import Peer
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.settings import EVERYTHING, ROLES, SidecarSettings, TokenSettings

TOKEN_PREFIX = "undoubt_"  # noqa: S105 - what every token begins with
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="undoubt"'}
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Client:
    """A client, and its rights."""

    name: str
    roles: frozenset[str]
    participants: frozenset[str]

    def needs(self, *roles: str) -> None:
        """Raise :class:`RequestRefused` unless the client has one of ``roles``."""
        if not self.roles.intersection(roles):
            raise RequestRefused(
                403, "NotAllowed", f"client {self.name!r} has none of the roles: {', '.join(roles)}"
            )

    def may_use(self, participant: str) -> bool:
        return EVERYTHING in self.participants or participant in self.participants

    def sees(self, owner: str) -> bool:
        """Whether the client may see the transactions of ``owner``."""
        return self.name == owner or not self.roles.isdisjoint({"observe", "operate"})


OWN_USER = Client("unix", frozenset(ROLES), frozenset({EVERYTHING}))
"""The client for connections to the unix socket from the sidecar's own user."""


def hash_of(token: str) -> str:
    """The hash of a token, as in the configuration."""
    return hashlib.sha256(token.encode()).hexdigest()


class Doorkeeper:
    """Authenticates requests by the current settings; :meth:`reload` replaces the tokens. ``section``: the
    table of the configuration that has them."""

    def __init__(self, settings: SidecarSettings, section: str = "sidecar") -> None:
        self._section = section
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        if settings.listen:
            host, _ = settings.address
            self._hosts |= {host.lower()} | (_LOCAL if host in _LOCAL else frozenset())
        if settings.url:
            self._hosts |= {_host_name(urlsplit(settings.url).netloc)}
        self._tokens: tuple[TokenSettings, ...] = ()
        self.reload(settings)

    def reload(self, settings: SidecarSettings) -> None:
        """Use the tokens of ``settings`` from now on."""
        self._tokens = settings.tokens

    def check_host(self, peer: Peer, headers: Mapping[str, str]) -> None:
        """Raise :class:`RequestRefused` if Host or Origin of a request over TCP names another server."""
        if peer.uid is not None:
            return  # no browser connects to a unix socket
        host = headers.get("host", "")
        name = _host_name(host)
        if not name or name not in self._hosts:
            raise RequestRefused(
                421,
                "WrongHost",
                f"Host names another server; {self._section}.hosts lists the names of this one",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            raise RequestRefused(403, "CrossOrigin", "requests from pages of other servers are refused")

    def client(self, peer: Peer, headers: Mapping[str, str]) -> Client:
        """The client that the request authenticates as. Raises :class:`RequestRefused`."""
        shown = headers.get("authorization")
        if shown is not None:
            return self._of_token(shown)
        if peer.uid is not None and peer.uid == os.getuid():
            return OWN_USER
        if peer.certificate:
            return self._of_certificate(peer.certificate)
        raise RequestRefused(401, "TokenNeeded", "send Authorization: Bearer <token>", headers=_CHALLENGE)

    def _of_token(self, shown: str) -> Client:
        scheme, _, token = shown.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise RequestRefused(401, "TokenNeeded", "send Authorization: Bearer <token>", headers=_CHALLENGE)
        digest = hash_of(token.strip())
        for known in self._tokens:
            if known.sha256 and hmac.compare_digest(known.sha256, digest):
                return _client(known)
        raise RequestRefused(401, "TokenUnknown", "no client has that token", headers=_CHALLENGE)

    def _of_certificate(self, names: Iterable[str]) -> Client:
        shown = frozenset(names)
        for known in self._tokens:
            if known.certificate and known.certificate in shown:
                return _client(known)
        raise RequestRefused(401, "CertificateUnknown", "no client has that certificate", headers=_CHALLENGE)


def _client(known: TokenSettings) -> Client:
    if known.expires is not None and datetime.now(UTC) >= known.expires:
        raise RequestRefused(
            401, "TokenExpired", f"the token of {known.name!r} has expired", headers=_CHALLENGE
        )
    return Client(known.name, frozenset(known.roles), frozenset(known.participants))


def _host_name(host: str) -> str:
    """Without its port; empty of what is no name with a port, such as one with a user or a path (RFC 9110,
    section 7.2)."""
    match = _HOST.fullmatch(host)
    return "" if match is None else match["name"].strip("[]").lower()
