"""The owner's unix socket, in a folder beside the ledger that only its user can enter.

Addresses of unix sockets are short (107 bytes, unix(7)), paths of ledgers need not be: the address goes
through the folder's open descriptor in ``/proc/self/fd``.
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
    """A bound, not yet listening socket in place of what a former owner left. Raises ``LedgerUnusable``."""
    place = folder(ledger)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        place.chmod(0o700)
        with _address(place) as address:
            with contextlib.suppress(FileNotFoundError):
                (place / SOCKET_NAME).unlink()
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            door.bind(address)
        (place / SOCKET_NAME).chmod(0o600)
    except OSError as error:
        raise LedgerUnusable(f"cannot listen in {place}: {error.strerror}") from error
    return door


def connect(ledger: Path) -> socket.socket:
    """A socket connected to the owner. Raises ``OSError``."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(folder(ledger)) as address:
            door.connect(address)
        door.setblocking(False)
    except BaseException:
        door.close()
        raise
    return door


@contextlib.contextmanager
def _address(place: Path) -> Iterator[str]:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
