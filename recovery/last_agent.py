"""Undecided transactions of last-agent commit: what the row at the agent says is recorded in the ledger.

The answer of the ledger counts, not the row: a row may have been copied to the ledger and deleted, and a
tombstone been written in its place afterwards. What the calls to the agent mean:
:mod:`undoubt.participants.last_agent`.

Rows whose coordinator has died before it deleted them are copied and deleted by :meth:`Agents.tidy`. Every
role can write rows (``undoubt.note_agent``), so a row counts only under the key that the ledger knows."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from undoubt.coordinator.errors import BranchListMismatch, Impostor, OutcomeUnknown
from undoubt.coordinator.ledger.agents import AgentKey
from undoubt.coordinator.ledger.contract import Ledger, record_of
from undoubt.coordinator.protocols.last_agent import branches_of
from undoubt.coordinator.protocols.steps import Observer, reach
from undoubt.participants.contract import Decision, Participant
from undoubt.participants.errors import ParticipantError, ParticipantRefused, UsageError
from undoubt.participants.ids import Gid, InvalidName, Protocol, TxId
from undoubt.participants.last_agent import (
    AgentBusy,
    AgentEntry,
    AgentPlace,
    AgentRow,
    LastAgent,
    StoredRow,
    agent_of,
)
from undoubt.participants.registry import Registry
from undoubt.recovery.plan import Ended
from undoubt.recovery.steps import AgentStep

log = logging.getLogger(__name__)

NO_AGENT = "the ledger no longer knows its agent: an operator must decide"
OTHER_HISTORY = (
    "its agent {!r} is in another history (a failover, or a restore), where a missing row proves nothing: an"
    " operator must decide"
)
NO_ROW_SHOWN = (
    "its agent {!r} shows no row of it, and may still commit: once its coordinator is gone, recovery writes"
    " the tombstone there"
)
NO_ROW_YET = "its agent {!r} has no row of it, and its coordinator may still be alive"
_ROWS = {Decision.COMMIT: "committed", Decision.ABORT: "a tombstone of it"}

ROWS_MAX = 500
"""The rows of one page, and of one call of the ledger."""
PAGES_MAX = 40
"""The pages of one sweep. The next one goes on where this one has ended, so that rows that every role can
write do not keep the others from being read."""
KEPT_S = 7 * 86_400.0
"""For how long, by the clock of the database, a row is kept whose session the ledger does not know: the
ledger drops sessions after its retention, but it may also have been set back. Nothing can be decided by such
a row, but an operator may want to see it."""


Alive = Callable[[], Awaitable[Callable[[TxId], bool]]]
"""Returns a function that says whether the coordinator of a transaction may still work on it."""


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents of undecided transactions. Every call may be repeated, and two processes may call at once;
    all raise ``LedgerError``."""

    ledger: Ledger
    participants: Registry
    observe: Observer | None = None

    async def conclude(self, gid: Gid, *, gone: bool, cause: str = "") -> Ended:
        """Write the tombstone of the transaction, unless the row of its COMMIT is there, and record what is
        there then. ``gone``: the coordinator's session is gone, or its floor has passed the transaction, so
        that a session which still executes the COMMIT is terminated. Otherwise only an operator may call
        this, who wants the transaction aborted; ``cause`` is kept with the ABORT."""
        key, agent, why = await self._find(gid)
        if key is None or agent is None:
            return why
        name = key.binding.participant
        await reach(self.observe, AgentStep.BEFORE_CONCLUDE, gid.txid)
        try:
            row = await self._row(agent, self._entry(gid.txid, key), gone=gone)
        except ParticipantError as error:
            return Ended(None, f"blocked: {error}")
        if row is None:
            return Ended(None, OTHER_HISTORY.format(name), hopeless=True)
        await reach(self.observe, AgentStep.AFTER_CONCLUDE, gid.txid)
        return await self._record(gid, name, row, cause)

    async def look(self, gid: Gid) -> Ended:
        """Record COMMIT if the row is there. Writes nothing at the agent."""
        key, agent, why = await self._find(gid)
        if key is None or agent is None:
            return why
        name, entry = key.binding.participant, self._entry(gid.txid, key)
        try:
            row = (await agent.find([entry.key])).get(entry.key)
        except ParticipantError as error:
            return Ended(None, f"blocked: {error}")
        if row is None:
            return Ended(None, NO_ROW_YET.format(name))
        return await self._record(gid, name, row, "")

    async def describe(self, gid: Gid) -> str:
        """For an operator: what the agent shows of an undecided transaction. Writes nothing."""
        key, agent, why = await self._find(gid)
        if key is None or agent is None:
            return why.why
        name, entry = key.binding.participant, self._entry(gid.txid, key)
        try:
            row = (await agent.find([entry.key])).get(entry.key)
            here = (await agent.place()).history == entry.place.history
        except ParticipantError as error:
            return f"its agent {name!r} does not answer: {error}"
        if row is not None:
            return f"its agent {name!r} has {_ROWS[row.decision]}: recovery records that in the ledger"
        return NO_ROW_SHOWN.format(name) if here else OTHER_HISTORY.format(name)

    async def _find(self, gid: Gid) -> tuple[AgentKey | None, LastAgent | None, Ended]:
        [key] = await self.ledger.agent_keys([gid.txid])
        if key is None:
            return None, None, Ended(None, NO_AGENT, hopeless=True)
        name = key.binding.participant
        why = Ended(None, f"blocked: its agent {name!r} is not one of the participants here")
        return key, agent_of(self.participants.find(name)), why

    def _entry(self, txid: TxId, key: AgentKey) -> AgentEntry:
        place = AgentPlace(key.binding.system, key.binding.history)
        return AgentEntry(self.ledger.ledger_id, txid, key.proof, place)

    async def _row(self, agent: LastAgent, entry: AgentEntry, *, gone: bool) -> AgentRow | None:
        try:
            return await agent.conclude(entry)
        except AgentBusy as busy:
            if not gone or busy.holder is None or not await agent.terminate(busy.holder):
                raise
            log.warning(
                "transaction %s: %s held the row of a coordinator that is gone, and was terminated",
                entry.txid,
                busy.holder,
            )
        return await agent.conclude(entry)

    async def _record(self, gid: Gid, name: str, row: AgentRow, cause: str) -> Ended:
        branches = branches_of(row.branches) if row.decision is Decision.COMMIT else [record_of(gid)]
        try:
            decision = await self.ledger.decide(
                gid.txid, row.decision, branches, protocol=gid.protocol, cause=cause
            )
        except BranchListMismatch:
            return Ended(None, "it was decided meanwhile")
        except OutcomeUnknown as error:
            return Ended(None, error.why, hopeless=True)
        listed = {(branch.number, branch.participant) for branch in branches}
        if decision is Decision.COMMIT and (gid.branch, gid.participant) not in listed:
            return Ended(None, "it was committed without this branch, or another process has just decided")
        return Ended(decision, f"its agent {name!r} has {_ROWS[row.decision]}")

    # Rows that were left.

    async def tidy(self, participant: Participant, alive: Alive, after: bytes = b"") -> bytes:
        """Copy to the ledger the rows of COMMITs whose coordinator is gone, and delete them; delete rows that
        no coordinator has written, and tombstones of sessions that the ledger has dropped. Begins behind the
        key ``after``; returns the key behind which the next call has to begin. Raises ``ParticipantError``
        except for a database without such a table."""
        agent = agent_of(participant)
        if agent is None:
            return b""
        for _ in range(PAGES_MAX):
            try:
                page = await agent.stored(self.ledger.ledger_id, after=after, limit=ROWS_MAX)
            except ParticipantRefused:
                return b""
            if page:
                await self._tidy(participant, agent, page, await alive())
            if len(page) < ROWS_MAX:
                return b""
            after = page[-1].key
        return after

    async def _tidy(
        self,
        participant: Participant,
        agent: LastAgent,
        page: Sequence[StoredRow],
        alive: Callable[[TxId], bool],
    ) -> None:
        named = {row.key: txid for row in page if (txid := _txid(row)) is not None}
        keys = dict(zip(named, await self.ledger.agent_keys(named.values()), strict=True))
        commits: list[bytes] = []
        over: dict[Decision, list[bytes]] = {Decision.COMMIT: [], Decision.ABORT: []}
        for row in page:
            known = keys.get(row.key)
            if known is None and row.key in named:
                if row.age_s >= KEPT_S:
                    over[row.decision].append(row.key)
            elif known is None or self._entry(named[row.key], known).key != row.key:
                over[Decision.COMMIT].append(row.key)  # any role may have written it; a tombstone stays
            elif (
                row.decision is Decision.COMMIT
                and known.binding.participant in participant.names
                and not alive(named[row.key])
            ):
                commits.append(row.key)
        for key, found in (await agent.find(commits) if commits else {}).items():
            if found.decision is Decision.COMMIT and await self._copied(named[key], found):
                over[Decision.COMMIT].append(key)
        if over[Decision.COMMIT]:
            await agent.forget(over[Decision.COMMIT])
        if over[Decision.ABORT]:
            await agent.drop(over[Decision.ABORT])

    async def _copied(self, txid: TxId, row: AgentRow) -> bool:
        """Record the COMMIT that ``row`` is; whether the ledger holds it."""
        try:
            branches = branches_of(row.branches)
            await reach(self.observe, AgentStep.BEFORE_COPY, txid)
            recorded = await self.ledger.decide(txid, Decision.COMMIT, branches, protocol=Protocol.LAST)
            await reach(self.observe, AgentStep.AFTER_COPY, txid)
        except (BranchListMismatch, Impostor, OutcomeUnknown, UsageError, msgspec.MsgspecError) as error:
            log.warning("the row of %s cannot be copied to the ledger: %s", txid, error)
            return False
        if recorded is Decision.ABORT:
            log.error(
                "transaction %s has committed at its agent, and the ledger holds ABORT: compare what it has"
                " written in its databases",
                txid,
            )
        return recorded is Decision.COMMIT


def _txid(row: StoredRow) -> TxId | None:
    try:
        return TxId.parse(row.txid)
    except InvalidName:
        return None
