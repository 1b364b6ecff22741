"""Reads ``etcd://…`` URLs: ``etcd://[user[:password]@]host[:port],host[:port],…[/prefix]``.

The user and the password are etcd's own; characters like ``@``, ``:`` and ``/`` in them are percent-encoded.
All keys of the ledger begin with the prefix, so that one etcd can have several ledgers."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from urllib.parse import unquote

import msgspec

from undoubt.coordinator.errors import LedgerMisconfigured
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import Address
from undoubt.participants.redact import redact

SCHEME = "etcd://"
PORT = 2379
PREFIX = "undoubt"
EXAMPLE = "etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379"

_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,100}(?:/[A-Za-z0-9._-]{1,100}){0,9}")


class EtcdAddress(msgspec.Struct, frozen=True):
    """``endpoints`` are the members, in the order of the URL. ``user`` is empty if etcd asks for none."""

    endpoints: Sequence[Address]
    prefix: str = PREFIX
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"EtcdAddress({', '.join(map(str, self.endpoints))}, {self.prefix!r})"


def read(url: str) -> EtcdAddress:
    """Raises ``LedgerMisconfigured``, without the password in the message."""
    authority, _, prefix = url.removeprefix(SCHEME).partition("/")
    who, at, hosts = authority.rpartition("@")
    user, colon, password = who.partition(":")
    prefix = prefix.rstrip("/") or PREFIX
    if not url.startswith(SCHEME) or not hosts or bool(at) != bool(colon and user and password):
        raise LedgerMisconfigured(
            f"ledger URL {redact(url)!r} cannot be read; it looks like {EXAMPLE}, or"
            " etcd://user:password@host:2379/prefix"
        )
    if not _PREFIX.fullmatch(prefix):
        raise LedgerMisconfigured(
            f"ledger URL {redact(url)!r}: the prefix of the keys has letters, digits, '.', '_', '-' and '/'"
        )
    try:
        endpoints = [Address.parse(text, port=PORT) for text in hosts.split(",")]
    except ValueError as error:
        raise LedgerMisconfigured(f"ledger URL {redact(url)!r}: {error}; for example {EXAMPLE}") from None
    if any(not each.port for each in endpoints):
        raise LedgerMisconfigured(f"ledger URL {redact(url)!r}: no member answers at port 0")
    if twice := [each for each in endpoints if endpoints.count(each) > 1]:
        raise LedgerMisconfigured(f"ledger URL {redact(url)!r} names member {twice[0]} twice")
    return EtcdAddress(endpoints, prefix, unquote(user), unquote(password))


def tls_context(settings: LedgerSettings) -> ssl.SSLContext | None:
    """For connections to the members; None without TLS. Names of hosts are checked, as etcd's own clients do.
    Raises ``LedgerMisconfigured`` if the files cannot be used."""
    if not settings.tls_ca:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ValueError) as error:
        raise LedgerMisconfigured(f"ledger.tls_ca, tls_cert, tls_key: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
