"""Connections over real sockets: what is agreed on, and every bound."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import msgspec
import pytest

from tests.coordinator.wire.support import CLIENT, ONE, TWO, Side, dialed, ends, listening, warnings
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    HandshakeRefusal,
    HandshakeRefused,
    LocalProtocolError,
    PeerIdentity,
    PeerRole,
    RemoteProtocolError,
    Versions,
    WireSettings,
    connect,
    serve,
)
from undoubt.coordinator.wire.connection import HEADER, header
from undoubt.coordinator.wire.listener import InboundConnection


async def test_both_sides_know_each_other_and_talk(caplog: pytest.LogCaptureFixture) -> None:
    """The way of every message."""
    here = Side(answer=bytes.upper)
    async with listening(here) as (_, where):
        box = await dialed(where, TWO, for_number=1)
        assert (box.connection.peer, box.connection.version) == (ONE, VERSIONS.highest)
        for word in (b"vote", b"", b"x" * 1_000_000):
            box.connection.send(word)
            assert await box.got.get() == word.upper()
        assert here.boxes.get_nowait().connection.peer == TWO
    assert await box.ended == "the peer closed the connection"
    assert warnings(caplog) == []


async def test_what_is_sent_while_accepting_comes_first() -> None:
    """A side may speak as soon as it is asked; nothing is lost between handshake and first frame."""

    class Greeting(Side):
        def __call__(self, connection):  # type: ignore[no-untyped-def]
            box = super().__call__(connection)
            connection.send(b"state of " + str(connection.peer).encode())
            return box

    here = Greeting()
    async with listening(here) as (_, where):
        box = await dialed(where, TWO, Greeting())
        assert await box.got.get() == b"state of node 2"
        assert await here.boxes.get_nowait().got.get() == b"state of node 1"


@pytest.mark.parametrize(
    ("me", "more", "refusal", "words"),
    [
        (PeerIdentity(PeerRole.NODE, "bank", 2), {}, HandshakeRefusal.CLUSTER, "cluster shop"),
        (TWO, {"for_number": 3}, HandshakeRefusal.NUMBER, "this is node 1"),
        (PeerIdentity(PeerRole.NODE, "shop", 1), {}, HandshakeRefusal.NUMBER, "cannot be node 1"),
        (TWO, {"versions": Versions(8, 9)}, HandshakeRefusal.VERSION, "8 to 9"),
    ],
)
async def test_a_refusal_is_told_to_both_sides(
    me: PeerIdentity,
    more: dict[str, Any],
    refusal: HandshakeRefusal,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line here, the reason there: nobody has to guess from a closed socket."""
    here = Side()
    async with listening(here) as (listener, where):
        with pytest.raises(HandshakeRefused, match=words) as refused:
            await dialed(where, me, **more)
        assert refused.value.refusal is refusal
        while listener.strangers:
            await asyncio.sleep(0.001)
    assert here.boxes.empty()
    (line,) = warnings(caplog)
    assert words in line


async def test_who_accepts_may_refuse_too(caplog: pytest.LogCaptureFixture) -> None:
    """A node that was removed, a role that is not served: the wire does not know of it, its user does."""
    here = Side(refusing=HandshakeRefused(HandshakeRefusal.OTHER, "node 2 was removed from the cluster"))
    async with listening(here) as (_, where):
        with pytest.raises(HandshakeRefused, match="was removed"):
            await dialed(where, TWO)
    (line,) = warnings(caplog)
    assert "was removed" in line


