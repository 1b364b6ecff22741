"""A way to a server that a test makes slow, or cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

SLOW_BYTES = 100
SLOW_S = 0.2
STREAM = b"GET /v1/console/events"


@dataclass
class SlowNetwork:
    """``base``: the server's address on this way. Once ``slow`` is set, each stream of events passes at
    :data:`SLOW_BYTES` in :data:`SLOW_S` seconds, which is less than the server sends; other requests pass as
    they come."""

    base: str = ""
    slow: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None
    carried: set[asyncio.Task[None]] = field(default_factory=set)

    def cut(self) -> None:
        """Close all connections, and take no more."""
        assert self.server is not None
        self.server.close()
        for task in self.carried:
            task.cancel()

    def accept(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(port, reader, writer))
        self.carried.add(task)
        task.add_done_callback(self.carried.discard)

    async def _carry(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        streams = asyncio.Event()

        async def up() -> None:
            while data := await reader.read(65_536):
                if STREAM in data:
                    streams.set()
                back.write(data)
                await back.drain()
            back.close()

        async def down() -> None:
            while data := await there.read(SLOW_BYTES):
                if streams.is_set() and self.slow.is_set():
                    await asyncio.sleep(SLOW_S)
                writer.write(data)
                await writer.drain()
            writer.close()

        try:
            await asyncio.gather(up(), down())
        except ConnectionError:
            pass  # either end has closed it
        finally:
            for end in (writer, back):
                end.transport.abort()


@asynccontextmanager
async def slow_network(base: str) -> AsyncIterator[SlowNetwork]:
    made = SlowNetwork()
    port = int(base.rsplit(":", 1)[1])
    made.server = await asyncio.start_server(lambda *ends: made.accept(port, *ends), "127.0.0.1", 0)
    made.base = f"http://127.0.0.1:{made.server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        made.cut()
        await asyncio.gather(*made.carried, return_exceptions=True)
