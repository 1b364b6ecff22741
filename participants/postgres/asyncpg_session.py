"""A :class:`~participants.postgres.session.Session` over asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from participants.postgres.session import (
    Answer,
    Introduction,
    Late,
    NoAnswer,
    Notice,
    NotSent,
    Row,
    ServerError,
)

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

CLOSE_TIMEOUT_S = 2.0
"""How long a session that is thrown away may take to cancel what runs in it and to say goodbye."""

TRANSLATED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
_FATAL = frozenset({"FATAL", "PANIC"})
_NOTICES_KEPT_MAX = 100
_closing: set[asyncio.Task[None]] = set()


class AsyncpgSession:
    """``connection`` is also what the application's wrapper works with, between ``begin`` and the end."""

    intro: Introduction

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pid: int = connection.get_server_pid()
        self._broken = False
        self._notices: list[Notice] = []
        connection.add_log_listener(self._note)

    @property
    def broken(self) -> bool:
        return self._broken or self.connection.is_closed()

    @property
    def in_transaction(self) -> bool:
        return not self.connection.is_closed() and self.connection.is_in_transaction()

    @property
    def application_name(self) -> str:
        return str(self.connection.get_settings().application_name)

    async def script(self, sql: str, *, timeout_s: float) -> Answer:
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
        return Answer(tag or "", tuple(self._notices))

    async def rows(self, sql: str, *args: object, timeout_s: float) -> Sequence[Row]:
        self._check()
        try:
            return await self.connection.fetch(sql, *args, timeout=timeout_s)
        except TRANSLATED as error:
            raise self._told(error) from error
        except BaseException:
            self.discard()  # as above
            raise

    def keep_statements(self) -> None:
        self.connection._stmt_cache_enabled = True  # type: ignore[attr-defined]

    def discard(self) -> None:
        self._broken = True
        if self.connection.is_closed():
            return
        # A coroutine of its own: closing waits for the cancellation that asyncpg has sent on its way, and
        # whoever discards is often being cancelled.
        task = asyncio.get_running_loop().create_task(_close(self.connection))
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    def _check(self) -> None:
        if self.broken:
            raise NotSent("the connection is closed")

    def _told(self, error: BaseException) -> ServerError | NoAnswer | NotSent:
        translated = translate(error)
        if isinstance(translated, NoAnswer) or (isinstance(translated, ServerError) and translated.fatal):
            self.discard()
        return translated

    def _note(self, _: Any, message: Any) -> None:
        if len(self._notices) < _NOTICES_KEPT_MAX:
            self._notices.append(
                Notice(
                    str(getattr(message, "severity_en", None) or getattr(message, "severity", "")),
                    str(message.sqlstate or ""),
                    str(message.message or ""),
                    getattr(message, "server_source_filename", None),
                )
            )


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=CLOSE_TIMEOUT_S)
    except TRANSLATED:
        connection.terminate()


async def drain_discarded() -> None:
    """Wait until sessions that were thrown away in this event loop are closed."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in _closing if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks)


def translate(error: BaseException) -> ServerError | NoAnswer | NotSent:
    """What an error of asyncpg, of the operating system or of the clock says about the statement."""
    match error:
        case asyncpg.PostgresConnectionError():
            return NoAnswer(str(error) or "the connection was lost")
        case asyncpg.PostgresError():
            severity = getattr(error, "severity_en", None) or getattr(error, "severity", "")
            return ServerError(
                str(error.sqlstate or "XX000"),
                str(error.args[0]) if error.args else "",
                detail=str(error.detail or ""),
                hint=str(error.hint or ""),
                fatal=severity in _FATAL,
            )
        case asyncpg.InterfaceError():
            # Raised by the client alone, before it sends anything.
            return NotSent(str(error))
        case TimeoutError():
            return Late("no answer in time")
        case _:
            return NoAnswer(str(error) or type(error).__name__)
