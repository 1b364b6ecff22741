"""What a relay delivers, in which order, and what it removes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.undoubt.relay.conftest import Shop
from undoubt.participants.errors import ParticipantRefused, UsageError
from undoubt.participants.outbox import Message
from undoubt.relay import FunctionSink, Relay
from undoubt.relay import relay as module

PATIENCE_S = 60


class Receiver:
    """Notes what it is given; fails, or waits, where it is told to."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.failing: Callable[[Message], bool] = lambda _: False
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Event()

    async def receive(self, message: Message) -> None:
        self.got.append(message)
        self.came.set()
        await self.gate.wait()
        if self.failing(message):
            raise RuntimeError("not now")

    def payloads(self, key: str | None = None) -> list[bytes]:
        return [message.payload for message in self.got if message.key == key]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@contextlib.asynccontextmanager
async def relaying(shop: Shop, receiver: Receiver, **options: object) -> AsyncIterator[Relay]:
    relay = Relay(shop.outbox(), FunctionSink(receiver.receive), **options)  # type: ignore[arg-type]
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        async with asyncio.timeout(PATIENCE_S):
            await running


async def emptied(shop: Shop) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await shop.left():
            await asyncio.sleep(0.005)


async def test_messages_are_delivered_and_removed(shop: Shop, receiver: Receiver) -> None:
    ids = await shop.publish("1", "2", key="k", topic="created", headers={"X-Shop": "7"})
    async with relaying(shop, receiver) as relay:
        ids += await shop.publish("3", key="k", topic="created", headers={"X-Shop": "7"})
        await emptied(shop)
    assert [message.dedupe_id for message in receiver.got] == ids
    assert receiver.payloads("k") == [b"1", b"2", b"3"]
    assert {message.topic for message in receiver.got} == {"created"}
    assert receiver.got[0].headers == {"content-type": "text/plain; charset=utf-8", "x-shop": "7"}
    assert (relay.delivered, relay.failed) == (3, 0)


async def test_nothing_is_removed_before_it_is_acknowledged(shop: Shop, receiver: Receiver) -> None:
    """A relay, or a receiver, that dies in between would lose the message."""
    await shop.publish("1", key="k")
    receiver.gate.clear()
    async with relaying(shop, receiver):
        await receiver.came.wait()
        await shop.publish("2", key="l")
        await receiver.until(lambda: len(receiver.got) == 2)  # the relay has read, and removed, meanwhile
        assert await shop.left() == [b"1", b"2"]
        receiver.gate.set()
        await emptied(shop)
    assert len(receiver.got) == 2


async def test_a_failed_delivery_is_repeated_under_the_same_id(shop: Shop, receiver: Receiver) -> None:
    [published] = await shop.publish("1")
    receiver.failing = lambda _: len(receiver.got) < 3
    async with relaying(shop, receiver) as relay:
        await emptied(shop)
    assert [message.dedupe_id for message in receiver.got] == [published] * 3
    assert (relay.delivered, relay.failed) == (1, 2)


async def test_a_key_that_fails_waits_alone_and_in_order(shop: Shop, receiver: Receiver) -> None:
    """Broken if one message that cannot be delivered stops all others, or is overtaken by its successors."""
    await shop.publish("1", "2", "3", key="bad")
    await shop.publish("alone")
    repaired = False
    receiver.failing = lambda message: not repaired and message.payload in {b"1", b"alone"}
    async with relaying(shop, receiver):
        for number in range(5):
            await shop.publish(f"good {number}", key="good")
        await receiver.until(lambda: len(receiver.payloads("good")) == 5)
        await receiver.until(lambda: len(receiver.payloads("bad")) >= 2)
        assert set(receiver.payloads("bad")) == {b"1"}
        assert {b"1", b"2", b"3", b"alone"} <= {*await shop.left()}
        repaired = True
        await emptied(shop)
    first = list(dict.fromkeys(receiver.payloads("bad")))
    assert first == [b"1", b"2", b"3"]
    assert receiver.payloads("good") == [f"good {number}".encode() for number in range(5)]


def _cancelled() -> None:
    raise asyncio.CancelledError


def _exits() -> None:
    sys.exit(3)


def _interrupted() -> None:
    raise KeyboardInterrupt


