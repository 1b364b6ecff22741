"""A proxy that understands PostgreSQL's protocol far enough to strike at one message of one connection.

Messages are framed as in https://www.postgresql.org/docs/current/protocol-message-formats.html: a type, then
the length; the first ones of a client have no type. Nothing of their contents is needed but the text of a
query, for people, and ReadyForQuery, which ends an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

PROTOCOL_MAJOR = 3
AUTHENTICATION_OK, AUTHENTICATION_SASL_FINAL = 0, 12
LABEL_BYTES_MAX = 60
_LITERALS = re.compile(r"'[^']*'?|\d+")
_ANSWERED = {b"Q", b"S", b"F"}
"""Query, Sync and FunctionCall: each leads to one ReadyForQuery."""

_DESCRIBED = {b"T", b"n"}
"""RowDescription and NoData: what a client waits for that has sent Flush instead of Sync."""


class _Code(enum.IntEnum):
    """Of the messages that may come in the startup's place."""

    CANCEL = 80877102
    SSL = 80877103
    GSSENC = 80877104


class Fault(enum.StrEnum):
    """What happens at a message of the client's."""

    CUT_BEFORE = "cut before"
    """It never arrives; both sides see the connection end."""
    HALF = "half"
    """Half of it arrives, and the connection's end."""
    CUT_AFTER = "cut after"
    """It arrives; the client sees the connection end before any answer."""
    OUTLIVES = "outlives"
    """The client sees the connection end at once; it arrives later."""
    ANSWER_LOST = "answer lost"
    """It is answered; instead of the answer the client sees the connection end."""
    ANSWER_HALF = "answer half"
    """It is answered; the client sees half of the answer and the connection's end."""
    DELAYED = "delayed"
    """It arrives later, but in time."""
    LATE = "late"
    """It arrives when the client does not wait for it any more, even if the client has closed the
    connection meanwhile."""
    SILENCE = "silence"
    """It arrives, and nothing that the server says on this connection does."""
    HOLE = "hole"
    """Neither it nor anything else passes this connection any more, not even its end."""


class Place(NamedTuple):
    """One message of connection ``connection``, known by what it says: a run may send more messages before it
    than another one, for settings that the last transaction had already. Both numbers count from 0 since the
    wire was armed."""

    connection: int
    kind: str
    """Its type, as in the protocol."""
    about: str
    """The text of the query or statement that it belongs to, without literals and numbers."""
    nth: int
    """Among the messages of the connection with the same ``kind`` and ``about``."""

    def __str__(self) -> str:
        return f"{self.connection}.{self.kind}.{self.nth}"


@dataclass(frozen=True, slots=True)
class Strike:
    """``place`` may be a text instead: the first message whose label, or its text, begins with it,
    behind ``passing`` other ones. ``hold_s``: how long a message is held back, if it is."""

    place: Place | str
    fault: Fault
    hold_s: float
    passing: int = 0


class Wire:
    """``async with Wire(dsn) as wire``: ``wire.dsn`` leads to ``dsn`` through it."""

    def __init__(self, dsn: str) -> None:
        self._to = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0
        self._generation = 0
        self._strike: Strike | None = None
        self._passing = 0
        self.struck = False
        self.dark = False
        """Nobody is let through: every connection is cut, and every new one refused."""
        self.heard: list[tuple[Place, str]] = []
        """The messages since it was armed, and what they say."""
        self.to_nobody: list[str] = []
        """Those of them that came on a connection which was struck before, and is silent since."""

    @property
    def parameters(self) -> dict[str, str]:
        """libpq's, of the way through it."""
        if self._server is None:
            raise RuntimeError("the wire is not open")
        port = self._server.sockets[0].getsockname()[1]
        return {**self._to, "host": "127.0.0.1", "port": str(port)}

    @property
    def dsn(self) -> str:
        return make_conninfo("", **self.parameters)

    def arm(self, strike: Strike | None = None) -> None:
        """Count connections and messages from 0 again, and strike once."""
        self._generation += 1
        self._numbers = 0
        self._strike, self.struck = strike, False
        self._passing = 0 if strike is None else strike.passing
        self.heard, self.to_nobody = [], []

    def heal(self) -> None:
        """End the connections that nothing passes any more; what is held back goes on."""
        for link in list(self._links):
            link.heal()

    def black_out(self) -> None:
        """Cut every connection, and refuse new ones until :meth:`light`."""
        self.dark = True
        for link in list(self._links):
            link.cut()

    def light(self) -> None:
        self.dark = False

    @property
    def kept(self) -> bool:
        """A client keeps a connection that nothing passes any more."""
        return any(link.silent and not link.closed_by_client for link in self._links)

    @property
    def settled(self) -> bool:
        """The servers have answered everything that reached them, or ended the connection: nothing that was
        sent through this wire can happen later."""
        return all(link.settled for link in self._links)

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            writer.close()  # also that of a task that was cancelled before its first step

        task.add_done_callback(over)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.dark:
            _reset(writer)
            return
        host = self._to.get("host", "localhost")
        port = self._to.get("port", "5432")
        try:
            if host.startswith("/"):
                far = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                far = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        link = _Link((reader, writer), far, self)
        self._links.add(link)
        try:
            await link.carry()
        finally:
            self._links.discard(link)

    @property
    def generation(self) -> int:
        """How often it was armed."""
        return self._generation

    def judge(self, link: _Link, label: str, generation: int) -> Strike | None:
        """Count a message that was read in ``generation``; the strike if it is the one to be struck. What
        was sent together with a message that was held back, before the wire was armed again, is not
        counted: it belongs to the transaction before."""
        if generation != self._generation:
            return None
        if link.generation != self._generation:
            link.generation, link.number, link.messages = self._generation, self._numbers, 0
            link.said.clear()
            self._numbers += 1
        first = link.messages == 0
        link.messages += 1
        place = link.place_of(label)
        self.heard.append((place, label))
        if link.silent and first:
            self.to_nobody.append(label)
        if self._strike is None or self.struck:
            return None
        wanted = self._strike.place
        if not (
            wanted in {label[: len(wanted)], label[2:][: len(wanted)]}
            if isinstance(wanted, str)
            else place == wanted
        ):
            return None
        if self._passing:
            self._passing -= 1
            return None
        self.struck = True
        return self._strike


