"""Opens sessions: the part that both drivers share. It reads the dsn and the password, and asks the server
for its parameters."""

from __future__ import annotations

import abc
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Literal

from undoubt.participants.errors import ParticipantError, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.hardened_session import ALONE, session_settings, startup_timeouts
from undoubt.participants.postgres.connection_proxy import LendingSession
from undoubt.participants.postgres.dsn import Conninfo, read_dsn
from undoubt.participants.postgres.history import with_history
from undoubt.participants.postgres.roles import is_owned, owned
from undoubt.participants.postgres.schema_check import look
from undoubt.participants.postgres.session import (
    NoAnswer,
    NotSent,
    ServerError,
    ServerParameters,
    ServerSession,
)
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import (
    NO_RIGHT,
    NOT_SUPPORTED,
    READ_ONLY_TRANSACTION,
    participant_error,
    pooler_refusal,
)
from undoubt.participants.schema_trust import Fault
from undoubt.participants.settings import ParticipantSettings

VERSION_MIN = 130000
TIMEOUTS = frozenset({"57014", "57P05", "25P03", "25P04"})
"""The codes of the server's timeouts: for a statement, an idle session, an idle transaction, a
transaction."""

Handles = Literal["async", "sync"]
"""What a branch's ``connection`` is. ``async``: the driver's asynchronous connection (asyncpg's, or
psycopg's ``AsyncConnection``). ``sync``: psycopg's ``Connection``, for use in any thread but the event
loop's; the driver is psycopg then, whatever the settings say, since asyncpg has no synchronous connection."""


class Connector(abc.ABC):
    """Opens sessions to one participant. The dsn is read when the first session is opened."""

    def __init__(self, participant: str, settings: ParticipantSettings, application_name: str) -> None:
        self.participant = participant
        self.settings = settings
        self.application_name = application_name
        self._address: Conninfo | None = None
        self._options = ""
        self.version = 0
        """The server's version, as reported when a session was last opened; 0 before that."""

    async def connect(self, options: str = "") -> LendingSession:
        """A session to lend, with the settings that the server and the role give it. Raises
        ``ParticipantRefused`` for a permanent refusal (wrong password, unknown database, a standby, a server
        that is too old), otherwise ``ParticipantUnavailable``. ``options`` are sent in the startup
        message."""
        address = self._address or self._bounded(read_dsn(self.participant, self.settings.dsn))
        self._address = address
        password = None if address.has_password else await self._password()
        session = await self.open(address, password, options)
        await introduce(self.participant, session, self.settings, draws=True)
        return session

    def _bounded(self, address: Conninfo) -> Conninfo:
        """``address`` with a bound for data that the network does not deliver, unless it has one
        (tcp(7), TCP_USER_TIMEOUT). A statement of the application has no timeout of its own: without the
        bound it would wait on a dead connection for as long as its transaction lasts."""
        if "tcp_user_timeout" in {*address.parameters, *address.resolved}:
            return address
        more = {"tcp_user_timeout": str(max(1, round(self.settings.statement_timeout_s * 1000)))}
        return replace(
            address, parameters={**address.parameters, **more}, resolved={**address.resolved, **more}
        )

    async def connect_own(self) -> ServerSession:
        """A session that is never lent to an application. It sets everything that it relies on, unless a
        pooler would pass these settings on to other clients. Fails as :meth:`connect` does."""
        try:
            return await self._settled(self._options)
        except ParticipantError as error:
            options = startup_timeouts(self.version) if self.version else ""
            if not _ended_early(error) or options == self._options:
                raise
            try:
                session = await self._settled(options)
            except ParticipantError:
                raise error from None
            self._options = options
            return session

    async def _settled(self, options: str) -> ServerSession:
        session = await self.connect(options)
        if not session.intro.pooled:
            await _settle_in(self.participant, session, self.settings.statement_timeout_s)
            session.keep_own_statements()
        return session

    @abc.abstractmethod
    async def open(self, address: Conninfo, password: str | None, options: str) -> LendingSession:
        """A session without ``intro``; also sets ``version``. Fails as :meth:`connect` does."""

    def no_answer_in_time(self) -> ParticipantUnavailable:
        """The error of ``open`` if no server answered in time."""
        seconds = self.settings.connect_timeout_s
        return ParticipantUnavailable(
            self.participant, f"no connection within connect_timeout_s = {seconds:g} s"
        )

    def no_primary(self) -> ParticipantUnavailable:
        """The error of ``open`` if all servers that answered are standbys, or read only."""
        return ParticipantUnavailable(
            self.participant, "none of the hosts of its dsn is a primary that takes writes now"
        )

    async def _password(self) -> str | None:
        path = self.settings.password_file
        if path is None:
            return None
        try:
            text = await asyncio.to_thread(_read, path)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ParticipantRefused(
                self.participant, f"its password_file {path!r} cannot be read: {reason}"
            ) from error
        return text.split("\n", 1)[0].rstrip("\r")


