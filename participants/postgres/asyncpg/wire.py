"""The messages of the extended query protocol that a lent connection sends and receives: bytes in, values
out (https://www.postgresql.org/docs/current/protocol-message-formats.html)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from undoubt.participants.postgres.session import FATAL, Notice, ServerError

HEADER_BYTES = 5
_ENDING = tuple(f"{severity}\0".encode() for severity in FATAL)
"""The type of a message, and its length in four bytes, which counts itself."""

PARSE_COMPLETE, BIND_COMPLETE, COMMAND_COMPLETE = b"1", b"2", b"C"
DATA_ROW, EMPTY_QUERY, READY, ERROR, NOTICE = b"D", b"I", b"Z", b"E", b"N"
ANSWERS = frozenset({BIND_COMPLETE, COMMAND_COMPLETE, DATA_ROW, EMPTY_QUERY})
ASYNCHRONOUS = frozenset({NOTICE, b"S", b"A"})
"""A notice, a parameter's new value, a notification: the server may send them at any time."""

_LENGTH = struct.Struct("!i")
_COUNT = struct.Struct("!H")
head = struct.Struct("!ci").unpack_from
"""The type of a message and its length, without the type."""


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + _LENGTH.pack(len(body) + 4) + body


SYNC = _message(b"S", b"")
EXECUTE = _message(b"E", b"\0" + _LENGTH.pack(0))
"""Runs the unnamed portal to its end."""


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
    if not any(word in data for word in _ENDING):
        return None
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


def ends_ready(data: bytes) -> bool:
    """Whether ``data``, the last bytes that an idle client received, ends with a whole ReadyForQuery.

    Behind the answer to the last query only asynchronous messages can follow, in whose texts no zero byte
    stands. So the bytes of a ReadyForQuery can be there by chance only in the head of a notification whose
    length ends in ``Z`` (90) and whose process id is 5; such an end does not count."""
    return data[-6:-1] == b"Z\0\0\0\5" and data[-10:-6] != b"A\0\0\0"
