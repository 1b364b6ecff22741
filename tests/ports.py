"""TCP ports for the servers that tests start.

They lie below the range from which the system takes the ports of outgoing connections
(``net.ipv4.ip_local_port_range``, 32768 and up): a server that is killed finds its port free when it starts
again, whatever the other tests on the machine connect to meanwhile.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

FIRST, AFTER = 10_000, 32_000

_offsets = itertools.count(os.getpid() * 101)
"""Processes that run tests side by side begin at places of their own."""


def free_ports(count: int) -> list[int]:
    """Different ones, which nobody listens on at present, and which this process has not given out before, as
    long as there are others."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            offset = next(_offsets)
            port = FIRST + offset % (AFTER - FIRST)
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


__all__ = ["free_ports"]
