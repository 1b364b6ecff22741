"""A :class:`~undoubt.participants.postgres.session.Session` over asyncpg."""

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

TRANSLATED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class AsyncpgSession:
    """``connection`` is also what the application's wrapper works with, between ``begin`` and the end."""

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
        """Why the server has ended the session, if it said so while nobody asked it anything."""
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
            raise self._told(error) from error
        except BaseException:
            # Cancelled, or something nobody foresaw: nobody knows what this session is doing now.
            self.discard()
            raise
        if tag is None:
            # What asyncpg answers with if the connection ends in good order while it is being closed.
            raise NoAnswer("the connection was closed")
        return CommandResult(tag, standby_warning(self._notices) if self._notices else None)

    async def rows(self, sql: str, *args: object, timeout_s: float) -> Sequence[Row]:
        self._check()
        try:
            # As fetch() does it, past the codecs that the application may have set for this connection.
            ask: Any = self.connection._execute  # type: ignore[attr-defined]
            rows: Sequence[Row] = await ask(sql, args, 0, timeout_s, ignore_custom_codec=True)
        except TRANSLATED as error:
            raise self._told(error) from error
        except BaseException:
            self.discard()  # as above
            raise
        return rows

    def keep_statements(self) -> None:
        self.connection._stmt_cache_enabled = True  # type: ignore[attr-defined]

    async def set_up(self, hook: OnConnect) -> None:
        lent = LentForSetUp(self.connection)
        try:
            result = hook(lent)
            if inspect.isawaitable(result):
                await result
        finally:
            lent.undoubt_end()
            if not self.connection.is_closed():
                self.connection.add_log_listener(self._note)  # which a reset() would have taken away

    def handle(self, gid: Gid) -> BranchConnection:
        return BranchConnection(self.connection, gid, lambda: self.ended)

    def abandon(self) -> None:
        """Send nothing through it any more, and leave the connection open: it is somebody else's."""
        self._broken = self._abandoned = True
        if not self.connection.is_closed():
            self.connection.remove_log_listener(self._note)
            if self._listening is not None:
                self._listening.stop()

    def discard(self) -> None:
        self._broken = True
        if self._abandoned or self.connection.is_closed():
            return
        # asyncpg waits for the cancellation that it has sent on its way.
        close_in_background(_close(self.connection))

    def _check(self) -> None:
        if self.broken:
            if (end := self.ended) is not None:
                raise NotSent(end.message, end.sqlstate)
            raise NotSent("the connection is closed")

    def _told(self, error: BaseException) -> ServerError | NoAnswer | NotSent:
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
    """What an error of asyncpg, of the operating system or of the clock says about the statement."""
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
            # Raised by the client alone, before it sends anything.
            return NotSent(str(error))
        case TimeoutError():
            return AnswerTimedOut("no answer in time")
        case _:
            return NoAnswer(str(error) or type(error).__name__)


class Listening(asyncio.Protocol):
    """What the transport of an asyncpg connection calls, in the place of asyncpg's own protocol."""

    def __init__(self, connection: Any) -> None:
        self.end: ServerError | None = None
        """Why the server has ended the session."""
        self._transport: asyncio.Transport = connection._transport
        self._protocol: Any = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @classmethod
    def to(cls, connection: Any) -> Listening | None:
        """The one that is there already, or a new one; None if the connection is closed."""
        if connection.is_closed():
            return None
        there = connection._transport.get_protocol()
        return there if isinstance(there, Listening) else cls(connection)

    def stop(self) -> None:
        """The connection is somebody else's again."""
        if not self._transport.is_closing():
            self._transport.set_protocol(cast("asyncio.Protocol", self._protocol))

    def data_received(self, data: bytes) -> None:
        if data[:1] == _ERROR:
            self.end = read_session_end(data) or self.end
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


def read_session_end(data: bytes) -> ServerError | None:
    """The error at the head of ``data`` if a session ends with it, else None."""
    if data[:1] != _ERROR or len(data) < _HEADER_BYTES:
        return None
    fields: dict[str, str] = {}
    for field in data[_HEADER_BYTES : 1 + int.from_bytes(data[1:_HEADER_BYTES])].split(b"\0"):
        if field:
            fields[chr(field[0])] = field[1:].decode("utf-8", "replace")
    if fields.get("V", fields.get("S")) not in FATAL or "C" not in fields:
        return None
    return ServerError(fields["C"], fields.get("M", ""), fatal=True)