async def test_nobody_there() -> None:
    """Every way in which no answer comes is an OSError that names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConnectionError, match=str(where)):
            await dialed(where)
        taken.listen()
        with pytest.raises(ConnectionError, match="no answer"):
            await dialed(where, timeout_s=0.05)
        with pytest.raises(ConnectionError, match="no handshake within"):
            await dialed(where, settings=WireSettings(handshake_s=0.05))


async def test_a_cancelled_dialer_leaves_nothing_open() -> None:
    """Else every cancelled caller would leave a socket behind."""
    here = Side()
    async with listening(here) as (listener, where):
        dialing = asyncio.create_task(dialed(where))
        while not listener.strangers and not listener.clients:
            await asyncio.sleep(0)
        dialing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dialing
            pytest.skip("it was faster")
        while listener.strangers or listener.clients:
            await asyncio.sleep(0.001)


async def raw(where: Address, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(where.host, where.port)
    writer.write(data)
    return reader, writer


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        HEADER.pack(2_000_000, 0, 0),
        HEADER.pack(7, 0, 0) + b"\xc1\xc1\xc1",
        header(b"\xc1\xc1\xc1", 0) + b"\xc1\xc1\xc1",
        header(b"\x91" * 900, 0) + b"\x91" * 900,
        header(b"hello", 1) + b"hello",
        bytes(100),
    ],
)
async def test_what_is_no_handshake_is_cut_off(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """One line, and others do not notice."""
    here = Side(answer=bytes.upper)
    async with listening(here) as (_, where):
        box = await dialed(where)
        await ends(*await raw(where, data))
        box.connection.send(b"still there")
        assert await box.got.get() == b"STILL THERE"
    (line,) = warnings(caplog)
    assert "does not follow the protocol" in line


async def test_a_silent_peer_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """Also one that sends a byte now and then: the deadline is for the whole handshake."""
    async with listening(Side(), settings=WireSettings(handshake_s=0.2)) as (_, where):
        reader, writer = await raw(where, b"\x00")

        async def drip() -> None:
            for byte in b"\x00\x01\x00":
                await asyncio.sleep(0.05)
                writer.write(bytes([byte]))

        dripping = asyncio.create_task(drip())
        await ends(reader, writer)
        dripping.cancel()
    (line,) = warnings(caplog)
    assert "no handshake within 0.2 s" in line


async def test_garbage_after_the_handshake_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """What the receiver cannot decode is the peer's fault, and only its connection goes."""

    def strict(payload: bytes) -> bytes:
        if payload == b"deep":
            msgspec.msgpack.decode(b"\x91" * 100_000)
        if payload == b"odd":
            raise RemoteProtocolError("an answer that nobody asked for")
        return msgspec.msgpack.encode(msgspec.msgpack.decode(payload, type=int))

    here = Side(answer=strict)
    async with listening(here) as (_, where):
        other = await dialed(where)
        for bad in (b"\xc1", b"deep", b"odd"):
            box = await dialed(where)
            box.connection.send(bad)
            await box.ended
        other.connection.send(b"\x07")
        assert await other.got.get() == b"\x07"
    lines = warnings(caplog)
    assert len(lines) == 3
    assert all("client till 7 at 127.0.0.1" in line for line in lines)


async def test_nothing_is_received_after_the_end() -> None:
    """A frame behind the one that ended the connection must not be acted on."""
    ended = []

    def ends_it(payload: bytes) -> None:
        if payload == b"bad":
            ended.append(payload)
            raise ValueError("bad")

    here = Side(answer=ends_it)
    async with listening(here) as (_, where):
        box = await dialed(where)
        box.connection.send(b"good")
        box.connection.send(b"bad")
        box.connection.send(b"late")
        await box.ended
        there = here.boxes.get_nowait()
        assert (await there.got.get(), await there.got.get()) == (b"good", b"bad")
        assert there.got.empty()
        there.connection.send(b"dropped")


async def test_a_slow_reader_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    """It must not fill our memory; others go on."""
    settings = WireSettings(frame_bytes_max=1_000_000, unsent_bytes_max=2_000_000)
    here = Side(answer=lambda _: bytes(900_000))
    async with listening(here, settings=settings) as (_, where):
        box = await dialed(where, TWO, settings=settings)
        box.connection.transport.pause_reading()  # type: ignore[union-attr]
        while not here.boxes.qsize():
            await asyncio.sleep(0)
        there = here.boxes.get_nowait()
        while not there.ended.done():
            box.connection.send(b"more")
            await asyncio.sleep(0.001)
        assert "unread" in await there.ended
        assert there.connection.unsent_bytes == 0
    (line,) = warnings(caplog)
    assert "node 2" in line
    assert "unread" in line


async def test_a_client_that_does_not_read_is_not_read_from(caplog: pytest.LogCaptureFixture) -> None:
    """Its requests would become answers that nobody takes; once it reads again, it gets them all."""
    here = Side(answer=lambda _: bytes(500_000))
    async with listening(here) as (_, where):
        box = await dialed(where)
        there = await here.boxes.get()
        box.connection.transport.pause_reading()  # type: ignore[union-attr]
        asked = 0
        while there.connection.transport.is_reading():  # type: ignore[union-attr]
            box.connection.send(b"more")
            asked += 1
            await asyncio.sleep(0)
        answered = there.got.qsize()
        for _ in range(100):
            box.connection.send(b"more")
            asked += 1
            await asyncio.sleep(0)
        assert there.got.qsize() == answered
        assert there.connection.unsent_bytes < 64_000_000
        box.connection.transport.resume_reading()  # type: ignore[union-attr]
        for _ in range(asked):
            assert len(await box.got.get()) == 500_000
    assert warnings(caplog) == []


async def test_no_more_clients_than_allowed_and_nodes_always(caplog: pytest.LogCaptureFixture) -> None:
    """A crowd of clients must not keep the nodes from one another."""
    async with listening(Side(), settings=WireSettings(clients_max=2)) as (listener, where):
        first = await dialed(where)
        await dialed(where)
        with pytest.raises(HandshakeRefused, match="serves 2 clients already") as refused:
            await dialed(where)
        assert refused.value.refusal is HandshakeRefusal.BUSY
        await dialed(where, TWO)
        first.connection.close()
        while len(listener.clients) == 2:
            await asyncio.sleep(0.001)
        await dialed(where)
    assert len(warnings(caplog)) == 1


