"""Implements :class:`undoubt.participants.contract.Participant` for one PostgreSQL database, with either
driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from undoubt.participants.bounds import OutOfBounds, choice, having, text
from undoubt.participants.contract import (
    Branch,
    Decision,
    Ending,
    Evidence,
    PreparedBranch,
    Settled,
    TimelineHistory,
    Waiting,
    XactStatus,
)
from undoubt.participants.errors import (
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
    UsageError,
)
from undoubt.participants.findings import Finding
from undoubt.participants.ids import (
    NO_KEY,
    Gid,
    Protocol,
    SessionKey,
    check_ledger_id,
    check_participant_name,
)
from undoubt.participants.postgres.admin_pool import AdminPool
from undoubt.participants.postgres.announced import AnnouncedBranch, scripts_of
from undoubt.participants.postgres.branch import PostgresBranch
from undoubt.participants.postgres.branch_context import Surroundings
from undoubt.participants.postgres.checkup import Checkup
from undoubt.participants.postgres.connecting import Connector, Handles, introduce
from undoubt.participants.postgres.connection_proxy import Handle, LendingSession
from undoubt.participants.postgres.history import draw
from undoubt.participants.postgres.in_doubt import list_prepared
from undoubt.participants.postgres.last_agent import PostgresAgent
from undoubt.participants.postgres.on_connect import Hook, OnConnect
from undoubt.participants.postgres.one_phase import OnePhase
from undoubt.participants.postgres.outbox import PostgresOutbox
from undoubt.participants.postgres.pipeline import begin_steps, reset_steps, setting_steps
from undoubt.participants.postgres.pool import Pool, Slot
from undoubt.participants.postgres.roles import beginning, missing_grant, owned, reset_role
from undoubt.participants.postgres.session import (
    PROBE_S,
    AnswerTimedOut,
    NoAnswer,
    NotSent,
    PipelinedSession,
    ServerError,
    ServerSession,
    Step,
    drain_discarded,
)
from undoubt.participants.postgres.session_setup import (
    begin_script,
    branch_name,
    clean_script,
    known_pid,
    ledger_name,
    local_script,
    timeouts_ms,
)
from undoubt.participants.postgres.settle_each import PipelinedSettler
from undoubt.participants.postgres.sqlstate import participant_error, pooler_refusal
from undoubt.participants.postgres.three_phase import PostgresStates
from undoubt.participants.postgres.timelines import timeline_history
from undoubt.participants.postgres.waits import WaitGraph
from undoubt.participants.settings import ParticipantSettings

if TYPE_CHECKING:
    from undoubt.participants.postgres.psycopg.connector import PsycopgConnector

log = logging.getLogger(__name__)

PROVEN_S = 1.0
"""How long after its last answer a session is taken for alive: later, a branch begins in a round trip, since
a statement of the application that was sent on a dead session could not be repeated on another."""
PROBE_SHARE = 3
"""``PROBE_S`` is also at most the transaction's timeout divided by this number."""


