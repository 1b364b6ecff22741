"""Last-agent commit in PostgreSQL: the round trip that writes the row and commits, and
:class:`undoubt.participants.last_agent.LastAgent` for the table of rows.

A tombstone is written in a READ COMMITTED transaction of its own, and the row is read in that transaction by
a second statement. Its COMMIT, which waits for the synchronous standbys, comes behind the row in the WAL: so
a confirmed COMMIT confirms the row that was read, also a row that another session has committed without a
confirmation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from undoubt.participants.contract import Decision
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
)
from undoubt.participants.hardened_session import ALONE_WRITING
from undoubt.participants.last_agent import (
    AgentBusy,
    AgentEntry,
    AgentPlace,
    AgentRow,
    Holder,
    StoredRow,
)
from undoubt.participants.postgres.admin_pool import AdminPool, refuse_standby
from undoubt.participants.postgres.guard import commit_guard, confirmation
from undoubt.participants.postgres.history import Place
from undoubt.participants.postgres.pipeline import COMMIT, end_reading_steps
from undoubt.participants.postgres.schema_check import NO_SCHEMA, same_schema
from undoubt.participants.postgres.session import (
    CommandResult,
    NoAnswer,
    NotSent,
    Row,
    ServerError,
    ServerParameters,
    ServerSession,
    Step,
)
from undoubt.participants.postgres.sql import fill, query
from undoubt.participants.postgres.sqlstate import LOCK_NOT_AVAILABLE, participant_error
from undoubt.participants.sql import identifier

LOCK_TIMEOUT_MS = 1000
"""How long a tombstone waits for a COMMIT that is being executed, before its caller is told of it."""

_WATCH_S = 0.1
"""How often the session that a tombstone waits for is looked for."""

_NO_TABLE = frozenset({NO_SCHEMA, "42P01", "42883"})


def agent_script(marked: str, entry: AgentEntry, branches: bytes, intro: ServerParameters) -> str:
    """The guard, the row and COMMIT, for one simple query."""
    proof, ledger, txid, listed = _values(entry, branches)
    row = fill("note_agent", proof=proof, ledger=ledger, txid=txid, branches=listed)
    return f"{query('guard_deferred')}; {commit_guard(marked)}; {same_schema(intro)}{row}; commit"


def agent_steps(
    marked: str, entry: AgentEntry, branches: bytes, intro: ServerParameters, *, keep: bool
) -> list[Step]:
    """The same as steps of a pipeline."""
    row = query("note_agent")
    for number, name in enumerate(("proof", "ledger", "txid", "branches"), start=1):
        row = row.replace(f"{{{name}}}", f"${number}")
    [guard, _] = end_reading_steps(marked, keep=keep)
    return [
        Step(query("guard_deferred"), keep=keep),
        guard,
        Step(same_schema(intro).removesuffix("; ")),
        Step(row, _values(entry, branches)),
        COMMIT,
    ]


def _values(entry: AgentEntry, branches: bytes) -> tuple[str, str, str, str]:
    return f"\\x{entry.proof.hex()}", entry.ledger, str(entry.txid), f"\\x{branches.hex()}"


def cannot_be_agent(name: str, entry: AgentEntry, place: Place | None, *, read_only: bool) -> str | None:
    """Why a branch of participant ``name`` in ``place`` cannot be the agent of ``entry``; None if it can."""
    if place is None or place.history != entry.place.history:
        return (
            "it is in another history of its database than the one to which this session of the ledger is"
            " bound (a failover, or a restore): the next session is bound to the present one"
        )
    if read_only:
        return (
            "its transaction is read only, and the agent of last-agent commit has to write the decision:"
            f" leave out SET TRANSACTION READ ONLY in {name!r}, or name another participant as the agent"
        )
    return None


def unanswered_commit(error: ServerError) -> bool:
    """Whether ``error`` leaves the outcome of COMMIT open: it has ended the session, or a pooler reports in
    place of the server that it has lost the server (class 08)."""
    return error.fatal or error.sqlstate.startswith("08")


def buried(name: str, error: ServerError) -> BranchFailed | None:
    """The failure of a branch whose COMMIT met a tombstone; None for other errors."""
    if error.sqlstate != "23505" or "undoubt_agent_pkey" not in error.message:
        return None
    return BranchFailed(
        name,
        "recovery or an operator has aborted the transaction before its last branch committed",
        sqlstate=error.sqlstate,
    )


class PostgresAgent:
    """The table of rows in one database: see the module."""

    def __init__(self, admin_pool: AdminPool) -> None:
        self._admin_pool = admin_pool

    async def place(self) -> AgentPlace:
        name = self._admin_pool.participant
        try:
            [row] = await self._admin_pool.ask(query("agent_place"))
        except ServerError as error:
            raise self._refused(error) from error
        refuse_standby(name, row)
        if denied := row["denied"]:
            rights = ", ".join(denied).upper()
            raise ParticipantRefused(
                name,
                "it cannot be the agent of last-agent commit: run"
                f" GRANT {rights} ON undoubt.undoubt_agent TO {identifier(row['login'])};",
            )
        if row["history"] is None:
            raise ParticipantRefused(
                name,
                "it cannot be the agent of last-agent commit: its database has drawn no history id (undoubt"
                f" participants check {name} says why)",
            )
        return AgentPlace((await self._admin_pool.who()).system, row["history"])

    async def prepares(self) -> bool:
        return (await self._admin_pool.who()).prepares

    async def conclude(self, entry: AgentEntry) -> AgentRow | None:
        while True:
            async with self._transaction() as session:
                row = await self._bury(session, entry)
                if row["decision"] is not None:
                    await self._confirm(session)
                    return AgentRow(Decision(row["decision"]), bytes(row["branches"]))
                if not row["here"]:
                    await self._confirm(session)
                    return None
                # A row was there, and has been deleted since, because the ledger has it.
                await self._confirm(session)

    async def terminate(self, holder: Holder) -> bool:
        rows = await self._admin_pool.read(query("agent_terminate"), holder.pid, holder.started)
        return any(row["sent"] for row in rows)

    async def find(self, keys: Sequence[bytes]) -> Mapping[bytes, AgentRow]:
        async with self._transaction() as session:
            rows = await session.rows(query("agent_find"), list(keys), timeout_s=self._admin_pool.timeout_s)
            await self._confirm(session)
        return {
            bytes(row["key"]): AgentRow(Decision(row["decision"]), bytes(row["branches"])) for row in rows
        }

    async def stored(self, ledger: str, *, after: bytes = b"", limit: int) -> Sequence[StoredRow]:
        return [
            StoredRow(bytes(row["key"]), Decision(row["decision"]), row["txid"], row["age_s"])
            for row in await self._ask("agent_stored", ledger, after, limit)
        ]

    async def forget(self, keys: Sequence[bytes]) -> None:
        await self._ask("agent_forget", list(keys), str(Decision.COMMIT))

    async def drop(self, keys: Sequence[bytes]) -> None:
        await self._ask("agent_forget", list(keys), str(Decision.ABORT))

    async def _ask(self, name: str, *args: object) -> Sequence[Row]:
        try:
            return await self._admin_pool.ask(query(name), *args)
        except ServerError as error:
            raise self._refused(error) from error

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[ServerSession]:
        """A session in a READ COMMITTED transaction, which :meth:`_confirm` ends."""
        timeout_s = self._admin_pool.timeout_s
        try:
            async with self._admin_pool.session() as session:
                try:
                    await self._admin_pool.believe(session)
                    begin = f"{ALONE_WRITING}; set local lock_timeout = '{LOCK_TIMEOUT_MS}ms'"
                    await session.script(begin, timeout_s=timeout_s)
                    yield session
                except BaseException:
                    session.discard()  # a transaction may be open in it
                    raise
        except (NoAnswer, NotSent) as error:
            raise participant_error(self._admin_pool.participant, error) from error
        except ServerError as error:
            raise self._refused(error) from error

    async def _bury(self, session: ServerSession, entry: AgentEntry) -> Row:
        """Write the tombstone if nothing prevents that, and return the row of ``agent_row``."""
        timeout_s = self._admin_pool.timeout_s
        [own] = await session.rows(query("agent_self"), timeout_s=timeout_s)
        refuse_standby(self._admin_pool.participant, own)
        key = f"\\x{entry.key.hex()}"
        tombstone = same_schema(session.intro) + fill(
            "agent_bury", key=key, ledger=entry.ledger, txid=str(entry.txid), history=entry.place.history
        )
        await self._insert(session, tombstone, own["pid"])
        [row] = await session.rows(query("agent_row"), entry.key, entry.place.history, timeout_s=timeout_s)
        return row

    async def _insert(self, session: ServerSession, tombstone: str, pid: int) -> None:
        """Raises ``AgentBusy`` if another session holds the key for too long."""
        holder = await self._holder(pid)  # none yet, but it opens the session that looks
        inserting = asyncio.ensure_future(session.script(tombstone, timeout_s=self._admin_pool.timeout_s))
        try:
            while not (await asyncio.wait({inserting}, timeout=_WATCH_S))[0]:
                holder = await self._holder(pid) or holder
            await inserting
        except ServerError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            raise AgentBusy(self._admin_pool.participant, holder) from error
        finally:
            if not inserting.done():
                inserting.cancel()
                await asyncio.wait({inserting})

    async def _holder(self, pid: int) -> Holder | None:
        try:
            rows = await self._admin_pool.read(query("agent_holder"), pid)
        except ParticipantError:
            return None  # it is wanted for the message only
        return next((Holder(*(row[name] for name in Holder._fields)) for row in rows), None)

    async def _confirm(self, session: ServerSession) -> None:
        """COMMIT, and wait for the synchronous standbys."""
        script = f"{confirmation()}; commit"
        answer: CommandResult = await session.script(script, timeout_s=self._admin_pool.timeout_s)
        name = self._admin_pool.participant
        if answer.tag != "COMMIT":
            raise ParticipantUnavailable(name, f"COMMIT of a tombstone answered {answer.tag}")
        if (warning := answer.unconfirmed) is not None:
            raise ParticipantUnavailable(
                name,
                "no synchronous standby confirmed the row of last-agent commit, which a failover could take"
                f" back: {warning.message}",
                sqlstate=warning.sqlstate,
            )

    def _refused(self, error: ServerError) -> ParticipantError:
        name = self._admin_pool.participant
        if error.sqlstate in _NO_TABLE:
            return ParticipantRefused(
                name,
                f"its database has no table for last-agent commit: run undoubt participants migrate {name}",
                sqlstate=error.sqlstate,
            )
        return participant_error(name, error)