async def test_strangers_make_room_for_newer_ones(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever opens connections and says nothing cannot keep others out."""
    bounds = WireSettings(strangers_max=3, handshake_s=60)
    async with listening(Side(answer=bytes.upper), settings=bounds) as (listener, where):
        silent = [await raw(where, b"") for _ in range(20)]
        box = await dialed(where)
        assert len(listener.strangers) <= 3
        for reader, writer in silent[:10]:
            await ends(reader, writer)
        for _, writer in silent[10:]:
            writer.transport.abort()
        box.connection.send(b"hello")
        assert await box.got.get() == b"HELLO"
    assert all("without a handshake" in line for line in warnings(caplog))


async def test_a_frame_that_the_peer_would_refuse_is_our_error() -> None:
    """The sender hears of it; the connection stays."""
    settings = WireSettings(frame_bytes_max=2000)
    async with listening(Side(answer=bytes.upper), settings=settings) as (_, where):
        box = await dialed(where, settings=settings)
        with pytest.raises(LocalProtocolError, match="2000"):
            box.connection.send(bytes(2000))
        box.connection.send(b"x" * (2000 - HEADER.size))
        assert await box.got.get() == b"X" * (2000 - HEADER.size)


async def test_closing_sends_what_was_queued() -> None:
    """A last answer before a shutdown arrives."""
    here = Side()
    async with listening(here) as (_, where):
        box = await dialed(where)
        box.connection.send(b"farewell")
        box.connection.close("done")
        box.connection.send(b"too late")
        assert await box.ended == "done"
        there = here.boxes.get_nowait()
        assert await there.ended == "the peer closed the connection"
        assert (there.got.get_nowait(), there.got.empty()) == (b"farewell", True)


async def test_a_peer_that_does_not_take_the_end_is_cut_off() -> None:
    """A graceful close must not wait for ever for a frozen peer."""
    here = Side()
    async with listening(here, settings=WireSettings(handshake_s=0.1)) as (listener, where):
        box = await dialed(where, TWO)
        box.connection.transport.pause_reading()  # type: ignore[union-attr]
        there = await here.boxes.get()
        there.connection.send(bytes(60_000_000))
        there.connection.close("shutting down")
        assert await there.ended == "shutting down"
        assert not listener.nodes


async def test_unix_sockets_speak_it_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The ledger of one file is served that way."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(tmp_path / "s"))
    here = Side(answer=bytes.upper)
    listener = await serve(door, ONE, here, WireSettings(), admits=lambda _: "")
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(str(tmp_path / "s"))
    connected.setblocking(False)
    side = Side()
    await connect(connected, CLIENT, side, WireSettings(), timeout_s=30)
    box = side.boxes.get_nowait()
    box.connection.send(b"hi")
    assert await box.got.get() == b"HI"
    listener.close()
    await box.ended


async def test_who_is_not_admitted_hears_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Another user's process at the ledger's unix socket, say."""
    here = Side()
    async with listening(here, admits=lambda _: "user 7 may not") as (_, where):
        with pytest.raises(ConnectionError):
            await dialed(where)
    assert here.boxes.empty()
    (line,) = warnings(caplog)
    assert "user 7 may not" in line


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("10.0.0.1:7400", "10.0.0.1", 7400, False),
        ("127.8.9.1:1", "127.8.9.1", 1, True),
        ("[::1]:7400", "::1", 7400, True),
        ("[2001:db8::1]:7400", "2001:db8::1", 7400, False),
        ("localhost:7400", "localhost", 7400, True),
        ("localhost.example.com:7400", "localhost.example.com", 7400, False),
        ("node-1.internal", "node-1.internal", 7400, False),
        ("[::]", "::", 7400, False),
        ("0.0.0.0:7400", "0.0.0.0", 7400, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    """Broken if an open port passed for a private one."""
    address = Address.parse(text, port=7400)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", ":7400", "host:", "host:70000", "host:-1", "::1:7400", "h:٣"),
        *("a..b:7400", f"{'a' * 64}.example.com:7400", "a\0b:7400"),
    ],
)
def test_what_is_no_address_is_named(text: str) -> None:
    """The message quotes it. Broken for a mistyped host if whoever looks for the leader falls over it instead
    of going on to the next node."""
    with pytest.raises(ValueError, match=r"host:port|brackets"):
        Address.parse(text)


async def test_nobody_slips_in_while_the_port_closes() -> None:
    """A connection that was being accepted at that moment would stay open, and belong to nobody."""
    listener = await serve(Address("127.0.0.1", 0), ONE, Side(), WireSettings(handshake_s=600.0))
    ours, theirs = socket.socketpair()
    listener.close()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: InboundConnection(listener, Side()), ours)
    theirs.settimeout(10.0)
    assert await asyncio.to_thread(theirs.recv, 1) == b""
    theirs.close()
    assert listener.strangers == {}
