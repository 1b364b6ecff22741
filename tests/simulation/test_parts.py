"""The simulated parts keep to their rules: else a run would prove something about another world."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from tests.simulation.network import GIVE_UP_S, Network
from tests.simulation.scheduler import Process, Scheduler

KEPT: list[object] = []
"""What stood still in a killed process must not be woken by the garbage collector."""


class Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: list[object] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Two:
    """A server on host ``b``, a client on host ``a``, connected."""

    def __init__(self, seed: int) -> None:
        self.scheduler = Scheduler(Random(seed))
        self.network = Network(self.scheduler, Random(seed))
        self.client, self.server = (Process(self.scheduler, host, host) for host in ("a", "b"))
        self.near, self.far = Collector(), Collector()
        for process in (self.client, self.server):
            self.network.adopt(process)
        self.server.start(lambda: self.server.loop.create_server(lambda: self.far, "b", 1), "serve")
        self.run(0.1)
        self.client.start(lambda: self.client.loop.create_connection(lambda: self.near, "b", 1), "connect")
        self.run(0.1)
        KEPT.append(self)

    def run(self, seconds: float) -> None:
        self.scheduler.run(self.scheduler.now + seconds)

    def write(self, data: bytes) -> None:
        self.client.loop.call_soon(self.near.transport.write, data)


@pytest.fixture(params=range(10))
def two(request: pytest.FixtureRequest) -> Two:
    return Two(request.param)


def test_a_stream_arrives_whole_and_in_order(two: Two) -> None:
    """Broken if the network loses or swaps bytes of a connection that lives: TCP does neither."""
    pieces = [bytes([number % 256]) * (number + 1) for number in range(200)]
    for number, piece in enumerate(pieces):
        two.write(piece)
        if number % 50 == 0:
            two.network.cut.add(("a", "b"))
            two.run(0.5)
            two.network.heal()
    two.run(5.0)
    assert two.far.received == b"".join(pieces)


def test_a_cut_holds_back_one_direction_only(two: Two) -> None:
    """Broken if a one-way partition is none, or is one both ways."""
    two.network.cut.add(("a", "b"))
    two.write(b"there")
    two.server.loop.call_soon(two.far.transport.write, b"back")
    two.run(1.0)
    assert (two.far.received, two.near.received) == (b"", b"back")
    two.run(GIVE_UP_S)
    assert len(two.near.lost) == 1
    assert two.far.lost == []


def test_a_peer_behind_a_cut_does_not_learn_of_a_death(two: Two) -> None:
    """Broken if there are no half-open connections: real ones last until somebody writes."""
    two.network.cut.add(("b", "a"))
    two.server.kill()
    two.run(1.0)
    assert two.near.lost == []
    two.network.heal()
    two.run(1.0)
    assert len(two.near.lost) == 1


def test_a_killed_process_runs_nothing_more() -> None:
    """Broken if a crash lets code clean up: a real one does not."""
    scheduler = Scheduler(Random(1))
    process, ran = Process(scheduler, "p", "p"), list[str]()
    KEPT.append((scheduler, process))

    async def main() -> None:
        try:
            await asyncio.sleep(1.0)
            ran.append("woke up")
        finally:
            ran.append("cleaned up")

    process.start(main, "main")
    scheduler.run(0.5)
    process.kill()
    scheduler.run(5.0)
    assert ran == []


def test_a_stopped_process_goes_on_where_it_was() -> None:
    """Broken if SIGSTOP is a crash, or stops the clock as well."""
    scheduler = Scheduler(Random(1))
    process, moments = Process(scheduler, "p", "p"), list[float]()
    KEPT.append((scheduler, process))

    async def main() -> None:
        while True:
            moments.append(scheduler.now)
            await asyncio.sleep(0.1)

    process.start(main, "main")
    scheduler.run(1.05)
    process.pause(True)
    scheduler.run(5.0)
    process.pause(False)
    scheduler.run(6.0)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert max(gaps) > 3.9
    assert sorted(gaps)[-2] < 0.2
    assert moments[-1] > 5.8


def test_a_seed_decides_who_is_faster() -> None:
    """Broken if every seed runs the processes in the same order: races would never be met."""

    def order(seed: int) -> tuple[str, ...]:
        scheduler = Scheduler(Random(seed))
        ran: list[str] = []
        for name in ("a", "b", "c"):
            process = Process(scheduler, name, name)
            KEPT.append((scheduler, process))
            process.start(_steps(ran, name), name)
        scheduler.run(1.0)
        return tuple(ran)

    assert len({order(seed) for seed in range(10)}) > 5
    assert order(3) == order(3)


def _steps(ran: list[str], name: str) -> Callable[[], Any]:
    async def main() -> None:
        for _ in range(5):
            ran.append(name)
            await asyncio.sleep(0)

    return main
