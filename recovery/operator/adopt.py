"""Branches of a ledger that is lost: what can still be known of them, and how they are ended.

The ledger held the decisions, so what it knew is gone. What is left is in the participants: what is prepared,
and the rows of three-phase commit, whose termination needs no ledger. With the ledger's secret a name is
proved to be the ledger's; without it nothing is, and a transaction is ended only if a person has named it.

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
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid, Protocol, TxId
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
    whose termination can be asked. ``why``: in words, what ends it, or why nothing does by itself."""

    txid: TxId
    protocol: Protocol
    branches: tuple[LostBranch, ...]
    proved: bool
    charter: Charter | None
    why: str

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
        transactions = [await self._whole(txid, prepared[txid], unreachable) for txid in sorted(prepared)]
        return LostBranches(tuple(transactions), tuple(impostors), unreachable)

    def _why_not(self, participant: Participant, branch: PreparedBranch) -> str | None:
        if (why := why_impostor(participant.names, branch, None)) is not None:
            return why
        if self._names.secret and isinstance(branch.gid, Gid) and not self._names.gave(branch.gid):
            return "that ledger never gave that name: its tag is wrong, or is missing"
        return None

    async def _whole(
        self, txid: TxId, prepared: Mapping[Gid, LostBranch], unreachable: Collection[str]
    ) -> LostTransaction:
        protocol = Protocol(min(prepared).protocol)
        charter, why = None, NOT_WITHOUT_LEDGER.get(protocol, NO_ROW)
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
        """End a three-phase commit by its own termination; lines of its branches."""
        if found.charter is None:
            return [_line(one, "report", "nothing", found.why) for one in found.prepared]
        decision, why = await self._decided(found)
        if decision is None:
            return [_line(one, "terminate", "look_again", why) for one in found.prepared]
        return [await self._settle(one, decision) for one in found.prepared]

    async def _decided(self, found: LostTransaction) -> tuple[Decision | None, str]:
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
        return [await self._settle(one, direction) for one in found.prepared]

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
