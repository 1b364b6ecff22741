"""Reads the addresses and the TLS files of a ``raft://`` URL and its settings."""

from __future__ import annotations

from collections.abc import Sequence

from undoubt.coordinator.errors import LedgerMisconfigured
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import Address, TlsUnusable, WireSettings, tls_of
from undoubt.participants.redact import redact

RAFT = "raft://"
PORT = 7400


def wire_of(settings: LedgerSettings) -> WireSettings:
    """The settings of connections to the cluster. Raises ``LedgerMisconfigured`` if the TLS files cannot be
    used."""
    wire = settings.wire
    if wire.tls is not None:
        try:
            tls_of(wire.tls)
        except TlsUnusable as error:
            raise LedgerMisconfigured(f"ledger.tls_ca, tls_cert, tls_key: {error}") from error
    return wire


def addresses_of(url: str) -> Sequence[Address]:
    """The nodes of a ``raft://`` URL, in its order. Raises ``LedgerMisconfigured``."""
    if "://" in url and not url.startswith(RAFT):  # parts of the URL may be a password
        raise LedgerMisconfigured(
            f"ledger URL {redact(url)!r} names no cluster; for example"
            " raft://10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400"
        )
    try:
        found = [Address.parse(text, port=PORT) for text in url.removeprefix(RAFT).rstrip("/").split(",")]
    except ValueError as error:
        raise LedgerMisconfigured(
            f"ledger URL {redact(url)!r}: {error}; for example"
            " raft://10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400"
        ) from None
    if twice := [each for each in found if found.count(each) > 1]:
        raise LedgerMisconfigured(f"ledger URL {redact(url)!r} names node {twice[0]} twice")
    return found
