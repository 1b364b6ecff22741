"""Reports the state of this process to the service manager, by systemd's sd_notify(3) protocol."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send ``lines`` (``READY=1``, ``STOPPING=1``, ``STATUS=…``); does nothing if the service manager has not
    set ``NOTIFY_SOCKET``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))
