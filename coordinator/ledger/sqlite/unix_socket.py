"""The owner's unix socket, in a folder beside the ledger that only the ledger's user can enter.

The address of a unix socket has at most 107 bytes (unix(7)), and the path of a ledger may be longer: so the
address goes through the open descriptor of the folder in ``/proc/self/fd``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from undoubt.coordinator.errors import LedgerUnusable

SOCKET_NAME = "ledger.sock"


def folder(ledger: Path) -> Path:
    return ledger.with_name(ledger.name + ".run")


def listen(ledger: Path) -> socket.socket:
    """A bound socket that does not listen yet; it replaces the socket of a former owner. Raises
    ``LedgerUnusable``."""
    place = folder(ledger)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        place.chmod(0o700)
        with _address(place) as address:
            with contextlib.suppress(FileNotFoundError):
                (place / SOCKET_NAME).unlink()
            bound_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            bound_socket.bind(address)
        (place / SOCKET_NAME).chmod(0o600)
    except OSError as error:
        raise LedgerUnusable(f"cannot listen in {place}: {error.strerror}") from error
    return bound_socket


def connect(ledger: Path) -> socket.socket:
    """A socket connected to the owner. Raises ``OSError``."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(folder(ledger)) as address:
            connected.connect(address)
        connected.setblocking(False)
    except BaseException:
        connected.close()
        raise
    return connected


@contextlib.contextmanager
def _address(place: Path) -> Iterator[str]:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
