"""Implements :class:`~undoubt.participants.postgres.session.ServerSession` over asyncpg."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import asyncpg

from undoubt.participants.ids import Gid
from undoubt.participants.postgres.asyncpg.connection import (
    BranchConnection,
    LentForSetUp,
    session_end,
    severity_of,
)
from undoubt.participants.postgres.session import (
    CLOSE_TIMEOUT_S,
    FATAL,
    AnswerTimedOut,
    CommandResult,
    NoAnswer,
    Notice,
    NotSent,
    Row,
    ServerError,
    ServerParameters,
    close_in_background,
    keep,
    standby_warning,
)

if TYPE_CHECKING:
    from undoubt.participants.postgres.asyncpg.connection import Connection
    from undoubt.participants.postgres.on_connect import OnConnect

_ERROR = b"E"
_HEADER_BYTES = 5
_ENDING = tuple(f"{severity}\0".encode() for severity in FATAL)

TRANSLATED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class AsyncpgSession:
    """A session with asyncpg. The application's wrapper uses ``connection`` as well, between the begin and
    the end of a branch."""

    intro: ServerParameters

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pid: int = connection.get_server_pid()
        self._broken = False
        self._abandoned = False
        self._notices: list[Notice] = []
        self._listening = Listening.to(connection)
        connection.add_log_listener(self._note)

    @property
    def ended(self) -> ServerError | None:
        """The server's reason for ending the session, if it sent one while no statement was running."""
        return None if self._listening is None else self._listening.end

    @property
    def broken(self) -> bool:
        return self._broken or self.connection.is_closed()

    @property
    def in_transaction(self) -> bool:
        return not self.connection.is_closed() and self.connection.is_in_transaction()

    @property
    def application_name(self) -> str:
        return str(self.connection.get_settings().application_name)

    async def script(self, sql: str, *, timeout_s: float) -> CommandResult:
        self._notices.clear()
        self._check()
        try:
            tag = await self.connection.execute(sql, timeout=timeout_s)
        except TRANSLATED as error:
            raise self._translated(error) from error
        except BaseException:
            # Cancelled, or an unexpected error: the state of this session is not known now.
            self.discard()
            raise
        if tag is None:
            # asyncpg returns None if the connection is closed regularly during the statement.
            raise NoAnswer("the connection was closed")
        return CommandResult(tag, standby_warning(self._notices) if self._notices else None)

    async def rows(self, sql: str, *args: object, timeout_s: float) -> Sequence[Row]:
        self._check()
        try:
            # As fetch() does it, but without the codecs that the application may have set for this
            # connection.
            ask: Any = self.connection._execute  # type: ignore[attr-defined]
            rows: Sequence[Row] = await ask(sql, args, 0, timeout_s, ignore_custom_codec=True)
        except TRANSLATED as error:
            raise self._translated(error) from error
        except BaseException:
            self.discard()  # as above
            raise
        return rows

    def keep_statements(self) -> None:
        self.connection._stmt_cache_enabled = True  # type: ignore[attr-defined]

    def keep_own_statements(self) -> None:
        """Does nothing: :meth:`keep_statements` has allowed them."""

    async def set_up(self, hook: OnConnect) -> None:
        lent = LentForSetUp(self.connection)
        try:
            result = hook(lent)
            if inspect.isawaitable(result):
                await result
        finally:
            lent.undoubt_end()
            if not self.connection.is_closed():
                self.connection.add_log_listener(self._note)  # a reset() in the hook would have removed it

    def handle(self, gid: Gid) -> BranchConnection:
        return BranchConnection(self.connection, gid, lambda: self.ended)

    def abandon(self) -> None:
        """Send nothing more through the session, and leave the connection open: it belongs to the
        application."""
        self._broken = self._abandoned = True
        if not self.connection.is_closed():
            self.connection.remove_log_listener(self._note)
            if self._listening is not None:
                self._listening.stop()

    def discard(self) -> None:
        self._broken = True
        if self._abandoned or self.connection.is_closed():
            return
        # Closing takes time: asyncpg waits for the cancellation that it has sent.
        close_in_background(_close(self.connection))

    def _check(self) -> None:
        if self.broken:
            if (end := self.ended) is not None:
                raise NotSent(end.message, end.sqlstate)
            raise NotSent("the connection is closed")

    def _translated(self, error: BaseException) -> ServerError | NoAnswer | NotSent:
        translated = translate(error)
        if (end := self.ended) is not None and isinstance(translated, NoAnswer | NotSent):
            translated = type(translated)(end.message, end.sqlstate)
        if isinstance(translated, NoAnswer) or (isinstance(translated, ServerError) and translated.fatal):
            self.discard()
        return translated

    def _note(self, _: Any, message: Any) -> None:
        keep(
            self._notices,
            Notice(
                severity_of(message),
                str(message.sqlstate or ""),
                str(message.message or ""),
                getattr(message, "server_source_filename", None),
            ),
        )


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=CLOSE_TIMEOUT_S)
    except TRANSLATED:
        connection.terminate()


