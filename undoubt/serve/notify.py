"""Tells the service manager how this process is, where there is one (systemd's sd_notify(3) protocol)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """``READY=1``, ``STOPPING=1``, ``STATUS=…``; does nothing where nobody asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))