def _stops() -> None:
    raise StopIteration


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def _fails_unprintably() -> None:
    raise Unprintable


async def _cancels_its_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def _awaits_what_is_cancelled() -> None:
    inner = asyncio.create_task(asyncio.sleep(PATIENCE_S))
    inner.cancel()
    await inner


ANYWHERE = (_cancelled, _exits, _interrupted, _stops, _fails_unprintably)
FAILURES = [
    *((fails, "coroutine") for fails in (*ANYWHERE, _cancels_its_task, _awaits_what_is_cancelled)),
    *((fails, "thread") for fails in ANYWHERE),
]
"""Receivers that raise what would end a program or a task, or cannot be told; and where they run."""


@pytest.mark.parametrize(("fails", "where"), FAILURES)
async def test_whatever_a_receiver_raises_delays_its_own_key_alone(
    shop: Shop, receiver: Receiver, caplog: pytest.LogCaptureFixture, fails: Callable[[], Any], where: str
) -> None:
    """Broken if such a receiver ends the relay for all keys, or is called again and again without a rest."""
    await shop.publish("1", "2", key="bad")
    mended = False

    async def awaited(message: Message) -> None:
        await receiver.receive(message)
        if message.key == "bad" and not mended and (answer := fails()) is not None:
            await answer

    def called(message: Message) -> None:
        receiver.got.append(message)
        if message.key == "bad" and not mended:
            fails()

    function = awaited if where == "coroutine" else called
    relay = Relay(shop.outbox(), FunctionSink(function), timeout=2 * PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        await relay.run(once=True)
    assert (relay.delivered, relay.failed, receiver.payloads("bad")) == (0, 1, [b"1"])
    relay = Relay(shop.outbox(), FunctionSink(function), timeout=2 * PATIENCE_S)
    running = asyncio.create_task(relay.run())
    await receiver.until(lambda: relay.failed == 2)
    for number in range(5):
        await shop.publish(f"good {number}", key="good")
    await receiver.until(lambda: len(receiver.payloads("good")) == 5)
    mended = True
    await emptied(shop)
    relay.stop()
    await running
    assert f"attempt {relay.failed}: " in caplog.text
    assert receiver.payloads("bad")[-2:] == [b"1", b"2"]


async def test_a_cancelled_relay_ends(shop: Shop, receiver: Receiver) -> None:
    """Broken if the program that cancels a relay waits for ever: the first cancellation lets the deliveries
    that are under way finish, the second one does not."""
    await shop.publish("1", key="k")
    await shop.publish("2", key="l")
    relay = Relay(shop.outbox(), FunctionSink(receiver.receive), timeout=2 * PATIENCE_S)
    running = asyncio.create_task(relay.run())
    receiver.gate.clear()
    await receiver.until(lambda: len(receiver.got) == 2)
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PATIENCE_S):
            await running
    names = {"undoubt-lane", "undoubt-delivery"}
    await receiver.until(lambda: names.isdisjoint(task.get_name() for task in asyncio.all_tasks()))
    assert await shop.left() == [b"1", b"2"]


async def test_a_key_is_delivered_one_after_another(shop: Shop, receiver: Receiver) -> None:
    """A receiver that handles two messages of a key at once does not know their order."""
    await shop.publish("1", "2", key="k")
    await shop.publish("3", key="l")
    receiver.gate.clear()
    async with relaying(shop, receiver):
        await receiver.until(lambda: len(receiver.got) == 2)
        await shop.publish("4", key="m")
        await receiver.until(lambda: len(receiver.got) == 3)
        assert {message.payload for message in receiver.got} == {b"1", b"3", b"4"}
        receiver.gate.set()
        await emptied(shop)
    assert receiver.payloads("k") == [b"1", b"2"]


