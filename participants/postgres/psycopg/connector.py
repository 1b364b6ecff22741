"""Opens a session with psycopg, and translates the errors of a failed attempt.

libpq does not report the SQLSTATE of a refused connection, only the server's text
(https://www.postgresql.org/docs/current/libpq-connect.html). So the kind of refusal is recognized only if the
server's messages are in English; otherwise only the text is passed on.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg._preparing import PrepareManager
from psycopg.adapt import AdaptersMap

from undoubt.participants.errors import (
    ParticipantError,
    ParticipantMisconfigured,
    ParticipantRefused,
    ParticipantUnavailable,
    UsageError,
)
from undoubt.participants.ids import Gid
from undoubt.participants.invariant import invariant
from undoubt.participants.postgres.connecting import Connector, Handles
from undoubt.participants.postgres.connection_proxy import Handle
from undoubt.participants.postgres.dsn import Conninfo
from undoubt.participants.postgres.dsn_values import REFUSED_VALUE, SOCKET_OPTIONS, driver_refusal
from undoubt.participants.postgres.psycopg.connection import (
    AsyncBranchConnection,
    AsyncConnectionForSetUp,
    BranchConnection,
    ConnectionForSetUp,
)
from undoubt.participants.postgres.psycopg.session import PsycopgSession
from undoubt.participants.postgres.session import NotSent, ServerError
from undoubt.participants.postgres.sqlstate import pooler_refusal, startup_error, tls_refusal
from undoubt.participants.settings import ParticipantSettings

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from undoubt.participants.postgres.on_connect import OnConnect

PREPARE_THRESHOLD = 5
"""psycopg's own default: a statement is prepared when it is executed for the sixth time."""

_KINDS = (
    (re.compile(r"password authentication failed|no password supplied"), "28P01"),
    (re.compile(r"pg_hba\.conf|role \".*\" does not exist|is not permitted to log in"), "28000"),
    (re.compile(r"database \".*\" does not exist"), "3D000"),
    (re.compile(r"permission denied (?:for database|to set parameter)"), "42501"),
    (re.compile(r"unrecognized configuration parameter"), "42704"),
    (re.compile(r"invalid value for parameter|is outside the valid range for parameter"), "22023"),
    (re.compile(r"parameter \".*\" cannot be (?:changed|set)"), "55P02"),
    (re.compile(r"invalid command-line argument|-\S.* requires a value"), "42601"),
)
_VALUE = re.compile(
    r"invalid (?:integer value|\w+ value:|port number)|bad value for connect_timeout|setsockopt\(.*\) failed"
    r"|could not parse network address|socket path .* is too long"
)
"""What libpq and psycopg say of a value of the dsn when they use it."""
_PROMISES = re.compile(
    r"authentication method requirement|channel binding (?:is )?required|invalid SCRAM (?:client|server) key"
)
_TLS = re.compile(
    r"certificate|does not support SSL|private key file|SSL error|weak sslmode|host name must be specified"
)
_READ_ONLY = re.compile(r"session is read-only|server is in hot standby mode")


class _Opener(psycopg.AsyncConnection[Any]):
    """Opens connections. The session closes the libpq connection, possibly after the end of this object."""

    def __del__(self) -> None:  # type: ignore[override]
        """Does nothing: psycopg's own method warns of open connections."""


