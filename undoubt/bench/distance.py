"""A proxy that adds a distance: it passes on each byte half a round trip after it has received it.

``python -m undoubt.bench.distance PORT MICROSECONDS`` listens on a free port of 127.0.0.1, prints this port,
and connects each client to ``PORT``. It adds the delay to both directions. Establishing a connection is not
delayed. The loop is written on select(2), because the timeout of epoll(7), and with it asyncio's, has
milliseconds.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from undoubt.serve.local.parent import die_with_parent

READ_BYTES = 1 << 16
HELD_BYTES_MAX = 1 << 20
"""Of one direction; a sender that is faster waits, as behind a full socket buffer."""
PLACE = "127.0.0.1"


@dataclass(eq=False, slots=True)
class Direction:
    """One direction of a connection. ``held_bytes``: received, and not yet sent. ``due``: may be sent now."""

    source: socket.socket
    sink: socket.socket
    held_bytes: int = 0
    due: bytearray = field(default_factory=bytearray)
    ending: bool = False
    """The source has sent all, and ``due`` is the rest."""
    ended: bool = False
    """The sink has been told that it has received all."""
    back: Direction | None = None
    """The other direction of the same connection."""


class Distance:
    """The proxy in front of ``port``; ``delay_s`` is the delay of each direction. :meth:`step` serves."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._target = (PLACE, port)
        self._delay_s = delay_s
        self._listener = socket.create_server((PLACE, 0), backlog=1024)
        self._directions: dict[socket.socket, Direction] = {}
        """By source; a source that has sent all is not in it."""
        self._blocked: dict[socket.socket, Direction] = {}
        """By sink: the kernel had no room for all of ``due``."""
        self._waiting: deque[tuple[float, Direction, bytes]] = deque()
        """In the order of the times at which they are due, because all have the same delay."""

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def step(self) -> None:
        """Wait until something can be done, and do it."""
        readers = [self._listener, *(s for s, d in self._directions.items() if d.held_bytes < HELD_BYTES_MAX)]
        timeout_s = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
        readable, writable, _ = select.select(readers, list(self._blocked), [], timeout_s)
        for source in readable:
            if source is self._listener:
                self._accept()
            elif source in self._directions:
                self._receive(self._directions[source])
        for sink in writable:
            if sink in self._blocked:
                self._send(self._blocked[sink])
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, direction, data = self._waiting.popleft()
            direction.due += data
            direction.ending |= not data
            self._send(direction)

    def close(self) -> None:
        self._listener.close()
        for direction in [*self._directions.values(), *(each for _, each, _ in self._waiting)]:
            self._end(direction)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()  # the client sees what it would see without a proxy: nobody listens, or is gone
            return
        there, back = Direction(client, server), Direction(server, client)
        there.back, back.back = back, there
        for direction in (there, back):
            direction.source.setblocking(False)
            direction.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._directions[direction.source] = direction

    def _receive(self, direction: Direction) -> None:
        try:
            data = direction.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end(direction)
            return
        direction.held_bytes += len(data)
        if not data:
            del self._directions[direction.source]
        self._waiting.append((time.monotonic() + self._delay_s, direction, data))

    def _send(self, direction: Direction) -> None:
        try:
            sent = direction.sink.send(direction.due) if direction.due else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end(direction)
            return
        direction.held_bytes -= sent
        del direction.due[:sent]
        if direction.due:
            self._blocked[direction.sink] = direction
            return
        self._blocked.pop(direction.sink, None)
        if direction.ending and not direction.ended:
            direction.ended = True
            if direction.back is not None and direction.back.ended:
                self._end(direction)
                return
            with contextlib.suppress(OSError):  # the other end may be gone
                direction.sink.shutdown(socket.SHUT_WR)

    def _end(self, direction: Direction) -> None:
        for each in (direction.source, direction.sink):
            self._directions.pop(each, None)
            self._blocked.pop(each, None)
            each.close()


def main(port: int, microseconds: int) -> None:
    distance = Distance(port, microseconds / 1e6)
    print(distance.port, flush=True)
    while True:
        distance.step()


if __name__ == "__main__":
    die_with_parent()
    main(int(sys.argv[1]), int(sys.argv[2]))
