"""Runs SQL statements for clients: one statement with its parameters, and its rows.

The statement is sent to the server unchanged, by the extended protocol: one statement at a time, with
separate values. Values have PostgreSQL's text format in both directions
(:mod:`undoubt.serve.sidecar.sql_values`). An answer that is too large is not cut: the transaction is aborted,
and the error says how to get a smaller answer. libpq gives a row only when it has all of it, up to 1 GB, so
what arrives is counted as well (:class:`Received`).

Every branch begins with the settings in ``TEXT_SETTINGS``, whatever its database or role has set. With other
settings the text of a value could lose digits (``extra_float_digits``) or the sign of a time zone
(``DateStyle``), or be read back as another value (``array_nulls``).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import capabilities, generators
from psycopg.pq import ExecStatus, Format

from undoubt.participants.bounds import text
from undoubt.participants.errors import ParticipantUnavailable, UsageError
from undoubt.participants.postgres.psycopg.connection import AsyncBranchConnection, as_failure
from undoubt.serve.sidecar.branch_ends import check_keeps_branch
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.sql_values import Parameter, type_name, value
from undoubt.serve.sidecar.types import Column, Rows

CHUNK_ROWS = 100
ROLLBACK_CLASS = "40"
"""Class 40, transaction rollback: the transaction may succeed if it is repeated."""
PARAMETERS_MAX = 65_535
"""The maximum number of parameters in a Bind message (PostgreSQL manual, "Message Formats")."""

TEXT_SETTINGS = "; ".join(
    f"set local {name} = {value}"
    for name, value in (
        ("client_encoding", "'UTF8'"),
        ("datestyle", "'ISO'"),  # the order of day and month in what is read stays that of the database
        ("intervalstyle", "'postgres'"),
        ("bytea_output", "'hex'"),
        ("extra_float_digits", "1"),
        ("array_nulls", "on"),
        ("xmloption", "content"),
    )
)
"""SET LOCAL, which takes no snapshot: the client may still choose its isolation level. PostgreSQL manual,
"Client Connection Defaults"."""

WIRE_BYTES_MAX = 2 * 1024 * 1024
"""The most that the messages of ``CHUNK_ROWS`` rows have besides their values: 4 bytes for each of at most
1,664 columns of a row, and the description of these (PostgreSQL manual, "Message Formats", "Limits")."""
_TCP_INFO_BYTES = 136
_BYTES_RECEIVED_AT = 128
"""``tcpi_bytes_received`` in ``struct tcp_info`` (``include/uapi/linux/tcp.h``; RFC 4898)."""

_ROWS = frozenset({ExecStatus.SINGLE_TUPLE, ExecStatus.TUPLES_OK, ExecStatus.TUPLES_CHUNK})
_DONE = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})
_COPY = frozenset({ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH})


class StatementFailed(RequestRefused):
    """The database has refused the statement. The branch can only be rolled back, as after any failed
    statement; ``sqlstate`` is PostgreSQL's code."""

    def __init__(self, participant: str, error: psycopg.Error) -> None:
        state = error.sqlstate or ""
        super().__init__(
            409 if state.startswith(ROLLBACK_CLASS) else 422,
            "StatementFailed",
            error.diag.message_primary or str(error),
            participant=participant,
            sqlstate=state,
        )


class UnreadableAnswer(Exception):
    """The answer of the statement cannot be returned. A part of it has not been read from the connection, so
    the transaction has to be aborted."""


