"""A network in memory: connections as of TCP, between hosts, with everything that goes wrong with them.

What is written arrives in order, late, cut into other pieces than it was written in, or not at all. A link
between two hosts can be cut in each direction by itself: what is under way waits, as TCP's retransmissions
would, and goes on when the link heals, unless the connection was given up meanwhile. The end of a killed
process resets its connections, but only where the reset gets through: a peer behind a cut link keeps a
half-open connection until it sends something after the cut.

Items that are not bytes travel whole: the simulated databases speak in values.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.scheduler import Process, Scheduler

CONNECT_TIMEOUT_S = 20.0
GIVE_UP_S = 15.0
"""How long the kernel sends again into a cut link before it resets the connection."""
HIGH_WATER_BYTES = 64 * 1024


class Network:
    """``latency_s`` of a link is drawn around the link's own; ``cut`` holds ordered pairs of hosts."""

    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.scheduler = scheduler
        self.random = random
        self.cut: set[tuple[str, str]] = set()
        self.slow: dict[tuple[str, str], float] = {}
        self.down: set[str] = set()
        """Hosts without power: nothing is answered, not even with a reset."""
        self.latency_s = random.choice([0.0001, 0.0005, 0.002])
        self.listening: dict[Any, Listener] = {}
        self.connections: dict[int, Connection] = {}
        self.on_bytes: Callable[[End, bytes], None] | None = None
        self._numbers = itertools.count(1)

    def adopt(self, process: Process) -> None:
        """Give ``process`` this network."""
        process.loop.network = self
        process.on_kill.append(lambda: self._died(process))

    def listen(self, process: Process, factory: Any, address: Any, more: dict[str, Any]) -> Listener:
        if more.get("ssl") is not None:
            raise NotImplementedError("no TLS in the simulated network")
        if address in self.listening:
            raise OSError(98, f"address already in use: {address}")
        listener = self.listening[address] = Listener(self, process, factory, address)
        return listener

    async def connect(self, process: Process, factory: Any, address: Any, more: dict[str, Any]) -> Any:
        if more.get("ssl") is not None:
            raise NotImplementedError("no TLS in the simulated network")
        host = host_of(address, process.host)
        for _ in range(2):  # there and back
            await asyncio.sleep(self.delay_s(process.host, host))
        if host in self.down or self.blocked(process.host, host) or self.blocked(host, process.host):
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            raise TimeoutError(110, f"no answer from {address}")
        listener = self.listening.get(address)
        if listener is None:
            raise ConnectionRefusedError(111, f"connection refused: {address}")
        connection = Connection(self, next(self._numbers), process, listener.process, address)
        self.connections[connection.number] = connection
        connection.server.accept(listener.factory)
        connection.client.protocol = protocol = factory()
        protocol.connection_made(connection.client)
        return connection.client, protocol

    def blocked(self, source: str, target: str) -> bool:
        return source != target and (source, target) in self.cut

    def delay_s(self, source: str, target: str) -> float:
        if source == target:
            return self.random.uniform(0.000_01, 0.000_05)
        base = self.latency_s * self.slow.get((source, target), 1.0)
        return base * (1 + self.random.expovariate(2.0))

    def heal(self) -> None:
        """All links are whole again, at their ordinary speed."""
        self.cut.clear()
        self.slow.clear()
        self.resume()

    def resume(self) -> None:
        """Links have changed: what waits may go on."""
        for connection in list(self.connections.values()):
            connection.client.pump()
            connection.server.pump()

    def drop(self, process: Process) -> None:
        """Every connection of that process ends."""
        for connection in list(self.connections.values()):
            if process in (connection.client.process, connection.server.process):
                connection.reset()

    def _died(self, process: Process) -> None:
        for address in [at for at, listener in self.listening.items() if listener.process is process]:
            del self.listening[address]
        for connection in list(self.connections.values()):
            for end in (connection.client, connection.server):
                if end.process is process:
                    end.die()


def host_of(address: Any, own: str) -> str:
    """The machine that an address names: its first part; a unix socket's is the caller's own."""
    return str(address[0]) if isinstance(address, tuple) else own


class Listener:
    """What ``create_server`` returns."""

    def __init__(self, network: Network, process: Process, factory: Any, address: Any) -> None:
        self.network, self.process, self.factory, self.address = network, process, factory, address
        self.sockets: list[Any] = [FakeSocket(address)]

    def close(self) -> None:
        if self.network.listening.get(self.address) is self:
            del self.network.listening[self.address]

    def close_clients(self) -> None:
        """Connections outlive the listener, as asyncio's do."""

    async def wait_closed(self) -> None:
        return None

    def is_serving(self) -> bool:
        return self.network.listening.get(self.address) is self

    async def start_serving(self) -> None:
        return None

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class FakeSocket(socket.socket):
    """As much of a socket as anybody looks at: where it is, and whose process is at its other end."""

    def __init__(self, address: Any) -> None:  # the real one is never opened
        self.address = address

    def __repr__(self) -> str:
        return f"<socket {self.address}>"

    def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]
        return struct.pack("3i", os.getpid(), os.geteuid(), os.getegid())

    def setsockopt(self, *_: Any) -> None:
        return None

    def getsockname(self) -> Any:
        return self.address

    def getpeername(self) -> Any:
        return self.address


class Connection:
    def __init__(self, network: Network, number: int, client: Process, server: Process, address: Any) -> None:
        self.number = number
        self.client = End(network, self, client, address)
        self.server = End(network, self, server, address)
        self.client.peer, self.server.peer = self.server, self.client

    def reset(self) -> None:
        """Something on the way forgot it: both ends see a reset."""
        for end in (self.client, self.server):
            end._forget_waiting()
            end._lose(ConnectionResetError(104, "connection reset by peer"))
        self.client.network.connections.pop(self.number, None)


