"""Opening a session with asyncpg, and what it means if that fails."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from participants.errors import ParticipantError, ParticipantRefused, ParticipantUnavailable
from participants.postgres.asyncpg_session import TRANSLATED, AsyncpgSession, translate
from participants.postgres.dsn import UNREADABLE, Address, read_dsn
from participants.postgres.session import Introduction, NoAnswer, NotSent, ServerError
from participants.postgres.sql import query
from participants.postgres.verdicts import (
    NO_RIGHT,
    NOT_SUPPORTED,
    READ_ONLY_TRANSACTION,
    participant_error,
    pooler_refusal,
)
from participants.settings import ParticipantSettings

VERSION_MIN = 130000
STATEMENT_CACHE_SIZE = 100


class UniqueNames(asyncpg.Connection):
    """asyncpg counts what it names (statements, cursors) in its own process; behind a pooler those of several
    processes meet in one server."""

    def _get_unique_id(self, prefix: str) -> str:
        return f"__asyncpg_{prefix}_{secrets.token_hex(8)}__"


@dataclass(slots=True)
class Connector:
    """Opens sessions to one participant. The dsn is read when the first is wanted."""

    participant: str
    settings: ParticipantSettings
    application_name: str
    _address: Address | None = None

    async def connect(self) -> AsyncpgSession:
        """Raises ``ParticipantRefused`` if the answer is no and will stay no (wrong password, unknown
        database, a standby, a server that is too old), else ``ParticipantUnavailable``."""
        address = self._address or read_dsn(self.participant, self.settings.dsn)
        self._address = address
        password = None if address.has_password else await self._password()
        try:
            connection = await asyncpg.connect(
                address.uri,
                password=password,
                timeout=self.settings.connect_timeout_s,
                statement_cache_size=STATEMENT_CACHE_SIZE,
                server_settings={"application_name": self.application_name},
                connection_class=UniqueNames,
            )
            # Not before it is known that no pooler shares the server with others: see keep_statements.
            connection._stmt_cache_enabled = False  # type: ignore[attr-defined]
        except asyncpg.TargetServerAttributeNotMatched as error:
            raise ParticipantUnavailable(
                self.participant, "none of the hosts of its dsn is a primary that takes writes now"
            ) from error
        except ValueError:  # and ClientConfigurationError, which is one
            # Its text may quote a part of a password that was not percent-encoded.
            raise ParticipantRefused(self.participant, UNREADABLE) from None
        except TRANSLATED as error:
            raise self._connect_error(error) from error
        return await self._introduced(AsyncpgSession(connection))

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

    def _connect_error(self, error: BaseException) -> ParticipantError:
        match error:
            case TimeoutError():
                seconds = self.settings.connect_timeout_s
                return ParticipantUnavailable(
                    self.participant, f"no connection within connect_timeout_s = {seconds:g} s"
                )
            case OSError():
                return ParticipantUnavailable(self.participant, f"no connection: {error}")
            case asyncpg.PostgresError() if error.sqlstate and not error.sqlstate.startswith("08"):
                return participant_error(self.participant, translate(error))
            case asyncpg.PostgresError() if told := pooler_refusal(self.participant, str(error)):
                return told
            case asyncpg.PostgresError():
                return ParticipantUnavailable(self.participant, f"no connection: {error}")
            case _:
                return ParticipantRefused(self.participant, f"no connection: {error}")

    async def _introduced(self, session: AsyncpgSession) -> AsyncpgSession:
        try:
            session.intro = await self._introduce(session)
        except (ServerError, NoAnswer, NotSent) as error:
            session.discard()
            raise participant_error(self.participant, error) from error
        except BaseException:
            session.discard()
            raise
        return session

    async def _introduce(self, session: AsyncpgSession) -> Introduction:
        timeout_s = self.settings.statement_timeout_s
        [row] = await session.rows(query("introduce"), timeout_s=timeout_s)
        if row["version"] < VERSION_MIN:
            version = row["version"] // 10_000
            raise ParticipantRefused(
                self.participant,
                f"PostgreSQL {version} is too old: 13 or later",
                sqlstate=NOT_SUPPORTED,
            )
        if row["standby"]:
            raise ParticipantRefused(
                self.participant,
                "its server is a standby (pg_is_in_recovery()), which shows no prepared transactions: name"
                " the primary in the dsn, or all hosts of the cluster",
                sqlstate=READ_ONLY_TRANSACTION,
            )
        pooler = row["pid"] != session.pid
        pooled = pooler or self.settings.pooler
        if not pooled:
            session.keep_statements()
        system: int | None = None
        timeline: str | None = None
        try:
            [where] = await session.rows(query("whereabouts"), timeout_s=timeout_s)
            system, timeline = int(where["system"]), str(where["timeline"])
        except ServerError as error:
            # Some clouds keep these functions to themselves: then there is no evidence, and no other harm.
            if error.sqlstate != NO_RIGHT:
                raise
        return Introduction(
            version=row["version"],
            synchronous_commit=row["synchronous_commit"],
            lock_timeout_s=row["lock_timeout_s"],
            idle_timeout_s=row["idle_timeout_s"],
            notes_commits=row["notes_commits"],
            system=system,
            timeline=timeline,
            backend_start=row["backend_start"],
            pooler=pooler,
            pooled=pooled,
            role=row["role"],
            superuser=row["superuser"],
        )


def _read(path: str) -> str:
    return Path(path).expanduser().read_text("utf-8")
