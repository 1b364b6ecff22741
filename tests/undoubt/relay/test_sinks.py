"""What receivers of HTTP and of Kafka are sent, and what counts as an acknowledgement."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports
from undoubt.participants.errors import UsageError
from undoubt.participants.outbox import Message
from undoubt.relay import FunctionSink, Undelivered, sink_of
from undoubt.relay.kafka import KafkaSink, headers_of
from undoubt.relay.webhook import WebhookSink

MESSAGE = Message(
    id=1,
    dedupe_id="testledger:1-4f1d0c9a77b2e815.1:1:1",
    topic="order \u2603",
    key="50% off\r\nx: y",
    payload=b"\0\xff",
    headers={"content-type": "application/octet-stream", "x-shop": "7"},
    published_at=1_796_000_000.25,
)


@dataclass
class Receiver:
    """An HTTP server that answers with ``answer``, and closes."""

    port: int
    answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n"
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        self.heads.append(head)
        length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0] or 0)
        self.bodies.append(await reader.readexactly(length))
        writer.write(self.answer)
        writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/orders?x=1"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    [port] = free_ports(1)
    made = Receiver(port)
    server = await asyncio.start_server(made.handle, "127.0.0.1", port)
    async with server:
        yield made


def headers(head: str) -> dict[str, str]:
    pairs = [line.split(": ", 1) for line in head.split("\r\n")[1:] if line]
    return {name.lower(): value for name, value in pairs}


async def test_a_webhook_gets_the_message_and_its_id(receiver: Receiver) -> None:
    sink = WebhookSink(receiver.url)
    await sink.deliver(MESSAGE)
    await sink.close()
    [head] = receiver.heads
    assert head.startswith("POST /orders?x=1 HTTP/1.1\r\n")
    assert receiver.bodies == [MESSAGE.payload]
    assert headers(head) | {
        "undoubt-dedupe-id": MESSAGE.dedupe_id,
        "undoubt-topic": "order %E2%98%83",
        "undoubt-key": "50%25 off%0D%0Ax: y",
        "undoubt-published-at": "2026-11-30T00:53:20.250000+00:00",
        "content-type": "application/octet-stream",
        "x-shop": "7",
    } == headers(head)


async def test_a_message_without_a_key_has_no_such_header(receiver: Receiver) -> None:
    sink = WebhookSink(receiver.url)
    await sink.deliver(Message(1, "d", "t", None, b"", {}, 0.0))
    await sink.close()
    assert "undoubt-key" not in headers(receiver.heads[0])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "500"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "302"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
    ids=["error", "missing", "redirect", "cut", "closed"],
)
async def test_only_a_complete_success_acknowledges(receiver: Receiver, answer: bytes, why: str) -> None:
    """A receiver that has not stored the message would never get it again. A redirect is not followed."""
    receiver.answer = answer
    sink = WebhookSink(receiver.url)
    with pytest.raises(Undelivered, match=why):
        await sink.deliver(MESSAGE)
    await sink.close()
    assert len(receiver.heads) == 1


async def test_a_receiver_that_is_down_has_not_acknowledged() -> None:
    [port] = free_ports(1)
    sink = WebhookSink(f"http://127.0.0.1:{port}/")
    with pytest.raises(Undelivered, match="ConnectError"):
        await sink.deliver(MESSAGE)
    await sink.close()


async def test_brokers_that_are_down_have_not_acknowledged() -> None:
    [port] = free_ports(1)
    sink = KafkaSink(f"127.0.0.1:{port}")
    with pytest.raises(Undelivered, match="KafkaConnectionError"):
        await sink.deliver(MESSAGE)
    await sink.close()


def test_a_record_has_the_id_among_its_headers() -> None:
    assert headers_of(MESSAGE) == [
        ("content-type", b"application/octet-stream"),
        ("x-shop", b"7"),
        ("undoubt-dedupe-id", MESSAGE.dedupe_id.encode()),
    ]


async def test_sinks_are_found_by_their_names() -> None:
    for to, kind in {
        "http://127.0.0.1:1/x": WebhookSink,
        "https://shipping.internal": WebhookSink,
        "kafka://127.0.0.1:9092,127.0.0.2:9092": KafkaSink,
        "kafka+ssl://broker:9093": KafkaSink,
        "json:dumps": FunctionSink,
    }.items():
        sink = sink_of(to)
        assert isinstance(sink, kind)
        await sink.close()


@pytest.mark.parametrize(
    "to",
    ["", "x", "json:", ":dumps", "json:no", "nothing_of_that_name:x", "json:__name__", "ftp://x", "http://"],
)
def test_what_is_no_sink_is_refused(to: str) -> None:
    """Broken if a slip of the pen is noticed with the first message."""
    with pytest.raises(UsageError, match="--to"):
        sink_of(to)


async def test_a_function_that_only_makes_a_generator_acknowledges_nothing() -> None:
    """Broken if a message is acknowledged that no code of the application has seen."""

    def generates(message: Message) -> Iterator[Message]:
        yield message

    async def generates_too(message: Message) -> AsyncIterator[Message]:
        yield message

    async def awaited(message: Message) -> Any:
        return generates(message)

    functions: tuple[Callable[[Message], object], ...] = (generates, generates_too)
    for function in functions:
        with pytest.raises(UsageError, match="generator"):
            FunctionSink(function)

        def wrapper(message: Message, lazy: Callable[[Message], object] = function) -> object:
            return lazy(message)

        with pytest.raises(UsageError, match="generator"):
            await FunctionSink(wrapper).deliver(MESSAGE)
    with pytest.raises(UsageError, match="generator"):
        await FunctionSink(awaited).deliver(MESSAGE)


async def test_what_a_function_has_not_begun_is_begun_or_refused() -> None:
    """Broken if a message is acknowledged whose work only exists as an object that was returned: a coroutine
    of a coroutine, or what ``map`` would do."""
    done: list[str] = []

    async def work(name: str) -> None:
        done.append(name)

    async def coroutine(_: Message) -> object:
        return work("a coroutine of a coroutine function")

    async def twice(_: Message) -> object:
        async def between() -> object:
            return work("a coroutine of a coroutine")

        return between()

    for function in (coroutine, twice, lambda _: work("a coroutine of a function")):
        await FunctionSink(function).deliver(MESSAGE)
    assert done == [
        "a coroutine of a coroutine function",
        "a coroutine of a coroutine",
        "a coroutine of a function",
    ]

    async def awaited(message: Message) -> Any:
        return map(done.append, [message.topic])

    lazy: tuple[Callable[[Message], object], ...] = (
        lambda message: map(done.append, [message.topic]),
        lambda message: filter(done.append, [message.topic]),
        lambda message: iter([message]),
        awaited,
    )
    for each in lazy:
        with pytest.raises(UsageError, match="iterator"):
            await FunctionSink(each).deliver(MESSAGE)
    assert len(done) == 3

    async def endless(message: Message) -> object:
        return endless(message)

    with pytest.raises(UsageError, match="without end"):
        await FunctionSink(endless).deliver(MESSAGE)


async def test_a_future_of_another_thread_is_waited_for() -> None:
    """Broken if a message is acknowledged that a pool of the application has not handled yet."""
    future = concurrent.futures.Future[None]()
    delivery = asyncio.create_task(FunctionSink(lambda _: future).deliver(MESSAGE))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(delivery), 0.05)
    future.set_result(None)
    await delivery
    failed = concurrent.futures.Future[None]()
    failed.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await FunctionSink(lambda _: failed).deliver(MESSAGE)


async def test_a_future_that_still_runs_keeps_its_key() -> None:
    """Broken if two pieces of work for one key run at once in a pool of the application, because the first
    one took too long; or if the key is never delivered again."""
    future, calls = concurrent.futures.Future[None](), 0

    def receive(_: Message) -> object:
        nonlocal calls
        calls += 1
        return future

    async def awaited(message: Message) -> object:
        return receive(message)

    for function in (receive, awaited):
        future, calls = concurrent.futures.Future[None](), 0
        future.set_running_or_notify_cancel()
        sink = FunctionSink(function)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.deliver(MESSAGE), 0.05)
        with pytest.raises(Undelivered, match="still runs"):
            await sink.deliver(MESSAGE)
        assert calls == 1
        future.set_result(None)
        await sink.deliver(MESSAGE)
        assert calls == 2


async def test_a_function_may_return_a_cursor_or_a_file(tmp_path: Path) -> None:
    """Broken if a message is delivered for ever, each time with its effects, because its function returns
    what the last statement of its work returned, and that can be iterated over."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    with (tmp_path / "file").open("w") as file, contextlib.closing(connection):
        await FunctionSink(lambda _: connection.execute("create table t (id integer)")).deliver(MESSAGE)
        await FunctionSink(lambda _: file).deliver(MESSAGE)
