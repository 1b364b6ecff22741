"""Who may: bearer tokens, certificates, and the unix socket.

A TCP connection says nothing of its user, so that every request over TCP shows a token, or comes with a
certificate that a CA of ours has signed. The configuration holds hashes of tokens, each with a name, roles
and participants. On the unix socket the kernel tells the user of the other process (``SO_PEERCRED``,
unix(7)): that of the sidecar needs nothing else.

A browser on the same machine reaches TCP too. A page of a stranger's whose name resolves to this address
sends that name as Host (DNS rebinding), and every other page sends its Origin: both are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from undoubt.serve.sidecar.connection import Peer
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.settings import EVERYTHING, ROLES, SidecarSettings, TokenSettings

TOKEN_PREFIX = "undoubt_"  # noqa: S105 - what every token begins with
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="undoubt"'}
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks, and what it may."""

    name: str
    roles: frozenset[str]
    participants: frozenset[str]

    def needs(self, *roles: str) -> None:
        """Raises :class:`RequestRefused` unless it has one of ``roles``."""
        if not self.roles.intersection(roles):
            raise RequestRefused(
                403, "NotAllowed", f"client {self.name!r} has none of the roles: {', '.join(roles)}"
            )

    def may_use(self, participant: str) -> bool:
        return EVERYTHING in self.participants or participant in self.participants

    def sees(self, owner: str) -> bool:
        """Whether it may look at transactions of ``owner``."""
        return self.name == owner or not self.roles.isdisjoint({"observe", "operate"})


OWN_USER = Client("unix", frozenset(ROLES), frozenset({EVERYTHING}))
"""Whoever connects to the unix socket as the sidecar's own user."""


def hash_of(token: str) -> str:
    """As it stands in the configuration."""
    return hashlib.sha256(token.encode()).hexdigest()


class Doorkeeper:
    """Judges requests by the settings of now; :meth:`reload` replaces the tokens."""

    def __init__(self, settings: SidecarSettings) -> None:
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        if settings.listen:
            host, _ = settings.address
            self._hosts |= {host.lower()} | (_LOCAL if host in _LOCAL else frozenset())
        if settings.url:
            self._hosts |= {_host_name(urlsplit(settings.url).netloc)}
        self._tokens: tuple[TokenSettings, ...] = ()
        self.reload(settings)

    def reload(self, settings: SidecarSettings) -> None:
        """Tokens are those of ``settings`` from now on."""
        self._tokens = settings.tokens

    def check_host(self, peer: Peer, headers: Mapping[str, str]) -> None:
        """Raises :class:`RequestRefused`."""
        if peer.uid is not None:
            return  # no browser connects to a unix socket
        host = headers.get("host", "")
        name = _host_name(host)
        if name not in self._hosts:
            raise RequestRefused(
                421, "WrongHost", "this server is not called that; sidecar.hosts lists its names"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise RequestRefused(403, "CrossOrigin", "requests from pages of other servers are refused")

    def client(self, peer: Peer, headers: Mapping[str, str]) -> Client:
        """Raises :class:`RequestRefused`."""
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
    """Without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
