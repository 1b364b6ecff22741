"""TLS for both sides from their files, and the names in a certificate.

A certificate identifies its holder by URIs among its alternative names (RFC 5280 §4.2.1.6), as SPIFFE does:
``undoubt://CLUSTER/node/2``, ``undoubt://CLUSTER/client/NAME``; another URI gives the right of a client
(:mod:`undoubt.coordinator.wire.rights`). Host names are not checked: addresses of nodes change, their
identities do not. Both sides show a certificate, signed by a CA of the same file.
"""

from __future__ import annotations

import functools
import logging
import os
import ssl
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from undoubt.coordinator.wire.errors import HandshakeRefusal, HandshakeRefused, TlsUnusable
from undoubt.coordinator.wire.handshake import PeerIdentity, PeerRole
from undoubt.coordinator.wire.revocation import revoked_in
from undoubt.coordinator.wire.rights import SCHEME
from undoubt.coordinator.wire.secure import Secured

log = logging.getLogger(__name__)


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of PEM files: the CAs that are trusted (one or more), this side's certificate, its key, and the
    lists of revoked certificates of all these CAs, empty for none."""

    ca: str
    cert: str
    key: str
    crl: str = ""


class Certificate(msgspec.Struct, frozen=True):
    """The names in a certificate and its expiry. ``not_after`` is in seconds since 1970."""

    names: tuple[str, ...]
    not_after: float


class Tls:
    """TLS contexts for new connections, and the list of revoked certificates. They are made again if a file
    has changed; if the changed files cannot be used, the former ones stay. Made by :func:`tls_of`."""

    def __init__(self, settings: TlsSettings) -> None:
        """Raises :class:`TlsUnusable`."""
        self.settings = settings
        self._seen = self._look()
        self._listening, self._dialing, self._own, self._revoked = _load(settings)

    @property
    def listening(self) -> ssl.SSLContext:
        self._refresh()
        return self._listening

    @property
    def dialing(self) -> ssl.SSLContext:
        self._refresh()
        return self._dialing

    @property
    def own(self) -> Certificate:
        """The certificate that this side shows."""
        self._refresh()
        return self._own

    def refuses(self, shown: Mapping[str, Any]) -> bool:
        """Whether the certificate of a peer, in the form of ``getpeercert``, has been revoked by now."""
        self._refresh()
        return int(str(shown.get("serialNumber") or "0"), 16) in self._revoked

    def check_own(self, me: PeerIdentity) -> None:
        """Raises :class:`TlsUnusable` if this side's certificate does not name ``me``: peers would refuse
        it."""
        try:
            check_names(self.own.names, me, me.cluster_id)
        except HandshakeRefused as error:
            raise TlsUnusable(f"{self.settings.cert}: {error.reason}") from None

    def _refresh(self) -> None:
        looks = self._look()
        if looks == self._seen:
            return
        self._seen = looks
        try:
            self._listening, self._dialing, self._own, self._revoked = _load(self.settings)
        except TlsUnusable as error:
            log.warning("the changed certificate is not used, the former one is kept: %s", error)
        else:
            until = time.strftime("%Y-%m-%d", time.gmtime(self._own.not_after))
            log.info("the certificate in %s was reloaded; it is valid until %s", self.settings.cert, until)

    def _look(self) -> list[tuple[int, int, int] | None]:
        looks: list[tuple[int, int, int] | None] = []
        for path in (self.settings.ca, self.settings.cert, self.settings.key, self.settings.crl):
            try:
                found = os.stat(path)
            except OSError:
                looks.append(None)
            else:
                looks.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return looks


@functools.lru_cache(maxsize=64)
def tls_of(settings: TlsSettings) -> Tls:
    """The :class:`Tls` that all connections of the process with these files share. Raises
    :class:`TlsUnusable`."""
    return Tls(settings)


def _load(settings: TlsSettings) -> tuple[ssl.SSLContext, ssl.SSLContext, Certificate, frozenset[int]]:
    contexts = []
    revoked = _revoked(settings.crl) if settings.crl else frozenset[int]()
    for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        _read(context, settings)
        contexts.append(context)
    listening, dialing = contexts
    listening.num_tickets = 0  # no session is resumed: the peer shows its certificate on each connection
    return listening, dialing, _shown(listening, dialing, settings), revoked


def _revoked(path: str) -> frozenset[int]:
    try:
        return revoked_in(Path(path).read_bytes())
    except OSError as error:
        raise TlsUnusable(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise TlsUnusable(f"cannot use {path}: {error}") from None


def _read(context: ssl.SSLContext, settings: TlsSettings) -> None:
    path = settings.ca
    try:
        context.load_verify_locations(settings.ca)
        if settings.crl:
            path = settings.crl
            context.load_verify_locations(settings.crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        path = f"{settings.cert} with {settings.key}"
        context.load_cert_chain(settings.cert, settings.key, password=_no_password)
    except ssl.SSLError as error:
        raise TlsUnusable(f"cannot use {path}: {reason_of(error)}") from None
    except OSError as error:
        raise TlsUnusable(f"cannot read {path}: {error.strerror or error}") from None


def _no_password() -> str:
    raise TlsUnusable("the key is encrypted; a process that restarts unattended needs an unencrypted key")


def _shown(listening: ssl.SSLContext, dialing: ssl.SSLContext, settings: TlsSettings) -> Certificate:
    """This side's own certificate, as a peer would see it. Both contexts complete a handshake with each
    other, so that a certificate that peers would refuse (expired, from another CA) is found here."""
    dials, listens = Secured(dialing, server_side=False), Secured(listening, server_side=True)
    try:
        dials.shake()
        for _ in range(2):
            listens.received(dials.take())
            dials.received(listens.take())
    except ssl.SSLError as error:
        raise TlsUnusable(f"{settings.cert} cannot be used: {reason_of(error)}") from None
    shown = dials.shown
    return Certificate(names_in(shown), float(ssl.cert_time_to_seconds(str(shown["notAfter"]))))


def names_in(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """The ``undoubt://`` URIs in a certificate, which is in the form of ``getpeercert``."""
    return tuple(
        value
        for kind, value in certificate.get("subjectAltName", ())
        if kind == "URI" and value.startswith(SCHEME)
    )