def without_frames(error: UnreadableAnswer) -> UnreadableAnswer:
    """The error as it may be kept for as long as its transaction is known: its frames hold the rows."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class TooMuch(UnreadableAnswer):
    """The answer to a statement is larger than the bounds of the sidecar, or no rows (COPY)."""


class NotUtf8(UnreadableAnswer):
    """The answer has text that is not UTF-8, as JSON must be."""


async def begin(connection: AsyncBranchConnection, participant: str) -> None:
    """Set ``TEXT_SETTINGS`` before the first statement of a branch. Raises the errors of the branch's
    connection."""
    try:
        await connection.execute(TEXT_SETTINGS.encode())
    except psycopg.Error as error:
        raise ParticipantUnavailable(participant, str(error), sqlstate=error.sqlstate) from error


async def run(
    connection: AsyncBranchConnection,
    participant: str,
    sql: str,
    parameters: Sequence[Parameter],
    settings: SidecarSettings,
) -> Rows:
    """Run one statement in a branch, and return its rows. Raises :class:`StatementFailed`; the errors of the
    branch's connection; and :class:`UnreadableAnswer`, after which the transaction has to be aborted, because
    a part of the answer has not been read."""
    statement = text("sql", sql, most=settings.body_bytes_max, empty=False)
    check_keeps_branch(statement)
    if len(parameters) > PARAMETERS_MAX:
        raise UsageError(f"a statement has at most {PARAMETERS_MAX} parameters")
    reading = _Reading(settings)
    try:
        async with connection.lock:
            await _ask(connection, statement, parameters, reading)
    except psycopg.Error as error:
        raise ParticipantUnavailable(participant, str(error), sqlstate=error.sqlstate) from error
    connection.undoubt_note(statement, reading.tag, reading.affected)
    if reading.error is not None:
        refused = psycopg.errors.error_from_result(reading.error, encoding="utf-8")
        connection.undoubt_failure = as_failure(refused)
        raise StatementFailed(participant, refused) from refused
    return Rows(tuple(reading.columns), reading.rows, reading.tag)


async def _ask(
    connection: AsyncBranchConnection, sql: str, parameters: Sequence[Parameter], reading: _Reading
) -> None:
    pgconn = connection.pgconn
    pgconn.send_query_params(
        sql.encode(),
        [parameter.text for parameter in parameters],
        param_types=[parameter.oid for parameter in parameters],
        result_format=Format.TEXT,
    )
    if capabilities.has_stream_chunked():
        pgconn.set_chunked_rows_mode(CHUNK_ROWS)
    else:
        pgconn.set_single_row_mode()
    with Received.by(pgconn.socket) as received:
        while (result := await connection.wait(_fetch(pgconn, received, reading))) is not None:
            reading.take(result)


def _fetch(pgconn: Any, received: Received, reading: _Reading) -> Generator[Any, Any, Any]:
    """As psycopg's ``fetch``. Raises :class:`TooMuch` while the next result arrives, if it is too large."""
    before = received.bytes_count()
    waiting = generators.fetch(pgconn)
    ready = None
    while True:
        try:
            wanted = waiting.send(ready)
        except StopIteration as end:
            return end.value
        reading.check_arriving(received.bytes_count() - before - received.buffer_bytes())
        ready = yield wanted


class Received:
    """How much a connection has received. It is counted for TCP by Linux; elsewhere it stays 0, and a row is
    bounded by what PostgreSQL can make."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._counts = door.family in {socket.AF_INET, socket.AF_INET6} and hasattr(socket, "TCP_INFO")

    @classmethod
    @contextlib.contextmanager
    def by(cls, descriptor: int) -> Iterator[Received]:
        """The count of the socket ``descriptor``, which stays open."""
        with socket.socket(fileno=os.dup(descriptor)) as door:
            yield cls(door)

    def bytes_count(self) -> int:
        """All bytes since the connection was opened."""
        if not self._counts:
            return 0
        info = self._door.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        if len(info) < _TCP_INFO_BYTES:  # before Linux 4.1
            return 0
        return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)[0])

    def buffer_bytes(self) -> int:
        """How much of it the kernel may hold, which may belong to later results."""
        return self._door.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


class _Reading:
    """Collects the results of one statement while they arrive."""

    def __init__(self, settings: SidecarSettings) -> None:
        self.columns: list[Column] = []
        self.rows: list[list[Any]] = []
        self.tag = ""
        self.affected = 0
        self.error: Any = None
        self._settings = settings
        self._bytes = 0

    def take(self, result: Any) -> None:
        status = ExecStatus(result.status)
        if status in _COPY:
            raise TooMuch("COPY moves data past the statement's answer: use INSERT and SELECT")
        if status not in _ROWS and status not in _DONE:
            self.error = self.error or result
            return
        if status in _ROWS:
            try:
                self._take_rows(result)
            except UnicodeDecodeError as error:
                raise NotUtf8(
                    "the statement gives text that is not UTF-8: leave client_encoding as it is, or select"
                    " its bytes (convert_to)"
                ) from error
        if tag := result.command_status:  # of the last result, or of the last that has rows
            self.tag = tag.decode()
            self.affected = result.command_tuples or 0

    def check_arriving(self, bytes_count: int) -> None:
        """Raise :class:`TooMuch` if the rest of the answer, of which that much has arrived, is too large."""
        if bytes_count > self._settings.rows_bytes_max - self._bytes + WIRE_BYTES_MAX:
            raise self._too_many_bytes()

    def _too_many_bytes(self) -> TooMuch:
        return TooMuch(
            f"the statement gives more than {self._settings.rows_bytes_max} bytes"
            " (sidecar.rows_bytes_max): select less at a time"
        )

    def _take_rows(self, result: Any) -> None:
        if not self.columns:
            self.columns = [
                Column((result.fname(number) or b"").decode(), type_name(result.ftype(number)))
                for number in range(result.nfields)
            ]
        if len(self.rows) + result.ntuples > self._settings.rows_max:
            raise TooMuch(
                f"the statement gives more than {self._settings.rows_max} rows (sidecar.rows_max): use LIMIT,"
                " or DECLARE a cursor and FETCH from it"
            )
        for row in range(result.ntuples):
            texts = [result.get_value(row, number) for number in range(result.nfields)]
            self._bytes += sum(len(each) for each in texts if each is not None)
            if self._bytes > self._settings.rows_bytes_max:
                raise self._too_many_bytes()
            self.rows.append(
                [value(each, column.type) for each, column in zip(texts, self.columns, strict=True)]
            )
