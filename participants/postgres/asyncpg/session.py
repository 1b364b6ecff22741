"""Implements :class:`~undoubt.participants.postgres.session.ServerSession` over asyncpg."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from undoubt.participants.ids import Gid
from undoubt.participants.postgres.asyncpg.connection import (
    BranchConnection,
    LentForSetUp,
    severity_of,
)
from undoubt.participants.postgres.asyncpg.line import Line
from undoubt.participants.postgres.pipeline import BEGIN, ROLLBACK
from undoubt.participants.postgres.session import (
    CLOSE_TIMEOUT_S,
    FATAL,
    PROBE_S,
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
from undoubt.participants.tasks import Answered, Continued

if TYPE_CHECKING:
    from undoubt.participants.postgres.asyncpg.connection import Connection
    from undoubt.participants.postgres.on_connect import OnConnect

log = logging.getLogger(__name__)

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
        self.behind: asyncio.Future[Answers] | None = None
        self.connection = connection
        self.pid: int = connection.get_server_pid()
        self._broken = False
        self._abandoned = False
        self._notices: list[Notice] = []
        self.line = Line.to(connection)
        self._pipelines = False
        connection.add_log_listener(self._note)

    @property
    def ended(self) -> ServerError | None:
        """The server's reason for ending the session, if it sent one while no statement was running."""
        return None if self.line is None else self.line.end

    @property
    def broken(self) -> bool:
        line = self.line
        return self._broken or self.connection.is_closed() or (line is not None and bool(line.failed_begin))

    @property
    def in_transaction(self) -> bool:
        if self.connection.is_closed():
            return False
        return self.connection.is_in_transaction() if self.line is None else self.line.in_transaction

    @property
    def application_name(self) -> str:
        return str(self.connection.get_settings().application_name)

    async def script(self, sql: str, *, timeout_s: float) -> CommandResult:
        self._notices.clear()
        self._check()
        patience_s = self._patience_s(timeout_s)
        self._send_held()
        try:
            tag = await self.connection.execute(sql, timeout=patience_s)
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
        self._send_held()
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

    @property
    def pipelines(self) -> bool:
        line = self.line
        return (
            self._pipelines
            and not self.broken
            and line is not None
            and line.can_be_lent
            and self.connection.get_settings().client_encoding == "UTF8"
        )

    @property
    def begins_ahead(self) -> bool:
        # asyncpg takes the connection for being in a transaction since the last time that it was in one.
        return self.pipelines and self.connection.is_in_transaction()

    def ahead(self, steps: Sequence[Step]) -> None:
        self._lent().hold(steps)

    def drop_ahead(self) -> None:
        if self.line is not None:
            self.line.drop_held()

    def pipeline(
        self, steps: Sequence[Step], *, behind: Sequence[Step] = (), timeout_s: float
    ) -> Continued[Answers]:
        try:
            self._check()
            patience_s = self._patience_s(timeout_s)
            answers, *later = self._lent().send([steps, behind] if behind else [steps], patience_s)
        except NotSent as error:
            return Continued.failed(error)
        except BaseException:
            self.discard()  # a part of the steps may have been sent
            raise
        self.behind = later[0] if later else None
        return Continued(answers).then(self._answered)

    def _answered(self, answers: Answered[Answers]) -> Answers:
        try:
            return answers.result()
        except ServerError as error:
            if error.fatal:
                self.discard()
            raise
        except BaseException:
            # Lost, late, cancelled, or an unexpected error: the state of this session is not known now.
            self.discard()
            raise

    def _patience_s(self, timeout_s: float) -> float:
        """``timeout_s``, or less if the server has not answered the begin of the branch yet, which went ahead
        of the application's first statement: then the connection may be dead."""
        silent = self.line is not None and self.line.unanswered
        return min(timeout_s, PROBE_S) if silent else timeout_s

    def _lent(self) -> Line:
        if self.line is None:
            raise NotSent("the connection is closed")
        return self.line

    async def find_pipeline(self, timeout_s: float) -> bool:
        line = self.line
        if line is None or self.intro.pooled:
            return True
        try:
            line.set_up()
        except (AttributeError, TypeError) as error:
            log.warning("undoubt's statements are not pipelined: asyncpg cannot be lent: %r", error)
            return True  # nothing was sent yet
        self._pipelines = True
        try:
            return await self._probe(line, timeout_s)
        except AnswerTimedOut as error:
            log.warning("undoubt's statements are not pipelined: asyncpg cannot be lent: %r", error)
            self.discard()
            return False

    async def _probe(self, line: Line, timeout_s: float) -> bool:
        """Whether both ways work: asyncpg's answer behind a prefix of ours, and then a pipeline. On success
        asyncpg takes the connection for being in a transaction, as ``begins_ahead`` requires."""
        token = secrets.token_hex(8)
        line.hold([BEGIN, Step(f"set local undoubt.tx = '{token}'")])
        tag = (await self.script("select 1", timeout_s=timeout_s)).tag
        sound = tag == "SELECT 1" and self.connection.is_in_transaction() and self.pipelines
        if sound:
            ask = Step("select pg_catalog.current_setting('undoubt.tx'), $1::pg_catalog.text", (token,))
            answers = await self.pipeline([ask, ROLLBACK], timeout_s=timeout_s)
            sound = answers.rows[0] == [(token, token)] and not self.in_transaction and self.begins_ahead
        if not sound:
            log.warning("undoubt's statements are not pipelined: asyncpg could not be lent")
            self.discard()
        return sound

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
        return BranchConnection(self.connection, gid, lambda: self.ended, self.line)

    def abandon(self) -> None:
        """Send nothing more through the session, and leave the connection open: it belongs to the
        application."""
        self._broken = self._abandoned = True
        if not self.connection.is_closed():
            self.connection.remove_log_listener(self._note)
            if self.line is not None:
                self.line.stop()

    def discard(self) -> None:
        self._broken = True
        if self._abandoned or self.connection.is_closed():
            return
        running = self.line is not None and self.line.unanswered
        if self.line is not None:
            self.line.drop_held()
            self.line.give_up(NoAnswer("the session was closed"))
        # Closing takes time: asyncpg waits for the cancellation that it has sent.
        close_in_background(_close(self.connection, cancel=running))

    def _send_held(self) -> None:
        if self.line is not None:
            self.line.send_held()

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


async def _close(connection: Any, *, cancel: bool) -> None:
    """Close ``connection``; ``cancel``: a statement that asyncpg does not know of may be running."""
    try:
        if cancel:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection._cancel(asyncio.get_running_loop().create_future())
        await connection.close(timeout=CLOSE_TIMEOUT_S)
    except TRANSLATED:
        connection.terminate()


def translate(error: BaseException) -> ServerError | NoAnswer | NotSent:
    """The meaning of an error of asyncpg, of the operating system or of a timeout for the statement."""
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