def name_of(cluster: str, role: PeerRole, name: str) -> str:
    return f"{SCHEME}{cluster}/{role}/{name}"


def check_names(names: Iterable[str], peer: PeerIdentity, cluster: str) -> str:
    """The name in a certificate that proves the identity of ``peer`` in ``cluster``. A node's certificate is
    also valid for a client, since a node may do more than any client. Raises :class:`HandshakeRefused` if the
    certificate has no such name."""
    listed = list(names)
    for name in listed:
        owner, _, rest = name.removeprefix(SCHEME).partition("/")
        role, _, who = rest.partition("/")
        if owner != cluster or not who:
            continue
        if peer.role is PeerRole.CLIENT and role in set(PeerRole):
            return who if role == PeerRole.CLIENT else f"node {who}"
        if peer.role is PeerRole.NODE and (role, who) == (PeerRole.NODE, str(peer.number)):
            return who
    wanted = name_of(cluster, peer.role, str(peer.number or "…"))
    named = ", ".join(listed) or "no undoubt:// URI"
    raise HandshakeRefused(
        HandshakeRefusal.CERTIFICATE,
        f"the certificate is not valid for {peer}: it names {named}, not {wanted}",
    )


def reason_of(error: BaseException) -> str:
    """The reason of a TLS failure, as text."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return _REASONS.get(error.reason, error.reason.lower().replace("_", " "))
    return str(error) or type(error).__name__


_REASONS = {
    "WRONG_VERSION_NUMBER": "the peer does not use TLS",
    "HTTP_REQUEST": "the peer sends HTTP without TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the CA of our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer requires a certificate",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer reports that our certificate has been revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer reports that our certificate has expired",
    "UNSUPPORTED_PROTOCOL": "the peer does not support TLS 1.3",
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file contains no certificate",
}
