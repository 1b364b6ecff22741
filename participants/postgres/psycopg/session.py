"""Implements :class:`~undoubt.participants.postgres.session.ServerSession` over psycopg's libpq connection.

The session runs in this event loop on psycopg's lowest layer (``psycopg.pq``, ``generators``, ``waiting``),
so that the application's connection over the same libpq connection may be asynchronous or synchronous. They
never use the libpq connection simultaneously: the application uses it until its gate is shut
(:mod:`undoubt.participants.postgres.psycopg.gate`), then the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, waiting
from psycopg.adapt import AdaptersMap, Dumper, PyFormat, Transformer
from psycopg.postgres import register_default_adapters, types
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays

from undoubt.participants.invariant import invariant
from undoubt.participants.postgres.psycopg import pipeline, sync_each
from undoubt.participants.postgres.psycopg.gate import Gate
from undoubt.participants.postgres.psycopg.polling import Polling
from undoubt.participants.postgres.session import (
    CLOSE_TIMEOUT_S,
    FATAL,
    Answers,
    AnswerTimedOut,
    CommandResult,
    NoAnswer,
    Notice,
    NotSent,
    Row,
    ServerError,
    ServerParameters,
    Step,
    close_in_background,
    keep,
    standby_warning,
)
from undoubt.participants.postgres.sqlstate import NO_STATEMENT
from undoubt.participants.tasks import Answered, Continued

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

log = logging.getLogger(__name__)

STATEMENTS_MAX = 100
"""The limit of prepared statements of a session."""
STATEMENT_OUTDATED = frozenset({NO_STATEMENT, "0A000"})
"""0A000 stands for "cached plan must not change result type" (``RevalidateCachedQuery`` in
``src/backend/utils/cache/plancache.c``)."""
WAKE_S = 1.0
"""The interval at which psycopg's wait wakes up; psycopg requires one, and nothing is done then."""

_DONE = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY})


class _HexBytes(Dumper):
    """``bytea`` in hexadecimal (https://www.postgresql.org/docs/current/datatype-binary.html). psycopg's own
    dumper uses libpq's escaping, and without a connection ``PQescapeBytea`` uses the settings of the
    connection that was used last: the server could then get other bytes, and an existing note would not be
    found."""

    oid = types["bytea"].oid

    def dump(self, obj: bytes) -> bytes:
        return b"\\x" + obj.hex().encode()


