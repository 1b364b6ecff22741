"""Defines the settings of a node's console, which ``undoubt.config`` loads. A sidecar serves the console at
its own addresses, to its own clients."""

from __future__ import annotations

import msgspec

from undoubt.participants.bounds import path, texts
from undoubt.serve.sidecar.settings import SidecarSettings, TokenSettings


class ConsoleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a node with ``node.console`` serves its console, and to which clients."""

    listen: str = "127.0.0.1:7480"
    """``host:port``; needs TLS unless it is a loopback address."""
    tls_cert: str = ""
    """PEM files of the certificate that browsers see, and its key."""
    tls_key: str = ""
    tls_ca: str = ""
    """PEM file of the CAs that sign clients' certificates; empty: clients show tokens."""
    hosts: tuple[str, ...] = ()
    """Names that requests may call this server by (``Host``), besides the address that it listens on."""
    tokens: tuple[TokenSettings, ...] = ()

    def __post_init__(self) -> None:
        for name in ("tls_cert", "tls_key", "tls_ca"):
            path(name, getattr(self, name), empty=True)
        texts("hosts", self.hosts)
        self.server  # noqa: B018 - raises

    @property
    def server(self) -> SidecarSettings:
        """The same, for the HTTP server of the sidecar."""
        return SidecarSettings(
            socket="",
            listen=self.listen,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_ca=self.tls_ca,
            hosts=self.hosts,
            tokens=self.tokens,
        )
