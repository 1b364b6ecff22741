"""The proxy that adds a distance passes on every byte, in order, and no end of a connection too early."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from undoubt.bench import distance
from undoubt.bench.distance import Distance

DELAY_S = 0.02
LONG = bytes(range(256)) * 20_000


@contextmanager
def served(answer: Callable[[socket.socket], None], delay_s: float = DELAY_S) -> Iterator[socket.socket]:
    """A client that is connected to a server through the proxy; ``answer`` is the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Distance(listener.getsockname()[1], delay_s)
        stop = threading.Event()

        def serve() -> None:
            server, _ = listener.accept()
            with closing(server):
                answer(server)

        def carry() -> None:
            while not stop.is_set():
                proxy.step()

        serving, carrying = threading.Thread(target=serve), threading.Thread(target=carry)
        serving.start()
        carrying.start()
        try:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as client:
                yield client
        finally:
            serving.join(30)
            stop.set()
            with socket.create_connection(("127.0.0.1", proxy.port)):  # wakes the proxy
                carrying.join(30)
            proxy.close()


def everything(one: socket.socket) -> bytes:
    return b"".join(iter(lambda: one.recv(1 << 16), b""))


def test_what_was_sent_arrives_wholly_in_both_directions() -> None:
    """The end of one direction leaves the other open, and neither loses what was sent before it."""

    def answer(server: socket.socket) -> None:
        server.sendall(everything(server)[::-1])

    with served(answer) as client:
        client.sendall(LONG)
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == LONG[::-1]


def test_both_may_end_at_the_same_time() -> None:
    together = threading.Barrier(2)
    received: list[bytes] = []

    def answer(server: socket.socket) -> None:
        together.wait()
        server.sendall(b"from the server")
        server.shutdown(socket.SHUT_WR)
        received.append(everything(server))

    with served(answer) as client:
        together.wait()
        client.sendall(b"from the client")
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b"from the server"
    assert received == [b"from the client"]


def test_a_reader_that_is_slow_holds_the_sender_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the proxy would keep all of it in memory, and hide a full connection from its sender."""
    monkeypatch.setattr(distance, "HELD_BYTES_MAX", 1 << 12)
    read = threading.Event()
    received: list[bytes] = []

    def answer(server: socket.socket) -> None:
        read.wait()
        received.append(everything(server))

    with served(answer) as client:
        client.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += client.send(LONG)
        assert sent
        read.set()
        client.settimeout(30)
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b""
    assert len(received[0]) == sent


def test_a_byte_arrives_no_earlier_than_after_half_a_round_trip() -> None:
    """By the clock of the proxy: a delay that were left out would show as too few round trips."""
    clock = [100.0]
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        patched.setattr(time, "monotonic", lambda: clock[0])
        waits: list[float | None] = []
        wait = select.select

        def at_once(readers: list[Any], writers: list[Any], _: list[Any], timeout: float | None) -> object:
            waits.append(timeout)
            return wait(readers, writers, [], 0 if timeout is not None else 30)

        patched.setattr(select, "select", at_once)
        proxy = stack.enter_context(closing(Distance(listener.getsockname()[1], DELAY_S)))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
        proxy.step()  # accepts
        server = stack.enter_context(listener.accept()[0])
        server.setblocking(False)
        client.sendall(b"x")
        proxy.step()  # receives
        clock[0] += DELAY_S * 0.75
        proxy.step()
        with pytest.raises(BlockingIOError):
            server.recv(1)
        clock[0] += DELAY_S * 0.5
        proxy.step()
        server.setblocking(True)
        assert server.recv(1) == b"x"
    assert waits[:2] == [None, None]
    assert waits[2:] == [pytest.approx(DELAY_S * 0.25), 0.0]
