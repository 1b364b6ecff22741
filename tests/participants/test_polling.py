"""Waiting for the socket of a connection: its end is noticed, whatever event loop runs."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Generator

import pytest
import uvloop
from psycopg.waiting import Ready, Wait

from undoubt.participants.postgres.psycopg.polling import Polling

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def reset(connection: socket.socket) -> None:
    """Close it so that the other side is told of an error, as by a server that has not read everything."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def reads(connection: socket.socket) -> Generator[Wait, Ready | int, bytes]:
    """All that is sent, until the connection ends by an error."""
    found = b""
    while True:
        yield Wait.R
        try:
            found += connection.recv(100)
        except ConnectionResetError:
            return found


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_is_reset(loop: str) -> None:
    """Broken if it is waited for until the time limit: then an outcome that the server has told is unknown to
    the caller, and the connection is held meanwhile."""

    async def run() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            here = socket.create_connection(listening.getsockname())
            there, _ = listening.accept()
        here.setblocking(False)
        polling = Polling(reads(here), here.fileno(), 300)
        there.send(b"the reason")
        reset(there)  # before the event loop has looked: it finds both at once
        found: bytes = await asyncio.wait_for(polling, 60)
        # The event loop can look at the next socket of that number.
        again, other = socket.socketpair()
        again.setblocking(False)
        fd = here.detach()
        os.dup2(again.fileno(), fd)
        other.send(b"next")
        other.close()
        assert await asyncio.wait_for(Polling(once(again), fd, 300), 60) == b"next"
        again.close()
        os.close(fd)
        return found

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert runner.run(run()) in {b"", b"the reason"}  # TCP may discard what was not read yet


def once(connection: socket.socket) -> Generator[Wait, Ready | int, bytes]:
    yield Wait.R
    return connection.recv(100)


async def test_a_socket_with_nothing_to_read_is_waited_for() -> None:
    """Broken if the look at a silent socket counts as an answer: the reader would block the event loop."""
    here, there = socket.socketpair()
    here.setblocking(False)
    polling = Polling(once(here), here.fileno(), 1.2)  # two looks
    with pytest.raises(TimeoutError, match="no answer in time"):
        await polling
    there.close()
    here.close()