class PsycopgLendingSession(PsycopgSession):
    """A session that undoubt has opened, and whose libpq connection it lends to the applications of
    branches."""

    def __init__(
        self,
        pgconn: PGconn,
        kind: type[AsyncBranchConnection] | type[BranchConnection],
    ) -> None:
        super().__init__(pgconn)
        self._kind = kind
        self._prepare_threshold: int | None = None
        self._prepared = PrepareManager()
        self._adapters: AdaptersMap | None = None
        self._row_factory: Any = None

    def keep_statements(self) -> None:
        self._prepare_threshold = PREPARE_THRESHOLD

    async def set_up(self, hook: OnConnect) -> None:
        if issubclass(self._kind, BranchConnection):
            lent: Any = ConnectionForSetUp(self.pgconn)
            calling = asyncio.to_thread(hook, lent)
        else:
            lent = AsyncConnectionForSetUp(self.pgconn)
            calling = _called(hook, lent)
        self.gate = lent.lock
        try:
            result = await calling
        finally:
            busy = lent.lock.shut()
        if busy:
            raise NotSent("a statement of the hook is still running")
        if inspect.iscoroutine(result):
            result.close()
            raise UsageError("undoubt.sync requires a hook that is a plain function")
        self.gate = None
        self._adapters, self._row_factory = lent.adapters, lent.row_factory

    def handle(self, gid: Gid) -> Handle:
        if self.undone:
            # As psycopg does after its own rollback(): the statements may use objects that the rollback
            # removed.
            self._prepared.clear()
            self.undone = False
        handle = self._kind(self.pgconn, gid, self._prepared)
        handle.prepare_threshold = self._prepare_threshold
        if self._adapters is not None:
            # A copy: adapters that a branch registers are for this branch only.
            handle._adapters = AdaptersMap(self._adapters)
            handle.row_factory = self._row_factory
        self.gate = handle.lock
        return handle


async def _called(hook: OnConnect, lent: Any) -> None:
    result = hook(lent)
    if inspect.isawaitable(result):
        await result


class PsycopgConnector(Connector):
    def __init__(
        self, participant: str, settings: ParticipantSettings, application_name: str, handles: Handles
    ) -> None:
        super().__init__(participant, settings, application_name)
        self._kind = AsyncBranchConnection if handles == "async" else BranchConnection

    async def open(self, address: Conninfo, password: str | None, options: str) -> PsycopgLendingSession:
        more = {"application_name": self.application_name, "client_encoding": "UTF8"}
        if password is not None:
            more["password"] = password
        try:
            async with asyncio.timeout(self.settings.connect_timeout_s):
                connection = await _Opener.connect(
                    address.for_libpq(options=options, **more), autocommit=True
                )
        except (TimeoutError, psycopg.errors.ConnectionTimeout) as error:
            raise self.no_answer_in_time() from error
        except psycopg.Error as error:
            raise self._connect_error(" ".join(str(error).split())) from error
        except REFUSED_VALUE as error:
            # Without its cause, whose text may show a password.
            raise driver_refusal(self.participant, error, address.resolved, password) from None
        self.version = connection.info.server_version
        return PsycopgLendingSession(connection.pgconn, self._kind)

    async def connect_pipelined(self) -> PsycopgSession:
        """Like :meth:`connect_own`; a libpq before version 14, which has no pipeline mode, is refused."""
        if not psycopg.capabilities.has_pipeline():
            raise ParticipantRefused(self.participant, "this libpq has no pipeline mode")
        session = await self.connect_own()
        invariant(isinstance(session, PsycopgSession), "the connector of psycopg opens its sessions")
        return cast("PsycopgSession", session)

    def _connect_error(self, text: str) -> ParticipantError:  # noqa: PLR0911 - a line per meaning
        if _READ_ONLY.search(text):
            return self.no_primary()
        if _VALUE.search(text):
            keys = [key for key, option in SOCKET_OPTIONS.items() if f"({option})" in text]
            why = f"its dsn cannot be used: {', '.join([*keys, text])}"
            return ParticipantMisconfigured(self.participant, why)
        if _PROMISES.search(text):
            return ParticipantRefused(self.participant, f"no connection: {text}")
        if _TLS.search(text):
            return tls_refusal(self.participant, text)
        if (refusal := pooler_refusal(self.participant, text)) is not None:
            return refusal
        for pattern, sqlstate in _KINDS:
            if pattern.search(text):
                return startup_error(self.participant, ServerError(sqlstate, text, fatal=True))
        return ParticipantUnavailable(self.participant, f"no connection: {text}")
