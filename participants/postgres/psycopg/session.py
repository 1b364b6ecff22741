"""A :class:`~undoubt.participants.postgres.session.Session` over psycopg's libpq connection.

Driven in this event loop by psycopg's lowest layer (``psycopg.pq``, ``generators``, ``waiting``), so that the
application's connection over the same libpq connection may be of either kind. Both never speak at once: the
application does until its gate is shut (:mod:`undoubt.participants.postgres.psycopg.gate`), then the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, waiting
from psycopg.adapt import AdaptersMap, Dumper, PyFormat, Transformer
from psycopg.postgres import register_default_adapters, types
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays

from undoubt.participants.postgres.psycopg.gate import Gate
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
    from psycopg.pq.abc import PGconn, PGresult

log = logging.getLogger(__name__)

WAKE_S = 1.0
"""psycopg's waiting has to wake up now and then; nothing is done when it does."""

_DONE = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})


class _HexBytes(Dumper):
    """``bytea`` in hexadecimal (https://www.postgresql.org/docs/current/datatype-binary.html). psycopg's own
    dumper leaves the escaping to libpq, and without a connection ``PQescapeBytea`` goes by the one that was
    used last: the server then sees other bytes, and a note that is there is not found."""

    oid = types["bytea"].oid

    def dump(self, obj: bytes) -> bytes:
        return b"\\x" + obj.hex().encode()


class _OwnAdapters:
    """How the engine reads and writes values, whatever the application registers with psycopg."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(types=TypesRegistry(types))
        register_default_adapters(self)
        register_all_arrays(self)
        self.adapters.register_dumper(bytes, _HexBytes)


_OWN = _OwnAdapters()


class PsycopgSession:
    """See the module. It serves the engine alone; a subclass lends its connection to applications."""

    intro: ServerParameters

    def __init__(self, pgconn: PGconn) -> None:
        self.pgconn = pgconn
        self.pid: int = pgconn.backend_pid
        self.gate: Gate | None = None
        """Before the application's connection of the last branch."""
        self.undone = False
        """Something of a branch was rolled back in this session."""
        self._broken = False
        self._notices: list[Notice] = []

    @property
    def broken(self) -> bool:
        return self._broken or self.pgconn.status != ConnStatus.OK

    @property
    def in_transaction(self) -> bool:
        return not self.broken and self.pgconn.transaction_status != TransactionStatus.IDLE

    @property
    def application_name(self) -> str:
        if self.broken:
            return ""
        return (self.pgconn.parameter_status(b"application_name") or b"").decode("utf-8", "replace")

    async def script(self, sql: str, *, timeout_s: float) -> CommandResult:
        self._notices.clear()
        results = await self._ask(lambda: self.pgconn.send_query(sql.encode()), timeout_s)
        tag = (results[-1].command_status or b"").decode("ascii", "replace")
        self.undone = self.undone or tag.startswith("ROLLBACK")
        return CommandResult(tag, standby_warning(self._notices) if self._notices else None)

    async def rows(self, sql: str, *args: object, timeout_s: float) -> Sequence[Row]:
        values = Transformer(_OWN).dump_sequence(args, [PyFormat.TEXT] * len(args))
        [result] = await self._ask(lambda: self.pgconn.send_query_params(sql.encode(), values), timeout_s)
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        loading = Transformer(_OWN)
        loading.set_pgresult(result)
        return loading.load_rows(0, result.ntuples, lambda row: dict(zip(names, row, strict=True)))

    def keep_statements(self) -> None:
        """The engine itself prepares nothing under a name."""

    def abandon(self) -> None:
        """Send nothing through it any more, and leave the connection open: it is somebody else's."""
        self._broken = True

    def discard(self) -> None:
        if self._broken:
            return
        self._broken = True
        if self.gate is not None and self.gate.busy:
            # Whoever is inside libpq must not find the connection freed: it is interrupted, and the last to
            # leave closes it.
            close_in_background(interrupt(self.pgconn))
            self.gate.when_free(self.pgconn.finish)
        elif self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            close_in_background(cancel_and_finish(self.pgconn))
        else:
            self.pgconn.finish()

    async def _ask(self, send: Callable[[], None], timeout_s: float) -> list[PGresult]:
        """Send, and wait for all results. Raises as ``script`` and ``rows`` of the contract do."""
        pgconn = self.pgconn
        handler, pgconn.notice_handler = pgconn.notice_handler, self._note
        asking = None
        try:
            self._check()
            send()
            asking = generators.execute(pgconn)
            async with asyncio.timeout(timeout_s):
                results = await waiting.wait_async(asking, pgconn.socket, interval=WAKE_S)
        except TimeoutError:
            self._abandon(asking)
            raise AnswerTimedOut("no answer in time") from None
        except psycopg.Error as error:
            # A part of it may be on its way, whatever went wrong.
            self._abandon(asking)
            raise NoAnswer(str(error).strip() or "the connection was lost") from error
        except BaseException:
            # Cancelled, or something nobody foresaw: nobody knows what this session is doing now.
            self._abandon(asking)
            raise
        finally:
            pgconn.notice_handler = handler
        return self._judge(results)

    def _check(self) -> None:
        """Nothing has been sent yet: whatever is wrong by now is no doubt, only a refusal."""
        if self.broken:
            raise NotSent("the connection is closed")
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            raise NotSent("the connection is in a pipeline")
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            raise NotSent("another statement is running")
        try:
            # What the server said of itself, above all that and why it has ended the session: is_busy() takes
            # that for a notice.
            self.pgconn.consume_input()
            self.pgconn.is_busy()
            self._raise_end()
            self.pgconn.consume_input()
        except psycopg.Error as error:
            self.discard()
            raise NotSent(str(error).strip() or "the connection was lost") from error
        if self.broken:
            raise NotSent("the connection was closed by the server")

    def _raise_end(self) -> None:
        for notice in self._notices:
            if notice.severity in FATAL:
                self.discard()
                raise NotSent(notice.message, notice.sqlstate)

    def _judge(self, results: list[PGresult]) -> list[PGresult]:
        for result in results:
            if result.status in _DONE:
                continue
            error = server_error(result)
            self.undone = True
            if error is None or error.fatal:
                self.discard()
            raise error or NoAnswer(result.get_error_message().strip() or "the connection was lost")
        if not results:
            self.discard()
            raise NoAnswer("the connection gave no result")
        return results

    def _abandon(self, asking: Any) -> None:
        if asking is not None:
            asking.close()  # it holds a pointer into the connection that is about to be freed
        self.discard()

    def _note(self, result: PGresult) -> None:
        source = field(result, DiagnosticField.SOURCE_FILE)
        keep(
            self._notices,
            Notice(
                severity_of(result),
                field(result, DiagnosticField.SQLSTATE),
                field(result, DiagnosticField.MESSAGE_PRIMARY),
                source.rpartition("/")[2] or None,
            ),
        )


