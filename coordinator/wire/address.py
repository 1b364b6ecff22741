"""The address at which a node listens."""

from __future__ import annotations

import ipaddress

import msgspec

from undoubt.participants.errors import UsageError


class Address(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A host (a name, or an address without brackets) and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, port: int | None = None) -> Address:
        """``host:port`` or ``[2001:db8::1]:port``; ``port`` is the default if none is given. Raises
        ``ValueError``."""
        host, colon, digits = text.rpartition(":")
        if text.endswith("]") or (not colon and port is not None):
            host, digits = text, "" if port is None else str(port)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address needs brackets, as in [::1]:7400")
        if not _may_be_host(host) or not digits.isascii() or not digits.isdigit() or int(digits) > 65535:
            raise ValueError(f"{text!r} is not host:port, as in 10.0.0.1:7400")
        return cls(host, int(digits))

    @property
    def loopback(self) -> bool:
        """Whether the address can be reached from this machine only. False for names other than localhost."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _may_be_host(host: str) -> bool:
    """Whether ``host`` can be given to the resolver, which raises something else than ``OSError`` if not."""
    try:
        return bool(host.encode("idna")) and host.isprintable()
    except UnicodeError:
        return False


def refuse_exposed(where: Address, *, tls: bool, insecure: bool, way_out: str) -> None:
    """Raises ``UsageError`` for an address that other machines can reach and that has no TLS: any peer would
    be believed. ``insecure``: the user has declared the network trusted. ``way_out`` says how TLS is set
    up."""
    if not (where.loopback or tls or insecure):
        raise UsageError(
            f"{where} can be reached from other machines, and without TLS any process there could"
            f" decide transactions: {way_out}, or listen on 127.0.0.1; pass --insecure only if the network"
            " itself is trusted"
        )
