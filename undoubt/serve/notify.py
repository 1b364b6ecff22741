"""Reports the state of this process to the service manager, by systemd's sd_notify(3) protocol.

A unit with ``WatchdogSec=`` restarts a process that no longer reports. The report is made on the event loop,
by :func:`reporting`: a thread would go on to report while the loop hangs, and no request is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

REPORTS = 3
"""Reports in the time after which the service manager takes the process for hung."""


def notify(*lines: str) -> None:
    """Send ``lines`` (``READY=1``, ``STOPPING=1``, ``STATUS=…``); does nothing if the service manager has not
    set ``NOTIFY_SOCKET``. Never blocks: a report that the service manager does not take is dropped."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.setblocking(False)
        manager.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))


@contextlib.asynccontextmanager
async def reporting(status: str) -> AsyncIterator[None]:
    """Report that this process serves, with ``status`` for people, then that it lives, as often as the
    service manager wants to be told; at the exit, that it is about to end. Enter it once the process accepts
    requests."""
    notify("READY=1", f"STATUS={status}")
    living: asyncio.Task[None] | None = None
    if interval_s := watchdog_s() / REPORTS:
        living = asyncio.create_task(_live(interval_s), name="undoubt-watchdog")
    try:
        yield
    finally:
        notify("STOPPING=1")
        if living is not None:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)


def watchdog_s() -> float:
    """The time after which the service manager takes this process for hung, in seconds; 0: never. By
    sd_watchdog_enabled(3): ``WATCHDOG_PID`` names the process that is meant, from which this one may have
    inherited its environment."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0.0


async def _live(interval_s: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)