def field(result: PGresult, name: DiagnosticField) -> str:
    """A field of an error or notice, empty if the server did not send it."""
    return (result.error_field(name) or b"").decode("utf-8", "replace")


def severity_of(result: PGresult) -> str:
    """Of an error or notice: in English, where the server tells that (since version 9.6)."""
    return field(result, DiagnosticField.SEVERITY_NONLOCALIZED) or field(result, DiagnosticField.SEVERITY)


def server_error(result: PGresult) -> ServerError | None:
    """None if the connection was lost: an error of libpq's own, or of class 08, which poolers send."""
    sqlstate = field(result, DiagnosticField.SQLSTATE)
    if not sqlstate or sqlstate.startswith("08"):
        return None
    return ServerError(
        sqlstate,
        field(result, DiagnosticField.MESSAGE_PRIMARY),
        detail=field(result, DiagnosticField.MESSAGE_DETAIL),
        hint=field(result, DiagnosticField.MESSAGE_HINT),
        fatal=severity_of(result) in FATAL,
    )


async def cancel_and_finish(pgconn: PGconn) -> None:
    """For a statement of the engine's own, whose answer nobody waits for any more."""
    try:
        await _cancel(pgconn)
    finally:
        pgconn.finish()


async def interrupt(pgconn: PGconn) -> None:
    """For a statement of the application's, in whatever thread: it fails, there and on the server. The
    connection is not freed: that is for whoever is inside."""
    door = _duplicate(pgconn)
    try:
        await _cancel(pgconn)
    finally:
        if door is not None:
            with door, contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)


def _duplicate(pgconn: PGconn) -> socket.socket | None:
    """Of our own: the connection's may be closed meanwhile, and its number given out again."""
    try:
        return socket.socket(fileno=os.dup(pgconn.socket))
    except (OSError, psycopg.Error):
        return None  # closed already


async def _cancel(pgconn: PGconn) -> None:
    if pgconn.status != ConnStatus.OK:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            cancelling = pgconn.cancel_conn()
            cancelling.start()
            await waiting.wait_conn_async(generators.cancel(cancelling), interval=CLOSE_TIMEOUT_S)
    except (psycopg.Error, OSError, TimeoutError) as error:
        log.debug("a cancellation was not delivered: %s", error)