def translate(error: BaseException) -> ServerError | NoAnswer | NotSent:
    """The meaning of an error of asyncpg, of the operating system or of a timeout for the statement."""
    error = session_end(error) or error
    match error:
        case asyncpg.PostgresConnectionError():
            return NoAnswer(str(error) or "the connection was lost")
        case asyncpg.PostgresError():
            return ServerError(
                str(error.sqlstate or "XX000"),
                str(error.args[0]) if error.args else "",
                detail=str(error.detail or ""),
                hint=str(error.hint or ""),
                fatal=severity_of(error) in FATAL,
            )
        case asyncpg.InterfaceError():
            # The client raises it before it sends anything.
            return NotSent(str(error))
        case TimeoutError():
            return AnswerTimedOut("no answer in time")
        case _:
            return NoAnswer(str(error) or type(error).__name__)


class Listening(asyncio.Protocol):
    """Receives the calls of the transport of an asyncpg connection in place of asyncpg's protocol, reads the
    server's reason for ending the session, and passes every call on."""

    def __init__(self, connection: Any) -> None:
        self.end: ServerError | None = None
        """The server's reason for ending the session, None as long as there is none."""
        self._transport: asyncio.Transport = connection._transport
        self._protocol: Any = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @classmethod
    def to(cls, connection: Any) -> Listening | None:
        """The ``Listening`` of ``connection``, made if there is none yet; None if the connection is
        closed."""
        if connection.is_closed():
            return None
        there = connection._transport.get_protocol()
        return there if isinstance(there, Listening) else cls(connection)

    def stop(self) -> None:
        """Stop reading: give the connection back to asyncpg's protocol."""
        if not self._transport.is_closing():
            self._transport.set_protocol(cast("asyncio.Protocol", self._protocol))

    def data_received(self, data: bytes) -> None:
        if any(word in data for word in _ENDING):
            self.end = last_session_end(data) or self.end
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self._protocol.eof_received()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


def last_session_end(data: bytes) -> ServerError | None:
    """The error among the messages in ``data`` that ends the session; None if there is none, or if ``data``
    does not begin with a message. It may come in one piece with the answer before it: then asyncpg refuses
    the next statement with an error of its own (``InternalClientError``)."""
    end, start = None, 0
    while len(data) - start >= _HEADER_BYTES:
        if data[start : start + 1] == _ERROR:
            end = read_session_end(data[start:]) or end
        start += 1 + int.from_bytes(data[start + 1 : start + _HEADER_BYTES])
    return end


def read_session_end(data: bytes) -> ServerError | None:
    """The error at the head of ``data`` if that error ends the session, otherwise None."""
    if data[:1] != _ERROR or len(data) < _HEADER_BYTES:
        return None
    fields: dict[str, str] = {}
    for field in data[_HEADER_BYTES : 1 + int.from_bytes(data[1:_HEADER_BYTES])].split(b"\0"):
        if field:
            fields[chr(field[0])] = field[1:].decode("utf-8", "replace")
    if fields.get("V", fields.get("S")) not in FATAL or "C" not in fields:
        return None
    return ServerError(fields["C"], fields.get("M", ""), fatal=True)