async def test_keys_that_fail_do_not_hide_the_others(
    shop: Shop, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that reads the oldest messages again and again would never see the next ones."""
    monkeypatch.setattr(module, "BATCH", 4)
    for key in range(3):
        await shop.publish(*"abc", key=f"bad {key}")
    await shop.publish("seen", key="good")
    receiver.failing = lambda message: message.key != "good"
    async with relaying(shop, receiver):
        await receiver.until(lambda: receiver.payloads("good") == [b"seen"])
    assert len(await shop.left()) == 9


async def test_a_delivery_that_hangs_has_failed(shop: Shop, receiver: Receiver) -> None:
    await shop.publish("1")
    receiver.gate.clear()
    async with relaying(shop, receiver, timeout=0.05) as relay:
        await receiver.until(lambda: relay.failed >= 2)
        receiver.gate.set()
        await emptied(shop)


async def test_a_lost_session_loses_no_message(shop: Shop, receiver: Receiver) -> None:
    """Broken if a restart of the database ends the relay, or what was read before is forgotten."""
    await shop.publish("1", "2", key="k")
    receiver.gate.clear()
    async with relaying(shop, receiver):
        await receiver.came.wait()
        await shop.break_sessions()
        receiver.gate.set()
        await shop.publish("3", key="k")
        await emptied(shop)
        await shop.break_sessions()
        await shop.publish("4", key="k")
        await emptied(shop)
    assert list(dict.fromkeys(receiver.payloads("k"))) == [b"1", b"2", b"3", b"4"]


async def test_another_relay_takes_over(shop: Shop, receiver: Receiver) -> None:
    """Broken if two relays deliver everything twice, or the second one does not notice the end of the
    first."""
    other = Receiver()
    async with relaying(shop, other):
        async with relaying(shop, receiver):
            await shop.publish("1", "2")
            await emptied(shop)
            first, second = (receiver, other) if receiver.got else (other, receiver)
            assert (len(first.got), second.got) == (2, [])
        await shop.publish("3")
        await emptied(shop)
    assert other.payloads()[-1] == b"3"


async def test_topics_are_delivered_to_different_sinks(shop: Shop, receiver: Receiver) -> None:
    other = Receiver()
    async with relaying(shop, receiver, topics=("a",)), relaying(shop, other, topics=("b",)):
        await shop.publish("1", topic="a", key="k")
        await shop.publish("2", topic="b", key="k")
        await shop.publish("3", topic="c", key="k")
        await receiver.until(lambda: len(receiver.got) + len(other.got) == 2)
    assert (receiver.payloads("k"), other.payloads("k")) == ([b"1"], [b"2"])
    assert await shop.left() == [b"3"]


async def test_a_stopped_relay_finishes_what_is_under_way(shop: Shop, receiver: Receiver) -> None:
    """Broken if each restart of a relay delivers messages twice."""
    await shop.publish("1", "2", key="k")
    receiver.gate.clear()
    async with relaying(shop, receiver) as relay:
        await receiver.came.wait()
        relay.stop()
        receiver.gate.set()
    assert receiver.payloads("k") == [b"1"]
    assert await shop.left() == [b"2"]


async def test_once_tries_each_message_once(shop: Shop, receiver: Receiver) -> None:
    await shop.publish("1", "2", key="bad")
    await shop.publish("3", "4")
    receiver.failing = lambda message: message.key == "bad"
    relay = Relay(shop.outbox(), FunctionSink(receiver.receive))
    async with asyncio.timeout(PATIENCE_S):
        await relay.run(once=True)
    assert (relay.delivered, relay.failed) == (2, 1)
    assert await shop.left() == [b"1", b"2"]


async def test_a_database_without_an_outbox_ends_it(shop: Shop, receiver: Receiver) -> None:
    """Broken if a relay that can never work waits silently."""
    await shop.admin.execute("drop table undoubt.undoubt_outbox")
    relay = Relay(shop.outbox(), FunctionSink(receiver.receive))
    with pytest.raises(ParticipantRefused, match="undoubt participants migrate orders"):
        async with asyncio.timeout(PATIENCE_S):
            await relay.run()


async def test_functions_may_be_synchronous(shop: Shop) -> None:
    got: list[bytes] = []
    await shop.publish("1", "2", key="k")
    relay = Relay(shop.outbox(), FunctionSink(lambda message: got.append(message.payload)))
    await relay.run(once=True)
    assert got == [b"1", b"2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"outbox": None},
        {"sink": print},
        {"topics": ("",)},
        {"topics": (5,)},
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"timeout": 0},
        {"timeout": float("nan")},
    ],
    ids=str,
)
async def test_bad_arguments_are_named(shop: Shop, wrong: dict[str, object]) -> None:
    good = {"outbox": shop.outbox(), "sink": FunctionSink(print)}
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Relay(**{**good, **wrong})  # type: ignore[arg-type]
