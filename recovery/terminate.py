"""The terminations of three-phase, Paxos and last-agent commit, as recovery uses them: they find the outcome
in the participants' rows, at the acceptors, or in the row of the agent, and record it in the ledger like any
other decision.

First the ledger says whether the coordinator is alive. To end a transaction beside its live coordinator would
be safe, but would abort it without need. The result is the outcome whether or not it can be recorded.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from undoubt.coordinator.errors import LedgerUnavailable, OutcomeUnknown
from undoubt.coordinator.ledger.contract import Ledger, SessionState, record_of
from undoubt.coordinator.protocols.steps import Observer
from undoubt.coordinator.protocols.termination import PresumedCrashed, Round, Terminated
from undoubt.coordinator.protocols.termination_rules import CONTRADICTION, Move
from undoubt.participants.contract import Decision, Participant
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import Charter
from undoubt.recovery.holders import finding
from undoubt.recovery.last_agent import Agents
from undoubt.recovery.plan import Ended

log = logging.getLogger(__name__)

NO_ACCEPTORS = "this ledger has no acceptors: recover with the cluster that the transaction was begun on"
NOT_LISTED = "its transaction was voted on without this branch: an operator must decide"
NO_ROW = "its row is missing: it was deleted, and an operator must decide"
LATE_S = 5.0
"""For how long a participant that did not answer a round in time is left out of other rounds: many
transactions may wait for it, and each of their rounds would delay all others."""
DECISIONS = {Move.COMMIT: Decision.COMMIT, Move.ABORT: Decision.ABORT}


class Terminator:
    """Ends transactions whose coordinator is gone. In one process, at most one termination of a transaction
    runs at a time."""

    def __init__(self, ledger: Ledger, participants: Registry, observe: Observer | None) -> None:
        self.agents = Agents(ledger, participants, observe)
        self._ledger = ledger
        self._participants = participants
        self._observe = observe
        self._at_work: set[TxId] = set()
        self._late_until: dict[str, float] = {}

    async def alive(self) -> Callable[[TxId], bool]:
        """A function that says whether a transaction's coordinator may still work on it: its session is open
        now, and the transaction is not below the session's floor. Raises ``LedgerError``."""
        sessions = await self._ledger.sessions()
        floors = {(one.id, one.nonce): one.floor for one in sessions if one.state is SessionState.OPEN}
        return lambda txid: txid.seq >= floors.get((txid.session, txid.nonce), math.inf)

    async def end(self, participant: Participant, gid: Gid) -> Ended:
        """End the transaction of ``gid``, a branch that ``participant`` has. Raises ``ParticipantError`` if
        its own row cannot be read, and ``LedgerError``."""
        if gid.txid in self._at_work:
            return Ended(None, "it is being ended")
        self._at_work.add(gid.txid)
        try:
            if gid.protocol is Protocol.PAXOS:
                return await self._settle(gid)
            if gid.protocol is Protocol.LAST:
                return await self.agents.conclude(gid, gone=True)
            row = await participant.states.read(gid)
            if row is None:
                return Ended(None, NO_ROW, hopeless=True)
            find = await finding(row.charter, self._participants, {gid.participant: participant})
            ended = await Round(row.charter, find, self._observe, left_out=self._late()).run()
            self._note_late(row.charter, ended)
            decision = DECISIONS.get(ended.move)
            if decision is not None:
                await self._record(gid, row.charter, decision)
            return Ended(decision, in_words(ended), ended.move is Move.CONFLICT)
        finally:
            self._at_work.discard(gid.txid)

    def _late(self) -> dict[str, str]:
        """Leave out the participants that did not answer another round a moment ago."""
        now_s = asyncio.get_running_loop().time()
        self._late_until = {name: until for name, until in self._late_until.items() if until > now_s}
        return dict.fromkeys(self._late_until, "no answer to others a moment ago")

    def _note_late(self, charter: Charter, ended: Terminated) -> None:
        until = asyncio.get_running_loop().time() + LATE_S
        for member in charter.members:
            if isinstance(ended.silent.get(member.branch), PresumedCrashed):
                self._late_until[member.participant] = until

    async def _settle(self, gid: Gid) -> Ended:
        """Run a higher ballot at the acceptors of its session."""
        acceptors = self._ledger.acceptors
        if acceptors is None:
            return Ended(None, NO_ACCEPTORS, hopeless=True)
        try:
            found = await acceptors.settle(gid.txid)
        except OutcomeUnknown as error:
            return Ended(None, error.why, hopeless=True)
        except LedgerUnavailable as error:
            return Ended(None, f"blocked: {error}")
        own = record_of(gid)
        listed = {(branch.number, branch.participant) for branch in found.branches}
        if listed and (own.number, own.participant) not in listed:
            return Ended(None, NOT_LISTED, hopeless=True)
        branches = [
            own if branch.number == own.number and not branch.tag else branch for branch in found.branches
        ]
        await self._ledger.decide(gid.txid, found.decision, branches or [own], protocol=gid.protocol)
        return Ended(found.decision, f"its acceptors chose {found.decision}")

    async def _record(self, gid: Gid, charter: Charter, decision: Decision) -> None:
        """Record the decision with the evidence of the PRECOMMIT, which is recorded before any row says
        precommitted."""
        info = await self._ledger.transaction(gid.txid)
        known = {branch.number: branch for branch in (info.branches if info is not None else ())}
        branches = [known.get(member.branch, record_of(member)) for member in charter.members]
        try:
            await self._ledger.decide(gid.txid, decision, branches, protocol=gid.protocol)
        except OutcomeUnknown as error:
            log.warning("that %s is to %s cannot be recorded: %s", gid.txid, decision, error)


def in_words(ended: Terminated) -> str:
    """For an operator: the result of a round."""
    match ended.move:
        case Move.COMMIT | Move.ABORT:
            return f"its termination decided {ended.move}"
        case Move.CONFLICT:
            return f"{CONTRADICTION}: an operator must look"
        case _ if ended.silent:
            return "blocked: " + "; ".join(ended.silent[number] for number in sorted(ended.silent))
        case _:
            return "another process is ending it"