class _OwnAdapters:
    """The engine's conversions of values, independent of what the application registers with psycopg."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(types=TypesRegistry(types))
        register_default_adapters(self)
        register_all_arrays(self)
        self.adapters.register_dumper(bytes, _HexBytes)


_OWN = _OwnAdapters()


class PsycopgSession:
    """A session with psycopg, see the module. Only the engine uses it; a subclass lends its connection to
    applications."""

    intro: ServerParameters

    def __init__(self, pgconn: PGconn) -> None:
        self.pgconn = pgconn
        self.pid: int = pgconn.backend_pid
        self.gate: Gate | None = None
        """The gate of the application's connection of the last branch."""
        self.undone = False
        """Whether a branch, or a part of one, was rolled back in this session."""
        self.behind: asyncio.Future[Answers] | None = None
        self._polling: Polling | None = None
        """What was awaited last."""
        self._pipelines = False
        self._broken = False
        self._notices: list[Notice] = []
        self._statements: dict[str, bytes] | None = None
        """The names of prepared statements, empty for a statement that was executed once; None: named
        statements are not allowed."""

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
        if name := await self._statement(sql, timeout_s):
            result = await self._execute_prepared(name, sql, values, timeout_s)
        else:
            [result] = await self._ask(lambda: self.pgconn.send_query_params(sql.encode(), values), timeout_s)
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        loading = Transformer(_OWN)
        loading.set_pgresult(result)
        return loading.load_rows(0, result.ntuples, lambda row: dict(zip(names, row, strict=True)))

    async def each(
        self, statements: Sequence[str], *, timeout_s: float
    ) -> list[CommandResult | ServerError | NoAnswer]:
        """See :class:`undoubt.participants.postgres.session.PipelinedSession`."""
        answers: list[CommandResult | ServerError | NoAnswer] = []
        pgconn = self.pgconn
        handler, pgconn.notice_handler = pgconn.notice_handler, self._note
        self._notices.clear()
        exchange = None
        lost = NoAnswer("the connection was lost")
        try:
            self._check()
            async with asyncio.timeout(timeout_s) as patience:
                loop = asyncio.get_running_loop()
                exchange = sync_each.exchange(
                    pgconn,
                    statements,
                    lambda result: answers.append(self._answer(result)),
                    lambda: patience.reschedule(loop.time() + timeout_s),
                )
                pgconn.enter_pipeline_mode()
                await waiting.wait_async(exchange, pgconn.socket, interval=WAKE_S)
                pgconn.exit_pipeline_mode()
        except TimeoutError:
            self._abandon(exchange)
            lost = AnswerTimedOut("no answer in time")
        except psycopg.Error as error:
            self._abandon(exchange)
            lost = NoAnswer(str(error).strip() or "the connection was lost")
        except BaseException:
            self._abandon(exchange)
            raise
        finally:
            pgconn.notice_handler = handler
        return [*answers, *[lost] * (len(statements) - len(answers))]

    def _answer(self, result: PGresult) -> CommandResult | ServerError | NoAnswer:
        """What the result of one statement of :meth:`each`, and the notices before it, mean."""
        notices, self._notices = self._notices, []
        if result.status in _DONE:
            tag = (result.command_status or b"").decode("ascii", "replace")
            return CommandResult(tag, standby_warning(notices) if notices else None)
        message = result.get_error_message().strip() or "the connection was lost"
        return server_error(result) or NoAnswer(message)

    @property
    def pipelines(self) -> bool:
        return self._pipelines and not self.broken and self.pgconn.pipeline_status == PipelineStatus.OFF

    def pipeline(
        self, steps: Sequence[Step], *, behind: Sequence[Step] = (), timeout_s: float
    ) -> Continued[Answers]:
        self._notices.clear()
        pgconn = self.pgconn
        handler, pgconn.notice_handler = pgconn.notice_handler, self._note
        try:
            self._check()
            pipeline.send(pgconn, [steps, behind] if behind else [steps])
            polling = self._polled(pipeline.read_to_sync(pgconn), timeout_s)
        except NotSent as error:
            pgconn.notice_handler = handler
            return Continued.failed(error)
        except BaseException as error:
            # A part of the steps may have been sent, whatever the error is.
            pgconn.notice_handler = handler
            self.discard()
            if not isinstance(error, psycopg.Error):
                raise
            return Continued.failed(NoAnswer(str(error).strip() or "the connection was lost"))

        def answered(polled: Answered[list[PGresult]]) -> Answers:
            pgconn.notice_handler = handler
            answers = self._answers(polled)
            if self._broken:
                self.behind = None  # discarded since the answer came: the connection is being closed
            elif behind:
                self._read_behind(timeout_s)
            else:
                pgconn.exit_pipeline_mode()
                self.behind = None
            self._judge(answers[0])
            return answers[1]

        return Continued(polling).then(answered)

    def _answers(self, polled: Answered[list[PGresult]]) -> tuple[list[PGresult], Answers]:
        """The results up to a Sync, and the answers that they hold; the session goes on."""
        try:
            results = polled.result()
        except TimeoutError:
            self.discard()
            raise AnswerTimedOut("no answer in time") from None
        except psycopg.Error as error:
            self.discard()
            raise NoAnswer(str(error).strip() or "the connection was lost") from error
        except BaseException:
            # Cancelled, lost, or an unexpected error: the state of this session is not known now.
            self.discard()
            raise
        if self.pgconn.status != ConnStatus.OK:
            self._judge(results)
            raise NoAnswer("the connection was lost")
        answers = pipeline.answers(results, list(self._notices))
        self.undone = self.undone or any(tag.startswith("ROLLBACK") for tag in answers.tags)
        return results, answers

    def _read_behind(self, timeout_s: float) -> None:
        """Read what was sent behind a pipeline; no caller waits for it."""
        pgconn = self.pgconn
        handler, pgconn.notice_handler = pgconn.notice_handler, self._note
        polling = self._polled(pipeline.read_to_sync(pgconn), timeout_s)

        def read(polled: Answered[list[PGresult]]) -> Answers:
            pgconn.notice_handler = handler
            results, _ = self._answers(polled)
            pgconn.exit_pipeline_mode()
            return pipeline.answers(self._judge(results), [])

        self.behind = Continued(polling).then(read)
        self.behind.add_done_callback(_retrieve)

    def _polled(self, generator: Generator[Any, Any, Any], timeout_s: float) -> Polling:
        self._polling = polling = Polling(generator, self.pgconn.socket, timeout_s)
        return polling

    @property
    def begins_ahead(self) -> bool:
        """libpq has no way to send a statement ahead of one that the application sends outside a pipeline."""
        return False

    def ahead(self, steps: Sequence[Step]) -> None:
        invariant(False, "this session begins no branch ahead")

    def drop_ahead(self) -> None:
        """Does nothing: no steps wait."""

    async def find_pipeline(self, timeout_s: float) -> bool:
        if self.intro.pooled or not psycopg.capabilities.has_pipeline():
            return True
        token = secrets.token_hex(8)
        try:
            answers = await self.pipeline([Step("select $1::pg_catalog.text", (token,))], timeout_s=timeout_s)
        except AnswerTimedOut:
            answers = None
        self._pipelines = answers is not None and answers.rows == [[(token,)]]
        if not self._pipelines:
            log.warning("undoubt's statements are not pipelined: libpq gave no answer in its pipeline mode")
            self.discard()
        return self._pipelines

    def keep_statements(self) -> None:
        """Does nothing: what the engine asks in the application's session is asked once for each branch, and
        the application may deallocate all names."""

    def keep_own_statements(self) -> None:
        """See :class:`undoubt.participants.postgres.connection_proxy.LendingSession`."""
        self._statements = {}

    async def _statement(self, sql: str, timeout_s: float) -> bytes:
        """The name of the prepared statement for ``sql``, which is prepared when ``sql`` is executed for the
        second time; empty if there is none. Raises the errors of :meth:`rows`."""
        if self._statements is None:
            return b""
        name = self._statements.get(sql)
        if name is None:
            if len(self._statements) < STATEMENTS_MAX:
                self._statements[sql] = b""
            return b""
        if not name:
            # Not a name that the application, or a function that it calls, may have used.
            name = b"undoubt_" + secrets.token_hex(8).encode()
            await self._ask(lambda: self.pgconn.send_prepare(name, sql.encode()), timeout_s)
            self._statements[sql] = name
        return name

    async def _execute_prepared(
        self, name: bytes, sql: str, values: Sequence[Any], timeout_s: float
    ) -> PGresult:
        """The result of the prepared statement. A statement that the server has forgotten, or whose result
        has other columns now, is executed without its name."""
        try:
            [result] = await self._ask(lambda: self.pgconn.send_query_prepared(name, values), timeout_s)
        except ServerError as error:
            if error.sqlstate not in STATEMENT_OUTDATED or self.in_transaction:
                raise
            self._statements = {}
            [result] = await self._ask(lambda: self.pgconn.send_query_params(sql.encode(), values), timeout_s)
        return result

    def abandon(self) -> None:
        """Send nothing more through the session, and leave the connection open: it belongs to the
        application."""
        self._broken = True

    def discard(self) -> None:
        if self._broken:
            return
        self._broken = True
        if self.behind is not None and not self.behind.done():
            # The connection must not be freed while the event loop waits for its socket.
            self.behind.cancel()
            close_in_background(_finish_after(self.behind, self.pgconn))
            return
        if self._polling is not None:
            self._polling.fail(psycopg.OperationalError("the session was closed"))
        if self.gate is not None and self.gate.busy:
            # The connection must not be freed while an operation uses it: the operation is interrupted, and
            # the connection is closed when the operation has ended.
            close_in_background(interrupt(self.pgconn))
            self.gate.when_free(self.pgconn.finish)
        elif self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            close_in_background(cancel_and_finish(self.pgconn))
        else:
            self.pgconn.finish()

    async def _ask(self, send: Callable[[], None], timeout_s: float) -> list[PGresult]:
        """Send, and wait for all results. Raises ``ServerError``, ``NoAnswer``, ``NotSent``."""
        pgconn = self.pgconn
        handler, pgconn.notice_handler = pgconn.notice_handler, self._note
        try:
            self._check()
            send()
            results: list[PGresult] = await self._polled(generators.execute(pgconn), timeout_s)
        except TimeoutError:
            self.discard()
            raise AnswerTimedOut("no answer in time") from None
        except psycopg.Error as error:
            # A part of the statement may have been sent, whatever the error is.
            self.discard()
            raise NoAnswer(str(error).strip() or "the connection was lost") from error
        except BaseException:
            # Cancelled, or an unexpected error: the state of this session is not known now.
            self.discard()
            raise
        finally:
            pgconn.notice_handler = handler
        return self._judge(results)

    def _check(self) -> None:
        """Raise ``NotSent`` if the connection cannot be used; nothing has been sent yet, so no outcome is in
        doubt."""
        if self.broken:
            raise NotSent("the connection is closed")
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            raise NotSent("the connection is in a pipeline")
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            raise NotSent("another statement is running")
        try:
            # Read messages that the server sent by itself, above all its reason for ending the session, which
            # is_busy() treats as a notice.
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
            asking.close()  # it has a pointer into the connection that is about to be freed
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
    """The severity of an error or notice, in English if the server sends that (since version 9.6)."""
    return field(result, DiagnosticField.SEVERITY_NONLOCALIZED) or field(result, DiagnosticField.SEVERITY)


