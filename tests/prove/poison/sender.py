"""A client that sends what no client of undoubt's would: bytes as they are, over a connection that is
sound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.prove.poison.frames import beside
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.sqlite import unix_socket
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.envelope import (
    Answer,
    Elsewhere,
    LeaderHint,
    Request,
    decode_answers,
)
from undoubt.coordinator.wire import (
    VERSIONS,
    Address,
    Connection,
    PeerIdentity,
    PeerRole,
    WireSettings,
    connect,
)
from undoubt.coordinator.wire.connection import header
from undoubt.coordinator.wire.handshake import HANDSHAKE_VERSION, hello
from undoubt.participants.ids import TxId

WINDOW = 64
ANSWER_S = 30.0
BESIDE = 10_000_000
"""Added to a poisoned request's number, it is the number of the sound one in the same frame."""

_me = PeerIdentity(PeerRole.CLIENT, name="poison")


@dataclass(slots=True)
class Answers:
    """To one window of frames. ``lost``: the node ended the connection."""

    by_number: dict[int, envelope.Reply | envelope.Failed | Elsewhere] = field(default_factory=dict)
    lost: str = ""


class Sender:
    """One connection to one node, made by :meth:`to`."""

    def __init__(self) -> None:
        self._answers = Answers()
        self._wanted = 0
        self._done = asyncio.Event()
        self.standing = asyncio.get_running_loop().create_future()
        self._connection: Connection | None = None

    @classmethod
    async def to(cls, address: str) -> Sender:
        """Raises ``OSError``."""
        sender = cls()
        await connect(Address.parse(address), _me, sender._accept, WireSettings(), timeout_s=ANSWER_S)
        async with asyncio.timeout(ANSWER_S):
            await sender.standing
        return sender

    def _accept(self, connection: Connection) -> Sender:
        self._connection = connection
        return self

    def _answers_in(self, payload: bytes) -> Iterable[Answer]:
        return decode_answers(payload)

    def _frames(self, number: int, raw: bytes, honest: Request[Any]) -> Iterable[bytes]:
        yield beside(number, raw, honest)

    def received(self, payload: bytes) -> None:
        for answer in self._answers_in(payload):
            if isinstance(answer, LeaderHint):
                if not self.standing.done():
                    self.standing.set_result(answer)
            else:
                self._answers.by_number[answer.number] = answer
        if len(self._answers.by_number) >= self._wanted:
            self._done.set()

    def lost(self, why: str) -> None:
        self._answers.lost = why
        if not self.standing.done():
            self.standing.set_exception(ConnectionError(why))
            self.standing.exception()
        self._done.set()

    async def send(self, poisoned: Sequence[tuple[int, bytes]], known: TxId) -> Answers:
        """Each in a frame with a question about ``known``. Returns once all is answered, or the connection
        or :data:`ANSWER_S` is over."""
        self._answers.by_number = {}
        self._wanted = 2 * len(poisoned)
        if not self._answers.lost:
            self._done.clear()
        for number, raw in poisoned:
            if self._connection is not None:
                honest = Request(number + BESIDE, calls.RecordsCall((known,)))
                for frame in self._frames(number, raw, honest):
                    self._connection.send(frame)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._done.wait()
        return self._answers

    def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()


class OwnerSender(Sender):
    """To the owner of a SQLite ledger: a frame for each request."""

    @classmethod
    async def over(cls, ledger: Path) -> OwnerSender:
        """Raises ``OSError``."""
        sender = cls()
        sender.standing.set_result(None)
        await connect(unix_socket.connect(ledger), _me, sender._accept, WireSettings(), timeout_s=ANSWER_S)
        return sender

    def _answers_in(self, payload: bytes) -> Iterable[Answer]:
        yield envelope.decode_answer(payload)

    def _frames(self, number: int, raw: bytes, honest: Request[Any]) -> Iterable[bytes]:
        yield envelope.encode([number, msgspec.Raw(raw)])
        yield envelope.encode(honest)


def greeting(me: PeerIdentity) -> bytes:
    """The first frame of a sound handshake."""
    said = hello(me, VERSIONS, 0)
    return header(said, HANDSHAKE_VERSION) + said


async def throw(where: Address | Path, data: bytes, me: PeerIdentity | None = _me) -> bool:
    """Send ``data`` behind a sound handshake, or as the first that is said, to a port or to the owner's
    socket; whether the other side ends the connection, or answers."""
    if isinstance(where, Path):
        reader, writer = await asyncio.open_unix_connection(where)
    else:
        reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        async with asyncio.timeout(ANSWER_S):
            if me is not None:
                writer.write(greeting(me))
                await reader.read(1)
            writer.write(data)
            with contextlib.suppress(OSError):
                await writer.drain()
                writer.write_eof()
                await reader.read()
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return True
