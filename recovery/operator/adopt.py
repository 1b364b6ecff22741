"""Branches of a ledger that is lost: what can still be known of them, and how they are ended.

The ledger held the decisions, so what it knew is gone. What is left is in the participants: what is prepared,
and the rows of three-phase commit, whose termination needs no ledger. With the ledger's secret a name is
proved to be the ledger's; without it nothing is, and a transaction is ended only if a person has named it.

In last-agent commit, the row at the agent proves the COMMIT, if it is still there: the ledger's secret makes
its key. Before such a transaction is rolled back, the tombstone is written in every database that may be the
agent.

Nothing is guessed. Where no protocol decides, a person chooses the direction of a whole transaction, and
every branch of it goes the same way. A branch that is proved to have committed rules out the other
direction."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from undoubt.coordinator.ledger.rules import Names
from undoubt.coordinator.protocols.termination import Round
from undoubt.coordinator.protocols.termination_rules import Move
from undoubt.participants.contract import HEURISTICS, Decision, Participant, PreparedBranch, Settled
from undoubt.participants.errors import ParticipantError, ParticipantRefused
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.last_agent import AgentEntry, AgentPlace, agent_of
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import BranchState, Charter, StateRow
from undoubt.recovery.errors import Conflict, NotAllSeen, NotPrepared
from undoubt.recovery.holders import finding
from undoubt.recovery.plan import BranchDone, for_settled
from undoubt.recovery.report import ReportedBranch
from undoubt.recovery.scan import why_impostor
from undoubt.recovery.terminate import DECISIONS, NO_ROW, in_words
from undoubt.recovery.without_ledger import NOT_WITHOUT_LEDGER

BUSY_S = 10.0
BUSY_PAUSE_S = 0.1
NO_AGENT_ROW = (
    "no participant that answers holds the row of its COMMIT. That proves nothing: the row is deleted once"
    " the ledger has the COMMIT. Find the other branches of the transaction, and decide by hand"
)
_ANYWHERE = AgentPlace(None, "")


@dataclass(frozen=True, slots=True)
class LostBranch:
    """One branch that the lost ledger named, or that the rows of three-phase commit name. ``now``:
    ``prepared``, ``committed`` (proved by its note), ``rolled_back`` (a tombstone), ``not_prepared`` or
    ``no_answer``. ``branch`` and ``holder`` (the participant that lists it) only of one that is prepared."""

    gid: Gid
    now: str
    holder: str = ""
    branch: PreparedBranch | None = None


@dataclass(frozen=True, slots=True)
class LostTransaction:
    """``proved``: the secret shows that the ledger gave these names. ``charter``: of three-phase commit,
    whose termination can be asked. ``why``: in words, what ends it, or why nothing does by itself.
    ``agent``: the participant that holds the row of the COMMIT of a last-agent commit."""

    txid: TxId
    protocol: Protocol
    branches: tuple[LostBranch, ...]
    proved: bool
    charter: Charter | None
    why: str
    agent: str = ""

    @property
    def prepared(self) -> list[LostBranch]:
        return [one for one in self.branches if one.branch is not None]

    @property
    def committed(self) -> list[LostBranch]:
        return [one for one in self.branches if one.now == "committed"]


@dataclass(frozen=True, slots=True)
class LostBranches:
    """``impostors``: prepared under a name of that ledger which it never gave, or by, or in, another database
    or role than its own; beside each, why. They are never touched. ``unreachable``: who was not asked."""

    transactions: tuple[LostTransaction, ...]
    impostors: tuple[tuple[str, Gid, str], ...]
    unreachable: Mapping[str, ParticipantError]

    def one(self, txid: TxId) -> LostTransaction:
        """Raises ``NotPrepared``."""
        for found in self.transactions:
            if found.txid == txid:
                return found
        raise NotPrepared(f"no participant that answers has a prepared branch of transaction {txid}")


class Adoption:
    """The prepared branches of ledger ``ledger_id``. ``secret``: the secret of that ledger; empty if it is
    lost."""

    def __init__(self, participants: Registry, ledger_id: str, secret: bytes = b"") -> None:
        self._participants = participants
        self._ledger_id = ledger_id
        self._names = Names(ledger_id, secret)

    async def look(self) -> LostBranches:
        """Everything that can be known. Changes nothing."""
        everyone = list(self._participants)
        lists = await asyncio.gather(*map(_listed, everyone))
        unreachable: dict[str, ParticipantError] = {}
        prepared: dict[TxId, dict[Gid, LostBranch]] = {}
        impostors: list[tuple[str, Gid, str]] = []
        for participant, listed in zip(everyone, lists, strict=True):
            if isinstance(listed, ParticipantError):
                unreachable[participant.name] = listed
                continue
            for branch in listed:
                gid = branch.gid
                if not isinstance(gid, Gid) or gid.ledger != self._ledger_id:
                    continue
                if (why := self._why_not(participant, branch)) is not None:
                    impostors.append((participant.name, gid, why))
                    continue
                found = LostBranch(gid, "prepared", participant.name, branch)
                prepared.setdefault(gid.txid, {})[gid] = found
        rows = await self._agent_rows(prepared, unreachable)
        transactions = [
            await self._whole(txid, prepared[txid], unreachable, rows.get(txid, ""))
            for txid in sorted(prepared)
        ]
        return LostBranches(tuple(transactions), tuple(impostors), unreachable)

    def _why_not(self, participant: Participant, branch: PreparedBranch) -> str | None:
        if (why := why_impostor(participant.names, branch, None)) is not None:
            return why
        if self._names.secret and isinstance(branch.gid, Gid) and not self._names.gave(branch.gid):
            return "that ledger never gave that name: its tag is wrong, or is missing"
        return None

    async def _agent_rows(
        self, prepared: Mapping[TxId, Collection[Gid]], unreachable: dict[str, ParticipantError]
    ) -> dict[TxId, str]:
        """For each last-agent commit whose COMMIT has left its row: the participant that holds it."""
        keys = {
            self._proof_key(txid): txid
            for txid, gids in prepared.items()
            if self._names.secret and min(gids).protocol is Protocol.LAST
        }
        found: dict[TxId, str] = {}
        for participant in self._participants if keys else ():
            agent = agent_of(participant)
            if agent is None or participant.name in unreachable:
                continue
            try:
                rows = await agent.find(list(keys))
            except ParticipantRefused:
                continue  # it has no such table, and is no agent
            except ParticipantError as error:
                unreachable[participant.name] = error
                continue
            committed = [key for key, row in rows.items() if row.decision is Decision.COMMIT]
            found |= {keys[key]: participant.name for key in committed}
        return found

    def _entry(self, txid: TxId, place: AgentPlace = _ANYWHERE) -> AgentEntry:
        proof = self._names.key(txid.session, txid.nonce).agent(txid)
        return AgentEntry(self._ledger_id, txid, proof, place)

    def _proof_key(self, txid: TxId) -> bytes:
        return self._entry(txid).key

    async def _whole(
        self,
        txid: TxId,
        prepared: Mapping[Gid, LostBranch],
        unreachable: Collection[str],
        agent: str,
    ) -> LostTransaction:
        protocol = Protocol(min(prepared).protocol)
        charter, why = None, NOT_WITHOUT_LEDGER.get(protocol, NO_ROW)
        if agent:
            why = f"it has committed: its agent {agent!r} holds the row of its COMMIT"
        elif protocol is Protocol.LAST and self._names.secret:
            why = NO_AGENT_ROW
        branches = dict(prepared)
        if protocol is Protocol.THREE_PHASE and (row := await self._row(prepared)) is not None:
            charter, why = row.charter, "the termination of three-phase commit decides, from its rows"
            for member in charter.members:
                if member not in branches:
                    branches[member] = await self._absent(member, unreachable)
        return LostTransaction(
            txid,
            protocol,
            tuple(branches[gid] for gid in sorted(branches)),
            bool(self._names.secret),
            charter,
            why,
            agent,
        )

    async def _row(self, prepared: Mapping[Gid, LostBranch]) -> StateRow | None:
        for gid, one in prepared.items():
            try:
                row = await self._participants.get(one.holder).states.read(gid)
            except ParticipantError:
                continue
            if row is not None:
                return row
        return None

    async def _absent(self, gid: Gid, unreachable: Collection[str]) -> LostBranch:
        """A branch that the rows name, and no list has."""
        holder = self._participants.find(gid.participant)
        if holder is None or holder.name in unreachable:
            return LostBranch(gid, "no_answer")
        try:
            row = await holder.states.read(gid)
        except ParticipantError:
            return LostBranch(gid, "no_answer")
        if row is not None and row.state is BranchState.COMMIT:
            return LostBranch(gid, "committed")
        buried = row is not None and row.state is BranchState.ABORT
        return LostBranch(gid, "rolled_back" if buried else "not_prepared")

    async def terminate(self, found: LostTransaction) -> list[ReportedBranch]:
        """End a three-phase commit by its own termination, a last-agent commit as its row says; lines of its
        branches."""
        if found.charter is None and not found.agent:
            return [_line(one, "report", "nothing", found.why) for one in found.prepared]
        decision, why = await self._decided(found)
        if decision is None:
            return [_line(one, "terminate", "look_again", why) for one in found.prepared]
        return [await self._settle(one, decision) for one in found.prepared]

    async def _decided(self, found: LostTransaction) -> tuple[Decision | None, str]:
        if found.agent:
            return Decision.COMMIT, found.why
        if found.charter is None:
            return None, found.why
        holders = {one.gid.participant: self._participants.get(one.holder) for one in found.prepared}
        find = await finding(found.charter, self._participants, holders)
        ended = await Round(found.charter, find).run()
        if ended.move is Move.CONFLICT:
            return None, in_words(ended)
        return DECISIONS.get(ended.move), in_words(ended)

    async def end(
        self, found: LostTransaction, seen: LostBranches, direction: Decision
    ) -> list[ReportedBranch]:
        """End every prepared branch in the ``direction`` that a person has chosen. Raises ``Conflict`` if
        that is not how it ended, or the protocol decides otherwise, and ``NotAllSeen`` while a participant
        does not answer that may have another branch of it."""
        if direction is Decision.ABORT and found.committed:
            names = ", ".join(one.gid.participant for one in found.committed)
            raise Conflict(f"transaction {found.txid} has committed in {names}, by proof; nothing was done")
        decision, why = await self._decided(found)
        if decision not in {None, direction}:
            raise Conflict(f"transaction {found.txid}: {why}; nothing was done")
        if decision is None and seen.unreachable:
            names = "; ".join(f"{name} ({error})" for name, error in seen.unreachable.items())
            raise NotAllSeen(
                f"transaction {found.txid} may have branches in participants that do not answer: {names}."
                " Nothing was done"
            )
        if direction is Decision.ABORT and found.protocol is Protocol.LAST and self._names.secret:
            await self._bury(found)
        return [await self._settle(one, direction) for one in found.prepared]

    async def _bury(self, found: LostTransaction) -> None:
        """Write the tombstone in every database that may be the agent, so that a COMMIT that is on its way
        cannot commit there alone. Raises ``Conflict`` if there is the row of a COMMIT."""
        for participant in self._participants:
            agent = agent_of(participant)
            if agent is None:
                continue
            try:
                row = await agent.conclude(self._entry(found.txid, await agent.place()))
            except ParticipantRefused:
                continue
            except ParticipantError as error:
                raise Conflict(f"transaction {found.txid}: {error}; nothing was done. Look again") from error
            if row is not None and row.decision is Decision.COMMIT:
                raise Conflict(
                    f"transaction {found.txid} has committed: participant {participant.name!r} holds the row"
                    " of its COMMIT; nothing was done"
                )

    async def _settle(self, one: LostBranch, decision: Decision) -> ReportedBranch:
        action = "commit" if decision is Decision.COMMIT else "rollback"
        participant = self._participants.get(one.holder)
        evidence = None if one.branch is None else one.branch.evidence
        try:
            async with asyncio.timeout(BUSY_S):
                while (settled := await participant.settle(one.gid, decision, evidence)) is Settled.BUSY:
                    await asyncio.sleep(BUSY_PAUSE_S)
        except TimeoutError:
            return _line(one, action, "look_again", "another session is ending the branch")
        except ParticipantError as error:
            return _line(one, action, "failed", str(error))
        if settled in HEURISTICS and not isinstance(for_settled(one.gid, decision, settled), BranchDone):
            return _line(one, "heuristic", "done", str(settled))
        return _line(one, action, "done")


async def _listed(participant: Participant) -> list[PreparedBranch] | ParticipantError:
    try:
        return list(await participant.in_doubt())
    except ParticipantError as error:
        return error


def _line(one: LostBranch, action: str, result: str, why: str = "") -> ReportedBranch:
    return ReportedBranch(str(one.gid), one.holder, None, action, result, why)
