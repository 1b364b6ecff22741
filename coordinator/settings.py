"""The settings of the coordinator and of its ledger. ``undoubt.config`` loads them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from undoubt.coordinator.wire import TlsSettings, WireSettings
from undoubt.participants.bounds import (
    PATH_BYTES_MAX,
    ROLE_BYTES_MAX,
    OutOfBounds,
    count,
    path,
    seconds,
    text,
    texts,
)
from undoubt.participants.ids import Protocol
from undoubt.participants.redact import redact
from undoubt.participants.three_phase import Termination

ProtocolName = Literal["2pc", "3pc", "paxos", "last"]

PROTOCOL_NAMES: dict[Protocol, ProtocolName] = {
    Protocol.TWO_PHASE: "2pc",
    Protocol.THREE_PHASE: "3pc",
    Protocol.PAXOS: "paxos",
    Protocol.LAST: "last",
}
"""The names in the settings."""
PROTOCOLS: dict[str, Protocol] = {name: protocol for protocol, name in PROTOCOL_NAMES.items()}


_SQLITE = "sqlite:///"
_ETCD = "etcd://"
_SQLITE_NAME_BYTES_MAX = 200
"""Below the file system's limit, because the files beside a ledger have longer names than the ledger's
file."""


class LedgerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the ledger is, and for how long it keeps its records. Times are in seconds.

    ``retention_s`` must be longer than the time by which a restore or a failover may set any participant
    back.
    """

    url: str = "sqlite:///undoubt.db"
    retention_s: float = 7 * 86_400.0
    history_s: float = 7 * 86_400.0
    request_timeout_s: float = 5.0
    schema_owners: tuple[str, ...] = ()
    """Roles that may own the schema of a PostgreSQL ledger and the objects in it, besides superusers and the
    role that logs in; these roles may read the ledger's secret."""
    tls_ca: str = ""
    """PEM files of the ``raft://`` cluster's connections, for its nodes and its clients: the CAs that are
    trusted, this side's certificate, and its key. All three, or none. For ``etcd://`` those of its clients;
    without a certificate and its key if etcd asks clients for none."""
    tls_cert: str = ""
    tls_key: str = ""
    tls_crl: str = ""
    """PEM file of the lists of revoked certificates of all these CAs; empty: none is looked up."""

    def __post_init__(self) -> None:
        text("url", self.url, most=PATH_BYTES_MAX + len(_SQLITE), empty=False)
        if self.url.startswith(_SQLITE):
            path("url", self.url.removeprefix(_SQLITE), last_most=_SQLITE_NAME_BYTES_MAX)
        texts("schema_owners", self.schema_owners, most=ROLE_BYTES_MAX)
        seconds("retention_s", self.retention_s)
        seconds("history_s", self.history_s)
        seconds("request_timeout_s", self.request_timeout_s, zero=False)
        files = {"tls_ca": self.tls_ca, "tls_cert": self.tls_cert, "tls_key": self.tls_key}
        for name, file in (files | {"tls_crl": self.tls_crl}).items():
            path(name, file, empty=True)
        if self.tls_crl and (self.url.startswith(_ETCD) or not self.tls_ca):
            raise ValueError("tls_crl needs tls_ca, tls_cert and tls_key, and a raft:// cluster")
        if self.url.startswith(_ETCD) and not (self.tls_cert or self.tls_key):
            return
        if any(files.values()) and not all(files.values()):
            missing = " and ".join(key for key, path in files.items() if not path)
            raise ValueError(f"TLS needs tls_ca, tls_cert and tls_key; {missing} missing")

    @property
    def wire(self) -> WireSettings:
        if not self.tls_ca:
            return WireSettings()
        return WireSettings(tls=TlsSettings(self.tls_ca, self.tls_cert, self.tls_key, self.tls_crl))

    def __repr__(self) -> str:
        return f"LedgerSettings(url={redact(self.url)!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("url", redact(self.url))]


class CoordinatorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a coordinator. Times are in seconds."""

    timeout_s: float = 30.0
    """A transaction that is not decided within this time is aborted."""
    protocol: str = "2pc"
    agent: str = ""
    """For last-agent commit: the participant that is the agent of transactions which name none. Empty: the
    only participant that cannot prepare."""
    termination: Termination = Termination.QUORUM
    """How an interrupted three-phase commit ends: ``quorum``, or ``skeen``, which a partition can split."""
    session_ttl_s: float = 10.0
    """How long a dead coordinator's undecided transactions stay locked before recovery may abort them."""
    session_transactions_max: int = 100_000
    """After so many transactions the coordinator opens a new session, so that each stays small."""
    drain_s: float = 10.0
    """How long ``close`` waits for second phases that are still running; recovery does the rest."""
    name: str = ""
    """The name of this coordinator, shown to operators. Empty: host name and process id."""

    def __post_init__(self) -> None:
        seconds("timeout_s", self.timeout_s, zero=False)
        seconds("session_ttl_s", self.session_ttl_s, least=1)
        seconds("drain_s", self.drain_s)
        count("session_transactions_max", self.session_transactions_max, least=1)
        text("name", self.name)
        if text("protocol", self.protocol) not in PROTOCOLS:
            raise OutOfBounds("protocol", f"{self.protocol!r} is not one of: {', '.join(PROTOCOLS)}")
        text("agent", self.agent)
