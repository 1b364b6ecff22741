"""Defines the settings of the sidecar, which ``undoubt.config`` loads."""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from undoubt.participants.bounds import SERVER_TIMEOUT_S_MAX, OutOfBounds, count, path, seconds, text, texts
from undoubt.participants.ids import InvalidName, check_participant_name

ROLES = ("transact", "observe", "operate")
"""``transact``: begin transactions, and end one's own. ``observe``: see all of them, and metrics.
``operate``: roll back others'."""
EVERYTHING = "*"
"""Stands for all participants in a list of their names."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
_LISTEN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")


class TokenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One client: its credential, and its rights. ``sha256`` or ``certificate`` is required."""

    name: str
    """The name of the client in the access log."""
    sha256: str = ""
    """The SHA-256 of its bearer token, as 64 hexadecimal digits. The token itself is in no file of the
    sidecar."""
    certificate: str = ""
    """The common name, a DNS name or a URI in its TLS certificate."""
    roles: tuple[str, ...] = ("transact",)
    participants: tuple[str, ...] = ()
    """The participants in which the client may have branches; ``*``: all."""
    expires: datetime | None = None
    """The time from which on the client is refused."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(text("name", self.name)):
            raise OutOfBounds("name", f"must be letters, digits, '_', '.' or '-', not {self.name!r}")
        if not self.sha256 and not self.certificate:
            raise OutOfBounds("sha256", f"or certificate is needed for {self.name!r}")
        if self.sha256 and not _SHA256.fullmatch(text("sha256", self.sha256)):
            raise OutOfBounds("sha256", f"of {self.name!r} must be 64 hexadecimal digits in lower case")
        text("certificate", self.certificate)
        for role in texts("roles", self.roles):
            if role not in ROLES:
                raise OutOfBounds("roles", f"of {self.name!r}: {role!r} is not one of: {', '.join(ROLES)}")
        for name in texts("participants", self.participants):
            try:
                check_participant_name("p" if name == EVERYTHING else name)
            except InvalidName as error:
                raise OutOfBounds("participants", f"of {self.name!r}: {error}") from None
        if "transact" in self.roles and not self.participants:
            raise OutOfBounds("participants", f'of {self.name!r} must name some, or be ["{EVERYTHING}"]')
        if self.expires is not None and self.expires.tzinfo is None:
            raise OutOfBounds("expires", f"of {self.name!r} must have a time zone: 2027-01-31T00:00:00Z")

    def __repr__(self) -> str:
        return f"TokenSettings(name={self.name!r}, roles={self.roles}, participants={self.participants})"


class SidecarSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP API. Times are in seconds, sizes in bytes."""

    socket: str = "undoubt-sidecar.run/http.sock"
    """The path of the unix socket, in a separate folder that only this user can enter; empty: none. Clients
    at the socket need no token."""
    listen: str = ""
    """``host:port`` for TCP; empty: none. Needs tokens, and TLS unless it is a loopback address."""
    url: str = ""
    """``http(s)://host:port`` at which the sidecars of other services reach this one; empty: they cannot."""
    token_file: str = ""
    """The path of the file with the token that this sidecar sends to other sidecars; empty: it uses its
    certificate."""
    tls_cert: str = ""
    """PEM files of the certificate that clients see, and its key."""
    tls_key: str = ""
    tls_ca: str = ""
    """PEM file of the CAs that sign clients' certificates; empty: clients need no certificate."""
    hosts: tuple[str, ...] = ()
    """Names that requests may call this server by (``Host``), besides the address that it listens on."""
    tokens: tuple[TokenSettings, ...] = ()
    timeout_max_s: float = 3600.0
    """The longest timeout that a caller may choose for a transaction."""
    wait_max_s: float = 60.0
    """The longest that a request may wait for an outcome (``Prefer: wait``)."""
    kept_s: float = 300.0
    """How long the outcomes of transactions, and the answers to requests with keys, are kept in memory."""
    transactions_max: int = 1000
    """The maximum number of open transactions."""
    branches_max: int = 64
    """The maximum number of branches of one transaction."""
    requests_max: int = 256
    """The maximum number of requests that are being served."""
    keys_max: int = 100_000
    """The maximum number of kept answers to requests with keys."""
    keys_bytes_max: int = 128 * 1024 * 1024
    """The maximum size of all kept answers together, in bytes."""
    body_bytes_max: int = 1024 * 1024
    """Of a request."""
    body_timeout_s: float = 10.0
    """The longest wait for the head of a request, and then for its body."""
    rows_max: int = 10_000
    """The maximum number of rows in the answer to a statement; more rows abort the transaction."""
    rows_bytes_max: int = 8 * 1024 * 1024
    """The maximum size of the values in the answer to a statement, in bytes; more bytes abort the
    transaction."""
    drain_s: float = 10.0
    """How long the sidecar waits for open transactions before it ends."""

    def __post_init__(self) -> None:
        for name in ("socket", "tls_cert", "tls_key", "tls_ca", "token_file"):
            path(name, getattr(self, name), empty=True)
        if self.listen:
            self.address  # noqa: B018 - raises
        if self.url and not _URL.fullmatch(text("url", self.url)):
            raise OutOfBounds("url", f"must be http://host:port or https://host:port, not {self.url!r}")
        texts("hosts", self.hosts)
        for name in ("timeout_max_s", "body_timeout_s"):
            seconds(name, getattr(self, name), zero=False, most=SERVER_TIMEOUT_S_MAX)
        for name in ("wait_max_s", "kept_s", "drain_s"):
            seconds(name, getattr(self, name))
        for name in ("transactions_max", "branches_max", "requests_max", "keys_max", "rows_max"):
            count(name, getattr(self, name), least=1)
        for name in ("body_bytes_max", "rows_bytes_max", "keys_bytes_max"):
            count(name, getattr(self, name), least=1024)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("TLS needs both tls_cert and tls_key")
        if self.tls_ca and not self.tls_cert:
            raise ValueError("tls_ca needs tls_cert and tls_key")
        names = [token.name for token in self.tokens]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise OutOfBounds("tokens", f"has two of the name {doubled[0]!r}")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of ``listen``."""
        match = _LISTEN.fullmatch(text("listen", self.listen))
        if match is None or int(match["port"]) > 65_535:
            raise OutOfBounds("listen", f"must be host:port, not {self.listen!r}")
        return match["host"].strip("[]"), int(match["port"])