class _Link:
    """One connection: two sockets, and what passes between them."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        wire: Wire,
    ) -> None:
        self.generation = self.number = self.messages = 0
        self.said: Counter[tuple[str, str]] = Counter()
        """The messages since the wire was armed, by their type and what they belong to."""
        self._about = ""
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self._wire = wire
        self._frontend, self._backend = _Frames(typed=False), _Frames(typed=True)
        self._prepared: dict[bytes, bytes] = {}
        """What the client has prepared under a name, by that name."""
        self._owed = 0
        """Answers that the server has not given yet: one ReadyForQuery each."""
        self._held = asyncio.Event()
        """Clear while a message is held back."""
        self._held.set()
        self._mute = False
        """Nothing reaches the client any more."""
        self._hole = False
        """Nothing reaches the server any more, not even the connection's end."""
        self._up, self._down = bytearray(), bytearray()
        """What is about to be written to the server, and to the client."""
        self._answer: bytearray | None = None
        """What the client is not to see, once complete, and its connection is to be cut."""
        self._half = False
        self._server_over = self._client_over = self._eof_sent = False

    @property
    def silent(self) -> bool:
        return self._mute or self._hole

    @property
    def closed_by_client(self) -> bool:
        return self._client_over

    @property
    def settled(self) -> bool:
        if self._server_over:
            return True
        return self._held.is_set() and not self._hole and not self._client_over and self._owed <= 0

    def place_of(self, label: str) -> Place:
        """That of a message which says ``label``, and is counted."""
        kind, _, words = label.partition(" ")
        if words:
            self._about = _LITERALS.sub("?", words)
        nth = self.said[kind, self._about]
        self.said[kind, self._about] += 1
        return Place(self.number, kind, self._about, nth)

    async def carry(self) -> None:
        upward = asyncio.create_task(self._carry_up())
        try:
            await self._carry_down()
            if self._mute:
                await upward  # a client that hears nothing does not hear of the server's end either
        finally:
            self._held.set()
            # Before the wait, which is left without them if this task is cancelled in it.
            self._client.close()
            self._server.close()
            upward.cancel()
            await asyncio.wait([upward])

    def cut(self) -> None:
        """Both sides see the connection's end; what has arrived at the server stays arrived."""
        self._end_client()
        self._end_server()

    def heal(self) -> None:
        if self.silent:
            self.cut()

    async def _carry_up(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._client_reader.read(65536):
                generation = self._wire.generation
                for frame in self._frontend.feed(data):
                    await self._pass(frame, generation)
                self._flush()
        self._client_over = True
        if not self._hole:
            self._end_server()

    async def _pass(self, frame: bytes, generation: int) -> None:
        label, counts = self._look_at(frame)
        strike = self._wire.judge(self, label, generation) if counts else None
        if self._hole or self._eof_sent:
            return
        if strike is None:
            self._send(frame)
            return
        self._flush()
        match strike.fault:
            case Fault.CUT_BEFORE:
                self.cut()
            case Fault.HALF:
                self._up += frame[: len(frame) // 2]
                self.cut()
            case Fault.CUT_AFTER:
                self._send(frame)
                self.cut()
            case Fault.ANSWER_LOST | Fault.ANSWER_HALF as fault:
                self._answer, self._half = bytearray(), fault is Fault.ANSWER_HALF
                self._send(frame)
            case Fault.SILENCE:
                self._mute = True
                self._send(frame)
            case Fault.HOLE:
                self._mute = self._hole = True
            case Fault.DELAYED | Fault.LATE | Fault.OUTLIVES as fault:
                self._held.clear()
                if fault is Fault.OUTLIVES:
                    self._end_client()
                await asyncio.sleep(strike.hold_s)
                self._send(frame)
                self._held.set()

    def _look_at(self, frame: bytes) -> tuple[str, bool]:
        """What a message says, and whether it is one of those that count."""
        if self._frontend.typed and not self._frontend.just_typed:
            kind = chr(frame[0])
            text = frame[5:].split(b"\0")
            said = b"" if kind not in "QP" else text[0] if kind == "Q" else text[1]
            if kind == "P" and text[0]:
                self._prepared[text[0]] = said
            elif kind == "B" and text[1]:
                said = self._prepared.get(text[1], b"")
            words = " ".join(said[:LABEL_BYTES_MAX].decode(errors="replace").split())
            return f"{kind} {words}".strip(), kind != "X"
        self._frontend.just_typed = False
        code = int.from_bytes(frame[4:8], "big")
        match code:
            case _Code.CANCEL:
                return "cancel", False
            case _Code.SSL | _Code.GSSENC:
                self._backend.expect_byte()
                return "encryption?", True
            case _:
                return "startup", True

    def _send(self, frame: bytes) -> None:
        # The first ReadyForQuery comes by itself, at the end of the startup.
        startup = frame[0] == 0 and int.from_bytes(frame[4:6], "big") == PROTOCOL_MAJOR
        self._owed += startup or frame[:1] in _ANSWERED
        self._up += frame

    def _flush(self) -> None:
        if self._up and not self._eof_sent:
            self._server.write(bytes(self._up))
        self._up.clear()

    async def _carry_down(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._server_reader.read(65536):
                for frame in self._backend.feed(data):
                    self._hand_on(frame)
                if self._down and not self._client.is_closing():
                    self._client.write(bytes(self._down))
                self._down.clear()
        self._server_over = True
        if not self._mute:
            self._end_client(abruptly=self._answer is not None)

    def _hand_on(self, frame: bytes) -> None:
        ends = frame[:1] == b"Z"
        self._owed -= ends
        if self._mute:
            return
        if self._answer is None:
            self._down += frame
            return
        self._answer += frame
        flushed = self._owed <= 0 and frame[:1] in _DESCRIBED
        if not (ends or flushed or len(frame) == 1 or _asks_for_more(frame)):
            return
        if self._half:
            self._client.write(bytes(self._down + self._answer[: len(self._answer) // 2]))
        self._end_client(abruptly=not self._half)
        self._end_server()

    def _end_client(self, *, abruptly: bool = True) -> None:
        self._mute = True
        self._down.clear()
        if self._client.is_closing():
            return
        # Some clients see a reset, and some the end of the stream.
        if abruptly and self.messages % 2:
            _reset(self._client)
        else:
            self._client.close()

    def _end_server(self) -> None:
        """As a client that has gone: what was sent before still arrives."""
        self._hole = False
        self._flush()
        if not self._eof_sent:
            self._eof_sent = True
            with contextlib.suppress(OSError):
                self._server.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    door = writer.get_extra_info("socket")
    if door is not None:
        with contextlib.suppress(OSError):
            door.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _asks_for_more(frame: bytes) -> bool:
    """An authentication request that the client has to answer."""
    if frame[:1] != b"R":
        return False
    return int.from_bytes(frame[5:9], "big") not in {AUTHENTICATION_OK, AUTHENTICATION_SASL_FINAL}


class _Frames:
    """Cuts one direction of a connection into messages."""

    def __init__(self, *, typed: bool) -> None:
        self.typed = typed
        self.just_typed = False
        """The message that was given last is the first one's end: it has no type itself."""
        self._bytes = 0
        self._data = bytearray()

    def expect_byte(self) -> None:
        """The next message is one byte, the answer to a request for encryption."""
        self._bytes += 1

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._data += data
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> bytes | None:
        if self._bytes and self._data:
            self._bytes -= 1
            return self._take(1)
        head = 1 if self.typed else 0
        if len(self._data) < head + 4:
            return None
        size = head + int.from_bytes(self._data[head : head + 4], "big")
        if len(self._data) < size:
            return None
        if not self.typed and int.from_bytes(self._data[4:8], "big") not in set(_Code):
            self.typed = self.just_typed = True
        return self._take(size)

    def _take(self, size: int) -> bytes:
        frame = bytes(self._data[:size])
        del self._data[:size]
        return frame