class End(asyncio.Transport):
    """One end of a connection: a transport. It carries what is written here to ``peer``."""

    peer: End

    def __init__(self, network: Network, connection: Connection, process: Process, address: Any) -> None:
        super().__init__()
        self.network, self.connection, self.process, self.address = network, connection, process, address
        self.protocol: Any = None
        self.closing = False
        self.gone = False
        """``connection_lost`` was called, or never will be because the process is dead."""
        self.waiting: deque[Any] = deque()
        self.waiting_bytes = 0
        self.reading = True
        self.unread: deque[Any] = deque()
        self._arrives_at = 0.0
        self._blocked_since: float | None = None
        self._paused_writing = False
        self._high = HIGH_WATER_BYTES

    def accept(self, factory: Callable[[], Any]) -> None:
        """The server's side: its protocol is made in its own process."""

        def accepted() -> None:
            self.protocol = factory()
            self.protocol.connection_made(self)

        self._call(accepted)

    # What asyncio promises of a transport.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = {"socket": FakeSocket(self.address), "peername": (self.peer.process.host, 0),
                 "sockname": (self.process.host, 0)}  # fmt: skip
        return found.get(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        while self.unread and self.reading and not self.gone:
            self._receive(self.unread.popleft())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:  # noqa: ARG002
        self._high = HIGH_WATER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return (self._high // 4, self._high)

    def can_write_eof(self) -> bool:
        return False

    def write(self, data: Any) -> None:
        if self.closing or self.gone:
            return
        if isinstance(data, bytes | bytearray | memoryview):
            data = bytes(data)
            if self.network.on_bytes is not None:
                self.network.on_bytes(self, data)
            self.waiting_bytes += len(data)
        self._send(data)
        if self.waiting_bytes > self._high and not self._paused_writing:
            self._paused_writing = True
            self._call(self.protocol.pause_writing)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._send(_Closed)
            self._lose(None)

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self._forget_waiting()
            self._send(_Reset)
            self._lose(None)

    # What happens beneath.

    def die(self) -> None:
        """The process was killed: its kernel resets the connection, if its machine still runs."""
        self.gone = self.closing = True
        if self.process.host not in self.network.down:
            self._send(_Reset)

    def _send(self, item: Any) -> None:
        self.waiting.append(item)
        self._schedule()

    def _schedule(self) -> None:
        source, target = self.process.host, self.peer.process.host
        when = self.network.scheduler.now + self.network.delay_s(source, target)
        self._arrives_at = max(self._arrives_at, when)
        self.network.scheduler.at(self._arrives_at, self.pump)

    def pump(self) -> None:
        """The next of what waits arrives, if the link is whole; all of it, if the link was not."""
        source, target = self.process.host, self.peer.process.host
        if source in self.network.down:
            self._forget_waiting()
        if not self.waiting:
            return
        if self.network.blocked(source, target) or target in self.network.down:
            if self._blocked_since is None:
                self._blocked_since = self.network.scheduler.now
                self.network.scheduler.after(GIVE_UP_S, self._give_up)
            return
        count = 1 if self._blocked_since is None else len(self.waiting)
        self._blocked_since = None
        for _ in range(count):
            if self.waiting:
                item = self.waiting.popleft()
                self._arrive(self._piece(item) if isinstance(item, bytes) else item)

    def _piece(self, data: bytes) -> bytes:
        """A stream has no borders: at times only part of it comes now, at times more than was written."""
        draw = self.network.random.random()
        if draw < 0.1 and len(data) > 1:
            at = self.network.random.randrange(1, len(data))
            self.waiting.appendleft(data[at:])
            data = data[:at]
            self._schedule()
        elif draw < 0.3 and self.waiting and isinstance(self.waiting[0], bytes):
            data += self.waiting.popleft()
        self.waiting_bytes -= len(data)
        if self._paused_writing and self.waiting_bytes <= self._high // 4:
            self._paused_writing = False
            self._call(self.protocol.resume_writing)
        return data

    def _give_up(self) -> None:
        since = self._blocked_since
        if since is not None and self.network.scheduler.now - since >= GIVE_UP_S - 0.001:
            self._forget_waiting()
            self._lose(TimeoutError(110, "connection timed out"))

    def _arrive(self, item: Any) -> None:
        peer = self.peer
        if peer.gone:
            if item is not _Reset and not self.gone:  # its kernel answers for the dead
                self._forget_waiting()
                self._lose(ConnectionResetError(104, "connection reset by peer"))
            self.network.connections.pop(self.connection.number, None)
            return
        peer._receive(item)

    def _receive(self, item: Any) -> None:
        if item is _Reset:
            self._lose(ConnectionResetError(104, "connection reset by peer"))
        elif not self.reading:
            self.unread.append(item)
        elif item is _Closed:
            self._call(self._end_of_file)
        else:
            self._call(self._data, item)

    def _data(self, item: Any) -> None:
        if not self.gone and not self.closing:
            self.protocol.data_received(item)

    def _end_of_file(self) -> None:
        if not self.gone and not self.closing:
            keep = self.protocol.eof_received()
            if not keep:
                self.close()

    def _forget_waiting(self) -> None:
        self.waiting.clear()
        self.waiting_bytes = 0

    def _lose(self, error: Exception | None) -> None:
        self.closing = True
        self._call(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        if not self.gone:
            self.gone = True
            self.protocol.connection_lost(error)

    def _call(self, function: Callable[..., object], *args: Any) -> None:
        if self.process.alive:
            self.process.loop.call_soon(function, *args)


class _Closed:
    """The peer will write nothing more."""


class _Reset:
    """The peer knows nothing of this connection."""
