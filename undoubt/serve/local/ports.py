"""Finds and reserves free TCP ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

HELD = sys.platform == "linux"
"""Whether :func:`reserved_ports` can keep other processes from a port on this system."""


def free_ports(count: int) -> list[int]:
    """``count`` different ports that no socket uses at this moment."""
    with contextlib.ExitStack() as stack:
        return _bound(count, stack)


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports that the system assigns to no other process inside the block, even if no process listens on
    them.

    A socket is bound to each port and does not listen. On Linux a second socket may then listen on that port
    if both set SO_REUSEADDR, as asyncio, uvloop, uvicorn and PostgreSQL do, and a process that asks for any
    free port does not get it (socket(7)). On other systems the ports are only free at the beginning."""
    with contextlib.ExitStack() as stack:
        if HELD:
            yield _bound(count, stack)
        else:
            yield free_ports(count)


def _bound(count: int, stack: contextlib.ExitStack) -> list[int]:
    doors = [stack.enter_context(socket.socket()) for _ in range(count)]
    for door in doors:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", 0))
    return [door.getsockname()[1] for door in doors]