class PostgresParticipant:
    """One PostgreSQL database. ``settings.dsn`` names it; ``ledger_id`` is the ledger whose branches count as
    our own in the wait graph.

    ``handles``: the kind of connection that an application gets from a branch, see
    :data:`undoubt.participants.postgres.connecting.Handles`. ``on_connect`` is called with each new
    connection of branches before its first branch, instead of the settings' ``init``
    (:mod:`undoubt.participants.postgres.on_connect`). No connection is opened before the first call that
    needs one; lost connections are replaced. Raises ``InvalidName``, ``OutOfBounds``. A participant is for
    one event loop."""

    def __init__(
        self,
        name: str,
        settings: ParticipantSettings,
        *,
        ledger_id: str,
        handles: Handles = "async",
        on_connect: OnConnect | None = None,
    ) -> None:
        self._name = check_participant_name(text("name", name))
        if not isinstance(settings, ParticipantSettings):
            raise OutOfBounds("settings", f"must be ParticipantSettings, not {type(settings).__name__}")
        choice("handles", handles, ("async", "sync"))
        if on_connect is not None:
            having("on_connect", on_connect, "a function of a connection")
        self._settings = settings
        connector = _new_connector(
            name, settings, ledger_name(check_ledger_id(text("ledger_id", ledger_id))), handles
        )
        self._connector = connector
        self._libpq: PsycopgConnector | None = None
        self._tries_pipeline = settings.pipeline
        """False once the driver has turned out not to allow it: then every session would find out slowly."""
        self._hook = Hook(name, settings.init, on_connect)
        idle_s = settings.connections_idle_s
        self.pool: Pool[LendingSession] = Pool(
            name, self._connect, settings.connections_max, idle_s=idle_s, clean=self._clean
        )
        self.admin_pool = AdminPool(
            name,
            connector.connect_own,
            settings.statement_timeout_s,
            idle_s=idle_s,
            schema_owners=settings.schema_owners,
        )
        self._settler = PipelinedSettler(
            self.admin_pool, settings.owners, self._connect_pipelined, idle_s=idle_s
        )
        self._checkup = Checkup(self.admin_pool, settings, ledger_id)
        self._waits = WaitGraph(self.admin_pool, ledger_id, lambda: self.names, settings.owners)
        self.states = PostgresStates(self.admin_pool)
        self.agent = PostgresAgent(self.admin_pool)
        self._around = Surroundings(
            name=name,
            settle=self._settler.settle,
            look_up=OnePhase(self.admin_pool, self._settler).look_up,
            give_back=self.pool.release,
            draw_history=self._draw_history,
            statement_timeout_s=settings.statement_timeout_s,
            owners=settings.owners,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self._name, *self._settings.was})

    @property
    def other_ledgers(self) -> frozenset[str]:
        return frozenset(self._settings.other_ledgers)

    @property
    def settings(self) -> ParticipantSettings:
        return self._settings

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        end = asyncio.get_running_loop().time() + timeout_s
        slot = await self.pool.acquire(min(timeout_s, self._settings.connect_timeout_s))
        if not slot.fresh and await self._begin(slot, gid, timeout_s, key) is not None:
            # An idle connection had been lost, other idle ones probably too. No branch was begun.
            self.pool.drop_idle()
            left_s = end - asyncio.get_running_loop().time()
            slot = await self.pool.acquire(min(left_s, self._settings.connect_timeout_s), fresh=True)
        if slot.fresh and (lost := await self._begin(slot, gid, timeout_s, key)) is not None:
            raise pooler_refusal(self._name, str(lost)) or ParticipantUnavailable(
                self._name, f"a new connection was lost while a branch was begun: {lost}"
            )
        slot.fresh = False
        handle = slot.session.handle(gid)
        if self._settings.reset == "tags":
            handle.undoubt_leaves = False
        return PostgresBranch(self._around, slot, handle, gid, timeout_s, key=key)

    async def adopt(
        self,
        slot: Slot[Any],
        handle: Handle,
        gid: Gid,
        *,
        timeout_s: float,
        key: SessionKey = NO_KEY,
        begin: str,
        give_back: Callable[[Slot[Any]], None],
    ) -> Branch:
        """Begin a branch on a session that the application has opened. ``introduce`` was called with the
        session, and no other code uses it.

        ``begin`` is the statement that begins its transaction, empty if the transaction has begun.
        ``give_back`` is called when the engine no longer uses the session, in any state. All settings of
        undoubt except ``application_name`` end with the transaction. Fails as the method ``begin`` does."""
        intro = slot.session.intro
        name = branch_name(gid, key, known_pid(slot.session))
        script = local_script(gid, name, intro, timeouts_ms(timeout_s, intro), begin=begin)
        try:
            await slot.session.script(script, timeout_s=self._settings.statement_timeout_s)
        except (ServerError, NoAnswer, NotSent) as error:
            raise participant_error(self._name, error) from error
        return PostgresBranch(
            replace(self._around, give_back=give_back), slot, handle, gid, timeout_s, key=key
        )

    async def announce(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> AnnouncedBranch:
        """A branch that another program runs and prepares within ``timeout_s`` seconds. Fails as ``begin``
        does; nothing is left open."""
        intro = await self.admin_pool.who()
        return AnnouncedBranch(
            self.admin_pool,
            self._settler,
            self._settings.owners,
            gid,
            scripts_of(gid, key, timeout_s, intro),
            name=branch_name(gid, key, 0),
        )

    async def introduce(self, session: ServerSession) -> None:
        """Set ``session.intro``, and check that the session is connected to this participant's database,
        since branches are finished through this participant's own sessions. Fails; raises ``UsageError`` if
        the session is connected to another database, or works in a role that prepares no branches of ours."""
        own = await self.admin_pool.who()  # first, since this draws the history id that the session will read
        await introduce(self._name, session, self._settings, draws=False)
        there = session.intro
        known = None not in {own.system, there.system}
        if own.database != there.database or (known and own.system != there.system):
            raise UsageError(
                f"the connection leads to database {there.database!r} of another server than participant"
                f" {self._name!r} does, or to another database there ({own.database!r}): name the"
                " participant that it belongs to"
            )
        [row] = await self.admin_pool.read(
            owned("prepares", "$1", "$2"), there.role, list(self._settings.owners)
        )
        if row["owned"]:
            return
        if there.role_of_database:
            mend = f"Its database sets that role, as its owner may: run {reset_role(own.database, None)}"
        else:
            grant = missing_grant(there.role, row["login"], row["version"])
            mend = f"Run {grant} or name the role in participants.{self._name}.owners"
        raise UsageError(
            f"the connection works as role {there.role!r}, which prepares no branches of participant"
            f" {self._name!r}: recovery would not finish them. {mend}"
        )

    async def _draw_history(self) -> None:
        try:
            async with self.admin_pool.session() as session:
                await draw(session, session.intro, self._settings.statement_timeout_s)
        except (ParticipantError, ServerError, NoAnswer, NotSent) as error:
            log.info("participant %r: no history id could be drawn: %s", self._name, error)

    async def _connect_pipelined(self) -> PipelinedSession:
        """A session of recovery's own. Only psycopg has a public interface for pipelines, so it is psycopg's
        whatever the driver of branches is."""
        if self._libpq is None:
            self._libpq = _psycopg_connector(
                self._name, self._settings, self._connector.application_name, "async"
            )
        return await self._libpq.connect_pipelined()

    async def _become_login(self, session: ServerSession) -> None:
        """Change to the login role, so that the application's hook does not run with the rights of a role
        that the database's owner chose."""
        try:
            await session.script("set role none", timeout_s=self._settings.statement_timeout_s)
        except (ServerError, NoAnswer, NotSent) as error:
            session.discard()
            raise participant_error(self._name, error) from error

    async def _connect(self) -> LendingSession:
        session = await self._connector.connect()
        try:
            session.intro = beginning(self._name, session.intro, self._settings.owners)
        except ParticipantRefused:
            session.discard()
            raise
        if self._hook:
            if session.intro.as_login:
                await self._become_login(session)
            await self._hook.run(session, self._settings.connect_timeout_s)
        if not self._tries_pipeline or await self._finds_pipeline(session):
            return session
        self._tries_pipeline = False
        return await self._connect()

    async def _finds_pipeline(self, session: LendingSession) -> bool:
        try:
            return await session.find_pipeline(self._settings.statement_timeout_s)
        except (ServerError, NoAnswer, NotSent) as error:
            session.discard()
            raise participant_error(self._name, error) from error
        except BaseException:
            session.discard()
            raise

    async def _clean(self, slot: Slot[LendingSession]) -> None:
        patience_s = min(self._settings.statement_timeout_s, PROBE_S)
        await slot.session.script(clean_script(slot), timeout_s=patience_s)
        slot.used = False

    async def _begin(
        self, slot: Slot[LendingSession], gid: Gid, timeout_s: float, key: SessionKey
    ) -> Exception | None:
        """Begin the branch. None if it has begun; the error if the connection was lost."""
        timeouts = timeouts_ms(timeout_s, slot.session.intro)
        name = branch_name(gid, key, known_pid(slot.session))
        patience_s = self._settings.statement_timeout_s
        if not slot.fresh:
            # Behind a pooler a branch may have to wait for a server.
            probe_s = patience_s if slot.session.intro.pooled else PROBE_S
            patience_s = min(patience_s, probe_s, timeout_s / PROBE_SHARE)
        dirty = slot.used
        begun = False
        try:
            await self._send_begin(slot, gid, name, timeouts, patience_s)
            begun = True
        except (NoAnswer, NotSent) as error:
            if isinstance(error, AnswerTimedOut) and slot.fresh:
                raise participant_error(self._name, error) from error
            return error
        except ServerError as error:
            if error.fatal or dirty:  # the error may come from what the last application left
                return error
            raise participant_error(self._name, error) from error
        finally:
            if not begun:
                slot.session.discard()
                self.pool.release(slot)
        slot.used = False
        slot.timeouts_ms = timeouts
        return None

    async def _send_begin(
        self,
        slot: Slot[LendingSession],
        gid: Gid,
        name: str,
        timeouts: tuple[int, int],
        patience_s: float,
    ) -> None:
        """Begin and marker: ahead of the application's first statement, where the session can do that and has
        answered within the last :data:`PROVEN_S` seconds, otherwise in a round trip. Raises the errors of the
        session."""
        session = slot.session
        synchronous_commit = session.intro.synchronous_commit
        before: tuple[Step, ...] = ()
        if slot.used:
            before = reset_steps(synchronous_commit, timeouts)
        elif slot.timeouts_ms != timeouts:
            before = setting_steps(synchronous_commit, timeouts)
        proven = before or asyncio.get_running_loop().time() < slot.idle_since + PROVEN_S
        if not proven or not session.begins_ahead:
            await session.script(begin_script(slot, gid, name, timeouts), timeout_s=patience_s)
            return
        if before:
            await session.pipeline(before, timeout_s=patience_s)
        session.ahead(begin_steps(gid, name, session.intro))

    async def in_doubt(self) -> Sequence[PreparedBranch]:
        return await list_prepared(self.admin_pool, self._settings.owners)

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        if gid.participant not in self.names:
            raise ParticipantRefused(
                self._name,
                f"{gid} is a branch of participant {gid.participant!r}: only that participant can end it",
            )
        return await self._settler.settle(gid, order, evidence)

    async def settle_each(self, endings: Sequence[Ending]) -> Sequence[Settled | ParticipantError] | None:
        for ending in endings:
            if ending.gid.participant not in self.names:
                return None  # settle() refuses it alone
        return await self._settler.settle_each(endings)

    async def end_impostor(self, branch: PreparedBranch) -> Settled:
        return await self._settler.end_impostor(branch)

    async def evidence(self, evidence: Evidence) -> XactStatus:
        return await self._settler.evidence(evidence)

    async def timeline_history(self) -> TimelineHistory | None:
        return await timeline_history(self.admin_pool)

    async def forget(self, gid: Gid) -> None:
        """PostgreSQL keeps no record of heuristic outcomes: nothing to do."""

    def outbox(self) -> PostgresOutbox:
        """The outbox of the database, for one relay, which closes it."""
        settings = self._settings
        return PostgresOutbox(
            self._name, self._connector.connect_own, settings.schema_owners, settings.statement_timeout_s
        )

    async def waits(self) -> Sequence[Waiting]:
        return await self._waits.edges()

    async def cancel_waiter(self, waiting: Waiting) -> bool:
        return await self._waits.cancel(waiting)

    async def check(self, *, protocol: Protocol = Protocol.TWO_PHASE) -> Sequence[Finding]:
        return await self._checkup.findings(protocol)

    async def close(self) -> None:
        self.pool.close()
        self.admin_pool.close()
        self._settler.close()
        await self.pool.drain()
        await drain_discarded()


def _new_connector(
    participant: str, settings: ParticipantSettings, application_name: str, handles: Handles
) -> Connector:
    """The connector of the driver that the settings name, which is imported here. Opens no connection."""
    if handles == "async" and settings.driver == "asyncpg":
        from undoubt.participants.postgres.asyncpg.connector import AsyncpgConnector  # noqa: PLC0415

        return AsyncpgConnector(participant, settings, application_name)
    return _psycopg_connector(participant, settings, application_name, handles)


def _psycopg_connector(
    participant: str, settings: ParticipantSettings, application_name: str, handles: Handles
) -> PsycopgConnector:
    from undoubt.participants.postgres.psycopg.connector import PsycopgConnector  # noqa: PLC0415

    return PsycopgConnector(participant, settings, application_name, handles)
