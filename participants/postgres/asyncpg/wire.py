"""The messages of the server: their types, and what errors and notices say
(https://www.postgresql.org/docs/current/protocol-message-formats.html)."""

from __future__ import annotations

import struct

from undoubt.participants.postgres.session import FATAL, Notice, ServerError

HEADER_BYTES = 5
"""The type of a message, and its length in four bytes, which counts itself."""
ENDING = tuple(f"{severity}\0".encode() for severity in FATAL)
"""One of these is in every message that ends the session."""

PARSE_COMPLETE, BIND_COMPLETE, COMMAND_COMPLETE = b"1", b"2", b"C"
DATA_ROW, EMPTY_QUERY, READY, ERROR, NOTICE = b"D", b"I", b"Z", b"E", b"N"
ANSWERS = frozenset({BIND_COMPLETE, COMMAND_COMPLETE, DATA_ROW, EMPTY_QUERY})
ASYNCHRONOUS = frozenset({NOTICE, b"S", b"A"})
"""A notice, a parameter's new value, a notification: the server may send them at any time."""

head = struct.Struct("!ci").unpack_from
"""The type of a message and its length, without the type."""


def _fields(body: bytes) -> dict[str, str]:
    return {chr(field[0]): field[1:].decode("utf-8", "replace") for field in body.split(b"\0") if field}


def server_error(body: bytes) -> ServerError:
    fields = _fields(body)
    return ServerError(
        fields.get("C", "XX000"),
        fields.get("M", ""),
        detail=fields.get("D", ""),
        hint=fields.get("H", ""),
        fatal=_severity(fields) in FATAL,
    )


def notice(body: bytes) -> Notice:
    fields = _fields(body)
    return Notice(_severity(fields), fields.get("C", ""), fields.get("M", ""), fields.get("F"))


def _severity(fields: dict[str, str]) -> str:
    """In English if the server sends that (since version 9.6)."""
    return fields.get("V") or fields.get("S", "")


def last_session_end(data: bytes) -> ServerError | None:
    """The error among the messages in ``data`` that ends the session; None if there is none, or if ``data``
    does not begin with a message. It may come in one piece with the answer before it: then asyncpg refuses
    the next statement with an error of its own (``InternalClientError``)."""
    end, start = None, 0
    while len(data) - start >= HEADER_BYTES:
        if data[start : start + 1] == ERROR:
            end = read_session_end(data[start:]) or end
        start += 1 + int.from_bytes(data[start + 1 : start + HEADER_BYTES])
    return end


def read_session_end(data: bytes) -> ServerError | None:
    """The error at the head of ``data`` if that error ends the session, otherwise None."""
    if data[:1] != ERROR or len(data) < HEADER_BYTES:
        return None
    body = data[HEADER_BYTES : 1 + int.from_bytes(data[1:HEADER_BYTES])]
    fields = _fields(body)
    if _severity(fields) not in FATAL or "C" not in fields:
        return None
    return ServerError(fields["C"], fields.get("M", ""), fatal=True)
