"""Why a server has ended a session, and which setting made it cancel something.

A session that is idle in its transaction is ended with an ErrorResponse that answers no request
(``idle_in_transaction_session_timeout``, ``transaction_timeout``, an administrator). libpq keeps it; asyncpg
drops it, and tells only that the connection is closed. :class:`Listening` stands between asyncpg and its
transport and keeps it there
(https://www.postgresql.org/docs/current/protocol-message-formats.html).
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from undoubt.participants.postgres.session import ServerError

IDLE_IN_TRANSACTION = "25P03"
"""Ends a session that waits for its next statement, and never one that has received it
(``PostgresMain`` in ``src/backend/tcop/postgres.c``)."""

_SETTINGS = {
    IDLE_IN_TRANSACTION: ("idle_in_transaction_session_timeout", ""),
    "25P04": ("transaction_timeout", ""),
    "57P05": ("idle_session_timeout", ""),
    "57014": ("statement_timeout", "statement timeout"),
    "55P03": ("lock_timeout", "lock timeout"),
}
"""The setting behind a code, and the words without which the code may mean something else. Where the server
speaks another language than English these words are missing, and only its own text is told."""

FATAL = frozenset({"FATAL", "PANIC"})
"""Severities of an error with which its session ends."""
_ERROR = b"E"
_HEADER_BYTES = 5


def setting_behind(sqlstate: str | None, message: str) -> str:
    """The name of the timeout that the server has applied; empty if it was none."""
    setting, words = _SETTINGS.get(sqlstate or "", ("", ""))
    return setting if words in message else ""


def with_setting(sqlstate: str | None, message: str) -> str:
    """``message``, and the name of the timeout behind it."""
    setting = setting_behind(sqlstate, message)
    return f"{message} ({setting})" if setting else message


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
