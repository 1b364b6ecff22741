"""Two releases on one connection: the newer one has messages with more fields, and more kinds of messages.

Broken if a cluster could not be upgraded node by node: if the older side met what it does not know, or if the
newer side could not read what the older one sends.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.coordinator.wire.support import ONE, TWO, ends, warnings
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    Connection,
    HandshakeRefused,
    Versions,
    WireSettings,
    connect,
    serve,
)
from undoubt.coordinator.wire.connection import header
from undoubt.coordinator.wire.handshake import HANDSHAKE_VERSION, hello

NEXT = Versions(VERSIONS.highest, VERSIONS.highest + 1)
AFTER_NEXT = Versions(NEXT.highest, NEXT.highest + 1)


class OldPut(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    key: str


class OldDone(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    key: str


class NewPut(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    key: str
    priority: int = 0


class NewDone(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    key: str
    index: int = -1


class NewHurry(msgspec.Struct, frozen=True, array_like=True, tag="hurry"):
    """A kind that only the newer release has."""

    key: str


OLD = msgspec.msgpack.Decoder(OldPut | OldDone)
NEW = msgspec.msgpack.Decoder(NewPut | NewDone | NewHurry)
encode = msgspec.msgpack.encode


class Old:
    """A release that speaks this version only."""

    versions = VERSIONS

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.got: list[object] = []

    def start(self) -> None:
        self.connection.send(encode(OldPut("from old")))

    def received(self, payload: bytes) -> None:
        message = OLD.decode(payload)
        self.got.append(message)
        if isinstance(message, OldPut):
            self.connection.send(encode(OldDone(message.key)))

    def lost(self, why: str) -> None:
        self.got.append(why)


class New:
    """The release after it: what came with the new version is sent only where it is spoken."""

    versions = NEXT

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.got: list[object] = []

    def start(self) -> None:
        self.connection.send(encode(NewPut("from new", 9)))
        if self.connection.version >= NEXT.highest:
            self.connection.send(encode(NewHurry("from new")))

    def received(self, payload: bytes) -> None:
        message = NEW.decode(payload)
        self.got.append(message)
        if isinstance(message, NewPut):
            self.connection.send(encode(NewDone(message.key, 77)))

    def lost(self, why: str) -> None:
        self.got.append(why)


Release = type[Old] | type[New]


class Accepting:
    """One side's ``accept``; ``one`` is its end of the connection."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self.one: Old | New | None = None

    def __call__(self, connection: Connection) -> Old | New:
        self.one = self.release(connection)
        self.one.start()
        return self.one

    @property
    def got(self) -> list[object]:
        return [] if self.one is None else self.one.got

    @property
    def answered(self) -> bool:
        return any(isinstance(message, OldDone | NewDone) for message in self.got)


async def talk(listens: Release, dials: Release) -> tuple[list[object], list[object], int]:
    """What each side got until both had an answer, and the version that they spoke."""
    here, there = Accepting(listens), Accepting(dials)
    listener = await serve(Address("127.0.0.1", 0), ONE, here, WireSettings(), versions=listens.versions)
    where = Address("127.0.0.1", listener.port)
    connection = await connect(where, TWO, there, WireSettings(), timeout_s=30.0, versions=dials.versions)
    while not (here.answered and there.answered):
        await asyncio.sleep(0)
    assert [peer.version for peer in listener.nodes] == [connection.version]
    told = list(here.got), list(there.got), connection.version
    connection.abort()
    listener.close()
    while listener.nodes:
        await asyncio.sleep(0)
    return told


@pytest.mark.parametrize("newer_dials", [True, False])
async def test_the_newer_release_speaks_as_the_older_one(newer_dials: bool) -> None:
    """Whoever dials. Fields that the older one lacks are passed over or take their defaults; kinds that it
    does not know are not sent to it."""
    if newer_dials:
        old, new, version = await talk(Old, New)
    else:
        new, old, version = await talk(New, Old)
    assert version == VERSIONS.highest
    assert set(old) == {OldPut("from new"), OldDone("from old")}
    assert set(new) == {NewPut("from old", 0), NewDone("from new", -1)}


async def test_two_newer_ones_use_what_is_new() -> None:
    """As soon as both sides are upgraded."""
    here, there, version = await talk(New, New)
    assert version == NEXT.highest
    assert set(here) == set(there) == {NewPut("from new", 9), NewHurry("from new"), NewDone("from new", 77)}


async def test_two_equal_old_ones_are_as_ever() -> None:
    """The mechanism costs those nothing who do not use it."""
    here, there, version = await talk(Old, Old)
    assert version == VERSIONS.highest
    assert set(here) | set(there) == {OldPut("from old"), OldDone("from old")}


async def test_releases_too_far_apart_say_so(caplog: pytest.LogCaptureFixture) -> None:
    """An upgrade that skips one is refused in words, on both sides."""
    listener = await serve(Address("127.0.0.1", 0), ONE, Accepting(Old), WireSettings(), versions=VERSIONS)
    where = Address("127.0.0.1", listener.port)
    with pytest.raises(HandshakeRefused, match="upgrade one of them step by step"):
        await connect(where, TWO, Accepting(New), WireSettings(), timeout_s=30.0, versions=AFTER_NEXT)
    listener.close()
    while listener.strangers:
        await asyncio.sleep(0)
    (line,) = warnings(caplog)
    assert f"{AFTER_NEXT}" in line


async def test_a_frame_of_another_version_than_agreed_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A side that forgets what was agreed would be misread."""
    listener = await serve(Address("127.0.0.1", 0), ONE, Accepting(Old), WireSettings(), versions=VERSIONS)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    greeting, late = hello(TWO, VERSIONS, 1), encode(OldPut("late"))
    writer.write(header(greeting, HANDSHAKE_VERSION) + greeting)
    writer.write(header(late, NEXT.highest) + late)
    await ends(reader, writer)
    listener.close()
    (line,) = warnings(caplog)
    assert f"a frame of version {NEXT.highest}; this connection uses version {VERSIONS.highest}" in line