async def introduce(
    participant: str, session: ServerSession, settings: ParticipantSettings, *, draws: bool
) -> None:
    """Ask the server for its parameters and set ``session.intro``; on failure the session is discarded.
    ``draws``: also draw a history if the server has none; only for sessions without an open transaction."""
    try:
        intro = await _introduction(participant, session, settings)
        session.intro = await with_history(session, intro, settings.statement_timeout_s, draws=draws)
    except (ServerError, NoAnswer, NotSent) as error:
        session.discard()
        raise pooler_refusal(participant, str(error)) or participant_error(participant, error) from error
    except BaseException:
        session.discard()
        raise


async def _settle_in(participant: str, session: ServerSession, timeout_s: float) -> None:
    try:
        await session.script(session_settings(session.intro.version), timeout_s=timeout_s)
    except (ServerError, NoAnswer, NotSent) as error:
        session.discard()
        raise participant_error(participant, error) from error
    except BaseException:
        session.discard()
        raise


async def _introduction(
    participant: str, session: ServerSession, settings: ParticipantSettings
) -> ServerParameters:
    """The server's parameters, read in a separate transaction, since with the role's defaults a plain SELECT
    may have to wait; in an adopted session with an open transaction, in that transaction."""
    timeout_s = settings.statement_timeout_s
    if session.in_transaction:
        return await _ask_who(participant, session, settings)
    await session.script(ALONE, timeout_s=timeout_s)
    intro = await _ask_who(participant, session, settings)
    await session.script("commit", timeout_s=timeout_s)
    return intro


async def _ask_who(
    participant: str, session: ServerSession, settings: ParticipantSettings
) -> ServerParameters:
    timeout_s = settings.statement_timeout_s
    statement = owned("introduce", "current_user", "$1")
    statement = statement.replace("{each_owned}", is_owned("r.rolname", "$1"))
    [row] = await session.rows(statement, list(settings.owners), timeout_s=timeout_s)
    if row["version"] < VERSION_MIN:
        version = row["version"] // 10_000
        raise ParticipantRefused(
            participant, f"PostgreSQL {version} is too old: 13 or later", sqlstate=NOT_SUPPORTED
        )
    if row["standby"]:
        raise ParticipantRefused(
            participant,
            "its server is a standby (pg_is_in_recovery()), which shows no prepared transactions: name"
            " the primary in the dsn, or all hosts of the cluster",
            sqlstate=READ_ONLY_TRANSACTION,
        )
    faults: tuple[Fault, ...] = ()
    if row["schema_oid"] is not None:
        faults = await look(session, settings.schema_owners, timeout_s)
    believed = row["schema_oid"] is not None and not faults
    pooler = row["pid"] != session.pid
    pooled = pooler or settings.pooler
    if not pooled:
        session.keep_statements()
    system: int | None = None
    timeline: str | None = None
    try:
        [where] = await session.rows(query("whereabouts"), timeout_s=timeout_s)
        system, timeline = int(where["system"]), str(where["timeline"])
    except ServerError as error:
        # Some cloud providers revoke the right to call these functions: then there is no evidence, but all
        # else works.
        if error.sqlstate != NO_RIGHT:
            raise
    return ServerParameters(
        version=row["version"],
        synchronous_commit=row["synchronous_commit"],
        lock_timeout_s=row["lock_timeout_s"],
        idle_timeout_s=row["idle_timeout_s"],
        notes_commits=believed and row["notes_commits"],
        system=system,
        timeline=timeline,
        backend_start=row["backend_start"],
        pooler=pooler,
        pooled=pooled,
        role=row["role"],
        login=row["login"],
        role_owned=row["role_owned"],
        strays=row["strays"],
        role_of_database=row["role_of_database"],
        superuser=row["superuser"],
        database=row["database"],
        reports_history=believed and row["reports_history"],
        reports_position=row["reports_position"],
        schema=row["schema_oid"] if believed else None,
        prepares=row["prepares"],
    )


def _ended_early(error: ParticipantError) -> bool:
    """Whether a timeout of the server may have ended the session before the session turned the timeout off.
    Some timeouts are not reported, and look like a lost connection."""
    return isinstance(error, ParticipantUnavailable) or error.sqlstate in TIMEOUTS


def _read(path: str) -> str:
    return Path(path).expanduser().read_text("utf-8")
