"""Receivers that hang: whom a relay keeps waiting for them, and for how long."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from tests.undoubt.relay.conftest import Shop
from undoubt.participants.outbox import Message
from undoubt.relay import FunctionSink, Relay, Undelivered
from undoubt.relay import function as in_threads
from undoubt.relay import relay as module

PATIENCE_S = 60
MANY = 40
"""More than the event loop's executor has threads, whatever the number of processors."""


class Hanging:
    """A function that hangs for messages of topic "bad" until ``released``."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.got = Counter[str | None]()
        """The calls of each key that have ended."""
        self.begun = Counter[str | None]()
        self.most = 0
        """How many calls of one key ran at once, at most."""

    def receive(self, message: Message) -> None:
        self.begun[message.key] += 1
        self.most = max(self.most, self.begun[message.key] - self.got[message.key])
        if message.topic == "bad":
            self.released.wait(2 * PATIENCE_S)
        self.got[message.key] += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def emptied(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await shop.left():
            await asyncio.sleep(0.005)


async def test_functions_that_hang_in_threads_delay_their_own_keys_alone(shop: Shop) -> None:
    """Broken if some messages that a function does not get on with stop all others; if the next call for a
    key begins while one still runs; or if the end of the relay waits for them."""
    hanging = Hanging()
    try:
        for number in range(MANY):
            await shop.publish("1", "2", topic="bad", key=f"bad {number}")
        relay = Relay(shop.outbox(), FunctionSink(hanging.receive), timeout=0.05)
        running = asyncio.create_task(relay.run())
        await until(lambda: relay.failed >= 2 * MANY and len(hanging.begun) == MANY)
        for number in range(5):
            await shop.publish("1", topic="good", key=f"good {number}")
        await until(lambda: len(hanging.got) == 5)
        assert {hanging.begun[f"bad {number}"] for number in range(MANY)} == {1}
        relay.stop()
        async with asyncio.timeout(PATIENCE_S):
            await running
        assert len(await shop.left()) >= 2 * MANY
    finally:
        hanging.released.set()
    relay = Relay(shop.outbox(), FunctionSink(hanging.receive))
    running = asyncio.create_task(relay.run())
    await emptied(shop)
    relay.stop()
    await running
    assert hanging.most == 1


async def test_a_call_that_has_ended_late_is_followed_by_another(shop: Shop) -> None:
    """Broken if a key whose call was too long once is never delivered again."""
    hanging = Hanging()
    await shop.publish("1", "2", topic="bad", key="k")
    relay = Relay(shop.outbox(), FunctionSink(hanging.receive), timeout=0.05)
    running = asyncio.create_task(relay.run())
    await until(lambda: relay.failed >= 2)
    hanging.released.set()
    await emptied(shop)
    relay.stop()
    await running
    assert (hanging.most, relay.delivered) == (1, 2)


async def test_as_many_functions_run_as_the_relay_has_places(shop: Shop) -> None:
    """Broken if ``concurrency`` is bounded by what the event loop's executor has threads for."""
    barrier = threading.Barrier(MANY)
    for number in range(MANY):
        await shop.publish("1", key=f"{number}")
    relay = Relay(
        shop.outbox(), FunctionSink(lambda _: barrier.wait(PATIENCE_S)), concurrency=MANY, timeout=90
    )
    await relay.run(once=True)
    assert (relay.delivered, relay.failed) == (MANY, 0)


async def test_calls_in_threads_have_a_limit(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a receiver that hangs for each message takes all threads of the machine."""
    monkeypatch.setattr(in_threads, "CALLS_MAX", 3)
    hanging = Hanging()
    try:
        for number in range(5):
            await shop.publish("1", topic="bad", key=f"{number}")
        sink = FunctionSink(hanging.receive)
        relay = Relay(shop.outbox(), sink, concurrency=1, timeout=0.05)
        await relay.run(once=True)
        assert (relay.failed, sum(hanging.begun.values())) == (5, 3)
        with pytest.raises(Undelivered, match="3 calls"):
            await sink.deliver(Message(9, "d", "good", None, b"", {}, 0.0))
    finally:
        hanging.released.set()


async def test_coroutines_that_ignore_their_cancellation_delay_their_own_keys_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if two such deliveries take the relay's places for ever, also behind a lost session; or if the
    next delivery of their key begins beside them."""
    monkeypatch.setattr(module, "OVERDUE_MAX", 3)
    released, begun, got = asyncio.Event(), Counter[str | None](), list[str | None]()

    async def receive(message: Message) -> None:
        begun[message.key] += 1
        while message.topic == "bad" and not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        got.append(message.key)

    for number in range(2):
        await shop.publish("1", "2", topic="bad", key=f"bad {number}")
    relay = Relay(shop.outbox(), FunctionSink(receive), concurrency=2, timeout=0.05)
    running = asyncio.create_task(relay.run())
    try:
        await until(lambda: relay.failed == 2)
        await shop.publish("1", topic="good", key="good 0")
        await until(lambda: got == ["good 0"])
        await shop.break_sessions()
        await shop.publish("1", topic="good", key="good 1")
        await until(lambda: got == ["good 0", "good 1"])
        await shop.publish("1", topic="bad", key="bad 2")
        await until(lambda: relay.failed == 3)
        await shop.publish("1", topic="good", key="good 2")  # not read: three deliveries hang
        assert set(begun.values()) == {1}
    finally:
        released.set()
    await emptied(shop)
    relay.stop()
    await running
    assert Counter(got) == {"bad 0": 2, "bad 1": 2, "bad 2": 1, "good 0": 1, "good 1": 1, "good 2": 1}


async def test_the_end_of_a_relay_waits_for_no_delivery_that_hangs(shop: Shop) -> None:
    """Broken if a relay cannot be stopped, or never ends with ``once``, because one receiver hangs."""
    released = asyncio.Event()

    async def receive(_: Message) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    await shop.publish("1", key="k")
    for once in (True, False):
        relay = Relay(shop.outbox(), FunctionSink(receive), timeout=0.05)
        running = asyncio.create_task(relay.run(once=once))
        await until(lambda relay=relay: relay.failed == 1)  # type: ignore[misc]
        relay.stop()
        async with asyncio.timeout(PATIENCE_S):
            await running
    released.set()
    assert await shop.left() == [b"1"]
