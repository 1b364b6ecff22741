"""Sessions for statements outside branches: lists, second phases after a crash, evidence, wait graphs.

At most :data:`SESSIONS_MAX` sessions; each is opened when it is needed, and replaced when it is lost. There
are several, so that branches can be settled concurrently and a slow branch does not delay the lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.postgres.pool import Pool, S, Slot
from undoubt.participants.postgres.schema_check import believe, look, same_schema, uses_schema
from undoubt.participants.postgres.session import (
    CommandResult,
    NoAnswer,
    NotSent,
    Row,
    ServerError,
    ServerParameters,
    ServerSession,
)
from undoubt.participants.postgres.sqlstate import (
    NO_STATEMENT,
    READ_ONLY_TRANSACTION,
    participant_error,
    schema_changed,
)
from undoubt.participants.schema_trust import Fault

SESSIONS_MAX = 8


class AdminPool:
    """Runs undoubt's own statements at one participant, outside branches."""

    def __init__(
        self,
        participant: str,
        connect: Callable[[], Awaitable[S]],
        timeout_s: float,
        *,
        idle_s: float = 0.0,
        schema_owners: Sequence[str] = (),
    ) -> None:
        self.participant = participant
        self._schema_owners = schema_owners
        self.timeout_s = timeout_s
        self.pool: Pool[ServerSession] = Pool(participant, connect, SESSIONS_MAX, idle_s=idle_s)

    async def read(self, sql: str, *args: object) -> Sequence[Row]:
        """The rows of one statement that changes nothing. It is repeated once on a new session if an old
        session was lost. Raises ``ParticipantError``."""
        try:
            return await self.ask(sql, *args)
        except ServerError as error:
            raise participant_error(self.participant, error) from error

    async def ask(self, sql: str, *args: object) -> Sequence[Row]:
        """Like :meth:`read`, but raises ``ServerError`` unchanged. If the statement uses schema ``undoubt``,
        the schema is checked first: raises ``ParticipantRefused`` if it is not to be believed."""
        async with self._slot() as slot:
            try:
                return await self._rows(slot.session, sql, args)
            except (NoAnswer, NotSent) as error:
                if slot.fresh:
                    raise participant_error(self.participant, error) from error
            except ServerError as error:
                if slot.fresh or not (error.fatal or error.sqlstate == NO_STATEMENT):
                    raise
                slot.session.discard()
        # Other idle sessions were probably lost as well, or a firewall has dropped them, or they have checked
        # the former schema.
        self.pool.drop_idle()
        async with self._slot(fresh=True) as slot:
            try:
                return await self._rows(slot.session, sql, args)
            except (NoAnswer, NotSent) as error:
                raise participant_error(self.participant, error) from error

    async def _rows(self, session: ServerSession, sql: str, args: tuple[object, ...]) -> Sequence[Row]:
        if uses_schema(sql):
            await self.believe(session)
        return await session.rows(sql, *args, timeout_s=self.timeout_s)

    async def change(self, session: ServerSession, sql: str) -> CommandResult:
        """The answer to one statement that uses schema ``undoubt``, after a check of the schema. Raises
        ``ParticipantRefused`` if the schema is not to be believed, and the errors of ``session``."""
        if session.intro.schema is None:
            await self.believe(session)
        try:
            return await session.script(same_schema(session.intro) + sql, timeout_s=self.timeout_s)
        except ServerError as error:
            if not schema_changed(error):
                raise
        await self.believe(session)  # the rest of the script was not executed
        return await session.script(same_schema(session.intro) + sql, timeout_s=self.timeout_s)

    async def faults(self) -> Sequence[Fault]:
        """The reasons not to believe schema ``undoubt`` now. Raises ``ParticipantError``."""
        async with self._slot() as slot:
            try:
                return await look(slot.session, self._schema_owners, self.timeout_s)
            except (ServerError, NoAnswer, NotSent) as error:
                raise participant_error(self.participant, error) from error

    async def believe(self, session: ServerSession) -> None:
        """Check schema ``undoubt``, unless ``session`` has checked this one. Raises ``ParticipantRefused`` if
        it is not to be believed, ``ServerError`` if there is none, and the errors of ``session``."""
        try:
            await believe(self.participant, session, self._schema_owners, self.timeout_s)
        except ParticipantRefused:
            session.discard()  # the next session starts without the schema
            raise

    async def who(self) -> ServerParameters:
        """What the server reported about itself. Raises ``ParticipantError``."""
        async with self._slot() as slot:
            return slot.session.intro

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ServerSession]:
        """A session for statements that must not be repeated automatically."""
        async with self._slot() as slot:
            try:
                yield slot.session
            except (NoAnswer, NotSent):
                self.pool.drop_idle()  # so that the next caller gets a new session
                raise

    def close(self) -> None:
        self.pool.close()

    @asynccontextmanager
    async def _slot(self, *, fresh: bool = False) -> AsyncIterator[Slot[ServerSession]]:
        slot = await self.pool.acquire(self.timeout_s, fresh=fresh)
        try:
            yield slot
        finally:
            self.pool.release(slot)


def refuse_standby(participant: str, row: Row) -> None:
    """Raise ``ParticipantRefused`` if ``row``, which has a column ``standby``, came from a standby."""
    if row["standby"]:
        raise ParticipantRefused(
            participant,
            "its server is a standby (pg_is_in_recovery()), which shows no prepared transactions: name the"
            " primary in the dsn, or all hosts of the cluster",
            sqlstate=READ_ONLY_TRANSACTION,
        )
