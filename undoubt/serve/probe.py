"""Asks a node or a sidecar of this machine whether it lives, or is ready: for probes that run a command."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from undoubt.config import Settings
from undoubt.participants.errors import UsageError
from undoubt.serve.bootstrap import parsed


class NotHealthy(Exception):
    """The service did not answer at all, or not as one that lives; with the reason."""


def node(settings: Settings) -> Callable[[float], http.client.HTTPConnection]:
    """How the node of ``settings`` is reached, within a number of seconds. Raises ``UsageError``."""
    if not settings.node.health:
        raise UsageError('node.health is not set: for example health = "127.0.0.1:7482"')
    where = parsed(settings.node.health)
    return lambda timeout_s: http.client.HTTPConnection(_local(where.host), where.port, timeout=timeout_s)


def sidecar(settings: Settings) -> Callable[[float], http.client.HTTPConnection]:
    """How the sidecar of ``settings`` is reached, within a number of seconds. Raises ``UsageError``."""
    mine = settings.sidecar
    if mine.socket:
        return lambda timeout_s: _UnixConnection(Path(mine.socket), timeout_s)
    if not mine.listen:
        raise UsageError("the sidecar listens nowhere: set sidecar.socket or sidecar.listen")
    host, port = mine.address
    if mine.tls_cert:
        # The certificate is for the names that clients use. Nothing secret is sent, and what a process that
        # has taken the port would answer decides nothing.
        context = ssl._create_unverified_context()  # noqa: S323
        return lambda timeout_s: http.client.HTTPSConnection(
            _local(host), port, timeout=timeout_s, context=context
        )
    return lambda timeout_s: http.client.HTTPConnection(_local(host), port, timeout=timeout_s)


def ask(connect: Callable[[float], http.client.HTTPConnection], path: str, timeout_s: float) -> None:
    """Return if the service answers ``path`` with 200. Raises :class:`NotHealthy`."""
    connection = connect(timeout_s)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise NotHealthy(str(error) or type(error).__name__) from error
    if answer.status != 200:
        raise NotHealthy(f"{path} answers {answer.status}: {body}")


def _local(host: str) -> str:
    """An address of this machine at which a server that listens at ``host`` is reached."""
    with contextlib.suppress(ValueError):
        if (address := ipaddress.ip_address(host)).is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("sidecar", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))