def server_error(result: PGresult) -> ServerError | None:
    """The server's error in ``result``; None if the connection was lost: then the error is libpq's own, or of
    class 08, which poolers send."""
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


def _retrieve(behind: asyncio.Future[Answers]) -> None:
    if not behind.cancelled():
        behind.exception()  # perhaps it is not awaited any more


async def _finish_after(reading: asyncio.Future[Answers], pgconn: PGconn) -> None:
    """Close a connection once the task ``reading`` has stopped using it."""
    await asyncio.wait([reading])
    await cancel_and_finish(pgconn)


async def cancel_and_finish(pgconn: PGconn) -> None:
    """Cancel a statement of the engine whose answer is no longer awaited, and close the connection."""
    try:
        await _cancel(pgconn)
    finally:
        pgconn.finish()


async def interrupt(pgconn: PGconn) -> None:
    """Cancel a statement of the application, which may run in any thread, and shut the socket down, so that
    the statement fails in the client and on the server. The connection is not freed, since the statement
    still uses it."""
    sock = _duplicate(pgconn)
    try:
        await _cancel(pgconn)
    finally:
        if sock is not None:
            with sock, contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _duplicate(pgconn: PGconn) -> socket.socket | None:
    """A separate socket object for the connection: the connection may close its own meanwhile, and the file
    descriptor may be reused. None if it is closed."""
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
