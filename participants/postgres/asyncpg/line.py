"""The line between an asyncpg connection and its transport, on which undoubt's own statements travel as well.

The line stands in the place of asyncpg's protocol. As long as only asyncpg has sent something, every call of
the transport is passed on. Between two calls of the application the connection is *lent*: :meth:`Line.send`
writes a pipeline, whose answers the line reads; :meth:`Line.hold` holds a prefix back until the application's
first statement, before which :meth:`Line.send_held` writes it, without a Sync; the answers to the prefix are
taken out of what asyncpg gets.

Rules of a lent connection:

1. It is lent only while asyncpg waits for nothing (asyncpg's own check is asked), and while asyncpg has no
   part of a message in its buffer: the last bytes that asyncpg got were a whole ReadyForQuery.
2. Parameters, notices and notifications are passed to asyncpg, as whole messages; pause, resume, end of file
   and the loss of the connection as well.
3. asyncpg learns the state of the transaction only from ReadyForQuery. So a connection goes back to an
   application only inside a branch, and only if asyncpg takes it for being in a transaction; otherwise the
   branch is begun through asyncpg.
4. After an error the server skips everything up to a Sync, a simple query too. If the prefix fails, asyncpg
   gets the error and a ReadyForQuery from the line, and the connection is closed.
5. A connection whose pipeline is no longer awaited (cancelled, late) is closed."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import asyncpg

from undoubt.participants.deadlines import Deadline, deadlines
from undoubt.participants.postgres.asyncpg import wire
from undoubt.participants.postgres.session import (
    Answers,
    AnswerTimedOut,
    NoAnswer,
    Notice,
    ServerError,
    Step,
    keep,
)

_READY_IDLE = b"Z\0\0\0\5I"
_NO_TRANSACTION = b"I"
_NO_STATEMENT = "26000"
"""invalid_sql_statement_name: the application has removed what the session kept prepared."""

SYNC = b"S\0\0\0\4"
EXECUTE = b"E\0\0\0\x09\0\0\0\0\0"
"""Runs the unnamed portal to its end."""
_LENGTH = struct.Struct("!i")
_COUNT = struct.Struct("!H")


def parse(name: bytes, sql: str) -> bytes:
    """Prepare ``sql`` as the statement ``name``; the server finds out the types of its parameters."""
    return _message(b"P", name + b"\0" + sql.encode() + b"\0" + _COUNT.pack(0))


def bind(name: bytes, values: Sequence[str]) -> bytes:
    """Bind the unnamed portal to the statement ``name``; values and rows are text."""
    parts = [b"\0", name, b"\0", _COUNT.pack(0), _COUNT.pack(len(values))]
    for value in values:
        data = value.encode()
        parts += (_LENGTH.pack(len(data)), data)
    parts.append(_COUNT.pack(0))
    return _message(b"B", b"".join(parts))


def command_tag(body: bytes) -> str:
    return body[:-1].decode("ascii", "replace")


def row(body: bytes) -> tuple[str | None, ...]:
    values: list[str | None] = []
    at = _COUNT.size
    for _ in range(_COUNT.unpack_from(body)[0]):
        [size] = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        values.append(None if size < 0 else body[at : at + size].decode("utf-8", "replace"))
        at += max(size, 0)
    return tuple(values)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + _LENGTH.pack(len(body) + 4) + body


def ends_ready(data: bytes) -> bool:
    """Whether ``data``, the last bytes that an idle client received, ends with a whole ReadyForQuery.

    Behind the answer to the last query only asynchronous messages can follow, in whose texts no zero byte
    stands. So the bytes of a ReadyForQuery can be there by chance only in the head of a notification whose
    length ends in ``Z`` (90) and whose process id is 5; such an end does not count."""
    return data[-6:-1] == b"Z\0\0\0\5" and data[-10:-6] != b"A\0\0\0"


class KeptStatements:
    """The statements that a session keeps prepared."""

    def __init__(self) -> None:
        self.names: dict[str, bytes] = {}
        """By their text."""
        self._last: tuple[Sequence[Step], bytes] | None = None

    def encoded(self, steps: Sequence[Step]) -> bytes | None:
        """The messages of ``steps`` if they were remembered last; all of ``steps`` are kept."""
        return self._last[1] if self._last is not None and self._last[0] is steps else None

    def remember(self, steps: Sequence[Step], data: bytes) -> None:
        self._last = (steps, data)

    def clear(self) -> None:
        self.names.clear()
        self._last = None


class Exchange:
    """The messages of some steps, and the answers to them."""

    __slots__ = ("_kept", "_parsing", "answers", "data", "deadline", "error", "quiet", "result", "steps")

    def __init__(self, steps: Sequence[Step], kept: KeptStatements, *, quiet: bool = False) -> None:
        """``quiet``: only whether the steps succeed is of interest; the answers stay empty."""
        self.quiet = quiet
        self.steps = len(steps)
        self.answers = Answers([], [], [])
        self.error: ServerError | None = None
        self.result: asyncio.Future[Answers] | None = None
        self.deadline: Deadline | None = None
        self._kept = kept
        self._parsing: deque[Step] = deque()
        """The steps that the server has still to parse."""
        data = kept.encoded(steps) if quiet else None
        if data is None:
            data = b"".join(self._encoded(steps))
            if quiet and not self._parsing:
                kept.remember(steps, data)
        self.data = data

    def _encoded(self, steps: Sequence[Step]) -> list[bytes]:
        parts = []
        for step in steps:
            name = self._kept.names.get(step.sql) if step.keep else b""
            if not name:
                # A statement counts as kept once its ParseComplete has come: an error before it skips it.
                name = f"undoubt_{secrets.token_hex(8)}".encode() if step.keep else b""
                self._parsing.append(Step(step.sql, (name.decode(),), step.keep))
                parts.append(parse(name, step.sql))
            parts += (bind(name, step.values), EXECUTE)
        return parts

    def join(self, later: Exchange) -> None:
        """Put ``later`` behind this one, in the same pipeline."""
        self.steps += later.steps
        self.data += later.data
        self._parsing.extend(later._parsing)

    @property
    def complete(self) -> bool:
        return len(self.answers.tags) == self.steps

    def take(self, kind: bytes, body: bytes) -> None:
        """Note an answer of the server, of a kind that is not asynchronous."""
        answers = self.answers
        if kind in {wire.COMMAND_COMPLETE, wire.EMPTY_QUERY}:
            answers.tags.append(command_tag(body))
            if len(answers.rows) < len(answers.tags):
                answers.rows.append([])
        elif kind == wire.DATA_ROW:
            if len(answers.rows) == len(answers.tags):
                answers.rows.append([])
            answers.rows[-1].append(row(body))
        elif kind == wire.PARSE_COMPLETE:
            step = self._parsing.popleft()
            if step.keep:
                self._kept.names[step.sql] = step.values[0].encode()
        elif kind == wire.ERROR:
            self.error = self.error or wire.server_error(body)
            if self.error.sqlstate == _NO_STATEMENT:
                self._kept.clear()
        elif kind != wire.BIND_COMPLETE:
            raise NoAnswer(f"the server sent a message of an unexpected type: {kind!r}")

    def note(self, notice: Notice) -> None:
        keep(self.answers.notices, notice)

    def expire(self) -> None:
        self.fail(AnswerTimedOut("no answer in time"))

    def fail(self, error: Exception) -> None:
        if self.result is not None and not self.result.done():
            self.result.set_exception(error)

    def finish(self) -> None:
        if self.error is not None:
            self.fail(self.error)
        elif not self.complete and not self.quiet:
            self.fail(NoAnswer("the server answered fewer statements than were sent"))
        elif self.result is not None and not self.result.done():
            self.result.set_result(self.answers)


class Line(asyncio.Protocol):
    """See the module. A line is for one event loop."""

    def __init__(self, connection: Any) -> None:
        self.end: ServerError | None = None
        """The server's reason for ending the session, None as long as there is none."""
        self.failed_begin: ServerError | None = None
        """The error of a prefix, with which the session has ended."""
        self._connection = connection
        self._transport: asyncio.Transport = connection._transport
        self._protocol: Any = self._transport.get_protocol()
        self._asked: deque[Exchange] = deque()
        """What was sent by the line and is not answered; a prefix, which has no ``result``, is the first."""
        self.held: Exchange | None = None
        """A prefix that waits for the application's first statement."""
        self._buffer = b""
        """A part of a message; empty if nothing is asked."""
        self.clean = False
        """asyncpg's buffer is empty: see rule 1."""
        self._status: bytes | None = None
        """The state of the transaction, None if asyncpg knows it better."""
        self._kept = KeptStatements()
        self._idle_check: Any = None
        self._transport.set_protocol(self)

    @classmethod
    def to(cls, connection: Any) -> Line | None:
        """The line of ``connection``, made if there is none yet; None if the connection is closed."""
        if connection.is_closed():
            return None
        there = connection._transport.get_protocol()
        return there if isinstance(there, Line) else cls(connection)

    def stop(self) -> None:
        """Give the connection back to asyncpg's protocol for good."""
        if not self._transport.is_closing():
            self._transport.set_protocol(cast("asyncio.Protocol", self._protocol))

    # Lending.

    def set_up(self) -> None:
        """Prepare asyncpg's own check that it waits for nothing. Raises any error if asyncpg has none."""
        kind = asyncpg.protocol.protocol.PreparedStatementState
        # close_statement() checks first whether asyncpg is busy, then refuses to close a statement in use.
        self._idle_check = kind("", "", self._protocol, asyncpg.Record, False)
        self._idle_check.attach()

    @property
    def can_be_lent(self) -> bool:
        ours = bool(self._asked) or self.held is not None
        return (ours or self.clean) and not self._transport.is_closing() and self._driver_is_idle()

    def _driver_is_idle(self) -> bool:
        check = self._protocol.close_statement(self._idle_check, None)
        try:
            check.send(None)
        except asyncpg.InternalClientError:
            return True
        except asyncpg.InterfaceError:
            return False
        check.close()  # it would wait for a cancellation
        return False

    @property
    def in_transaction(self) -> bool:
        if self._asked:
            return True
        if self._status is not None:
            return self._status != _NO_TRANSACTION
        return bool(self._connection.is_in_transaction())

    @property
    def unanswered(self) -> bool:
        """Whether a statement of the line may be running on the server."""
        return bool(self._asked)

    def hold(self, steps: Sequence[Step]) -> None:
        """Hold ``steps`` back until :meth:`send_held`, or :meth:`send`, which sends them first."""
        self.held = Exchange(steps, self._kept)

    def drop_held(self) -> None:
        self.held = None
        if self._buffer and not self._asked:
            data, self._buffer = self._buffer, b""
            self._pass_on(data)

    def send_held(self) -> None:
        """Write the prefix, immediately before asyncpg writes a statement. Does nothing without a prefix."""
        held, self.held = self.held, None
        if held is not None and not self._transport.is_closing():
            self._asked.append(held)
            self._transport.write(held.data)

    def send(self, pipelines: Sequence[Sequence[Step]], timeout_s: float) -> list[asyncio.Future[Answers]]:
        """Write ``pipelines``, each with a Sync, in one piece; a prefix that is held back is part of the
        first. Each result is its answers, which are read of the first only, or a ``ServerError`` or
        ``NoAnswer``. The caller has asked ``can_be_lent``."""
        loop = asyncio.get_running_loop()
        exchanges = [Exchange(steps, self._kept, quiet=at > 0) for at, steps in enumerate(pipelines)]
        if (held := self.held) is not None:
            self.held = None
            held.join(exchanges[0])
            exchanges[0] = held
        results = []
        data: list[bytes] = []
        due = loop.time() + timeout_s
        for exchange in exchanges:
            exchange.result = loop.create_future()
            exchange.deadline = deadlines().call_at(due, exchange.expire)
            results.append(exchange.result)
            data += (exchange.data, SYNC)
        self._asked.extend(exchanges)
        self._transport.write(b"".join(data))
        return results

    def give_up(self, error: Exception) -> None:
        """Fail everything that is awaited: the session is being closed."""
        for exchange in self._asked:
            exchange.fail(error)
            self._done(exchange)

    def _done(self, exchange: Exchange) -> None:
        if exchange.deadline is not None:
            exchange.deadline.cancel()
        if exchange.result is not None and exchange.result.done() and not exchange.result.cancelled():
            exchange.result.exception()  # perhaps it is not awaited any more

    # Calls of the transport.

    def data_received(self, data: bytes) -> None:
        if self.failed_begin is not None:
            return  # asyncpg was told that nothing comes any more
        if self._asked or self.held is not None:
            self._read(self._buffer + data if self._buffer else data)
        else:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        if any(word in data for word in wire.ENDING):
            self.end = wire.last_session_end(data) or self.end
        self.clean = ends_ready(data)
        self._status = None
        self._protocol.data_received(data)

    def _read(self, data: bytes) -> None:
        """Read the answers to what the line has sent. While a prefix is held back, asyncpg waits for nothing
        and gets only whole messages, so that its buffer stays empty."""
        at, size = 0, len(data)
        self._buffer = b""
        while size - at >= wire.HEADER_BYTES:
            kind, length = wire.head(data, at)
            end = at + 1 + length
            if length < wire.HEADER_BYTES - 1:
                self._transport.abort()
                return
            if end > size:
                break
            if kind in wire.ASYNCHRONOUS:
                self._pass_asynchronous(kind, data[at:end])
            elif not self._asked:
                self._unasked(data[at:])
                return
            elif kind == wire.READY:
                self._ready(data[end - 1 : end])
            elif kind in wire.ANSWERS and self._asked[0].quiet:
                pass
            else:
                self._answer(kind, data[at:end])
            at = end
            if not self._asked and self.held is None:
                break
        rest = data[at:]
        if not rest or self.failed_begin is not None:
            return
        if self._asked or self.held is not None:
            self._buffer = rest
        else:
            self._pass_on(rest)

    def _unasked(self, data: bytes) -> None:
        """``data`` begins with a message that is no answer, mostly the server's reason for ending the
        session. The prefix cannot travel any more, and no statement may be sent without its prefix."""
        self.held = None
        self._pass_on(data)
        self._transport.abort()

    def _pass_asynchronous(self, kind: bytes, message: bytes) -> None:
        if kind == wire.NOTICE and self._asked:
            self._asked[0].note(wire.notice(message[wire.HEADER_BYTES :]))
        self._protocol.data_received(message)

    def _answer(self, kind: bytes, message: bytes) -> None:
        first = self._asked[0]
        try:
            first.take(kind, message[wire.HEADER_BYTES :])
        except (NoAnswer, ValueError, LookupError, struct.error) as error:
            self.give_up(NoAnswer(f"the answer could not be read: {error}"))
            self._transport.abort()
            return
        if first.error is not None and first.error.fatal:
            self.end = first.error
        if first.result is not None:
            return
        if first.error is not None:
            self._prefix_failed(first.error, message)
        elif first.complete:
            self._asked.popleft()
            self._status = None

    def _prefix_failed(self, error: ServerError, message: bytes) -> None:
        """Rule 4."""
        self._asked.popleft()
        self.failed_begin = error
        self.give_up(error)
        if not self._asked and not self._driver_is_idle():
            # Otherwise the application has not sent a statement yet, and asyncpg takes no error.
            self._protocol.data_received(message)
            if not error.fatal:
                self._protocol.data_received(_READY_IDLE)
        self._transport.abort()

    def _ready(self, status: bytes) -> None:
        exchange = self._asked.popleft()
        self._status = status
        self.clean = True
        exchange.finish()
        self._done(exchange)

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self._protocol.eof_received()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        end = self.end
        for exchange in self._asked:
            if exchange.error is not None:
                exchange.fail(exchange.error)
            elif end is not None:
                exchange.fail(NoAnswer(end.message, end.sqlstate))
            else:
                exchange.fail(NoAnswer(str(exc) if exc else "the connection was lost"))
            self._done(exchange)
        self._asked.clear()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
