"""What an operator may do to one prepared branch, and what is recorded about it.

``roll_back`` first records ABORT, so that the transaction cannot commit after that; in last-agent commit it
first writes the tombstone at the agent, and then records ABORT. ``commit`` needs a recorded COMMIT. Anything
else is a heuristic decision (X/Open XA): it is recorded as a hazard before it is carried out, so that a crash
in between leaves a trace, and afterwards with its result. An impostor is not a branch: ``end_impostor`` rolls
it back and records nothing about a transaction.

Each call is first recorded as an act of this process's system user
(:mod:`undoubt.coordinator.ledger.acting`). An order that no decision covers, and that splits the transaction
from a sibling that has ended, needs ``contradict``: however that end is known, and also where a recorded
decision is all that is known of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from undoubt.coordinator.errors import OutcomeUnknown
from undoubt.coordinator.ledger.acting import acting, new_act
from undoubt.coordinator.ledger.contract import Heuristic, Ledger, record_of
from undoubt.coordinator.protocols.context import applied_elsewhere
from undoubt.participants.contract import HEURISTICS, Decision, Evidence, Settled
from undoubt.participants.ids import Foreign, Gid
from undoubt.participants.registry import Registry
from undoubt.recovery.errors import Conflict, NotAllSeen, NotOurs, StillBusy
from undoubt.recovery.operator.survey import SurveyedBranch, survey
from undoubt.recovery.operator.whole_transaction import look
from undoubt.recovery.plan import BranchDone, BranchStanding, Ended, RecordHeuristicOutcome, for_settled
from undoubt.recovery.scan import evidence_of, later
from undoubt.recovery.terminate import Terminator

log = logging.getLogger(__name__)

BUSY_PAUSE_S = 0.1
BUSY_S = 10.0
ROLLED_BACK_BY_HAND = "an operator rolled it back (undoubt indoubt rollback)"


@dataclass(frozen=True, slots=True)
class Operator:
    """The calls of an operator on one branch. Each may be repeated, and raises ``LedgerError``,
    ``ParticipantError`` and the errors of :mod:`undoubt.recovery.errors`."""

    ledger: Ledger
    participants: Registry

    async def commit(
        self, gid: Gid | Foreign, *, heuristic: bool = False, note: str = "", contradict: bool = False
    ) -> None:
        """COMMIT PREPARED. Without ``heuristic``, ``Conflict`` unless COMMIT is recorded; without
        ``contradict``, where a sibling was rolled back, or will be, unless COMMIT is recorded."""
        async with acting(self.ledger, new_act(_verb("indoubt commit", heuristic, contradict), gid, note)):
            await self._commit(gid, heuristic, note, contradict)

    async def roll_back(
        self, gid: Gid | Foreign, *, heuristic: bool = False, note: str = "", contradict: bool = False
    ) -> None:
        """Record ABORT, then ROLLBACK PREPARED. Without ``heuristic``, ``Conflict`` where COMMIT is recorded
        or ABORT cannot be; without ``contradict``, where a sibling was committed, or will be, unless the
        transaction is aborted."""
        async with acting(self.ledger, new_act(_verb("indoubt rollback", heuristic, contradict), gid, note)):
            await self._roll_back(gid, heuristic, note, contradict)

    async def ask_agent(self, gid: Gid, order: Decision) -> Ended:
        """Find out how the undecided last-agent commit of ``gid`` ends, before it is ended by ``order``. For
        ABORT the tombstone is written first, also while the coordinator lives: a COMMIT that is on its way to
        the agent would otherwise commit there alone."""
        terminator = Terminator(self.ledger, self.participants, None)
        gone = not (await terminator.alive())(gid.txid)
        if order is Decision.ABORT or gone:
            return await terminator.agents.conclude(gid, gone=gone, cause="" if gone else ROLLED_BACK_BY_HAND)
        return await terminator.agents.look(gid)

    async def _commit(self, gid: Gid | Foreign, heuristic: bool, note: str, contradict: bool) -> None:
        found, own = await self._locate(gid)
        if found.asks_agent and (await self.ask_agent(own, Decision.COMMIT)).decision is not None:
            found, own = await self._locate(gid)
        if found.standing is BranchStanding.COMMITTED:
            await self._carry_out(found, own, Decision.COMMIT)
        elif heuristic:
            await self._check_siblings(own, Decision.COMMIT, contradict)
            await self._against(found, own, Decision.COMMIT, note)
        else:
            raise Conflict(
                f"COMMIT is not recorded for {gid} ({found.why}); nothing was done."
                " To commit it nevertheless, against or without a decision, add --heuristic"
            )

    async def _roll_back(self, gid: Gid | Foreign, heuristic: bool, note: str, contradict: bool) -> None:
        found, own = await self._locate(gid)
        if found.standing not in {BranchStanding.ABORTED, BranchStanding.COMMITTED}:
            await self._check_siblings(own, Decision.ABORT, contradict)
        recorded, why = await self._aborted(found, own)
        if recorded is None:
            if not heuristic:
                raise Conflict(
                    f"ABORT cannot be recorded for {gid} ({why}); nothing was done."
                    " To roll it back nevertheless, add --heuristic"
                )
            await self._against(found, own, Decision.ABORT, note)
        elif recorded is Decision.ABORT:
            await self._carry_out(found, own, Decision.ABORT)
        elif heuristic:
            await self._check_siblings(own, Decision.ABORT, contradict)
            await self._against(found, own, Decision.ABORT, note, Decision.COMMIT)
        else:
            raise Conflict(
                f"COMMIT is recorded for transaction {own.txid}, other branches may have applied it; nothing"
                f" was done. Finish it: undoubt indoubt commit {gid}"
            )

    async def end_impostor(self, shown: SurveyedBranch, *, note: str = "") -> None:
        """ROLLBACK PREPARED of the impostor that a person was shown, and of nothing else. Nothing but the act
        is recorded: it is no branch of any transaction. Raises ``NotOurs`` if it is no impostor, ``Conflict``
        if another prepared transaction has its name by now, and ``NotPrepared``."""
        act = new_act("indoubt rollback (impostor)", shown.branch.gid, note)
        async with acting(self.ledger, act):
            await self._end_impostor(shown)

    async def _end_impostor(self, shown: SurveyedBranch) -> None:
        gid = shown.branch.gid
        found = (await survey(self.ledger, self.participants)).one(gid, shown.participant)
        if found.standing is not BranchStanding.IMPOSTOR:
            raise NotOurs(f"{gid} is no impostor ({found.why}). Nothing was done")
        if _identity(found) != _identity(shown):
            raise Conflict(f"{gid} has changed since it was shown. Nothing was done; look again")
        participant = self.participants.get(found.participant)
        settled = await self._until_final(gid, lambda: participant.end_impostor(found.branch))
        if settled is not Settled.APPLIED:
            raise Conflict(f"{gid} ended meanwhile: nothing was done")
        log.warning(
            "participant %r: an operator rolled back the impostor %s of role %r: %s",
            found.participant,
            gid,
            found.branch.owner,
            found.why,
        )

    async def forget(self, gid: Gid, *, note: str = "") -> bool:
        """Close the heuristic outcome of ``gid`` for good. False if none is open."""
        async with acting(self.ledger, new_act("indoubt forget", gid, note)) as came_of:
            forgotten = await self.ledger.forget_heuristic(gid)
            if not forgotten:
                came_of.result = "nothing: it has no open heuristic outcome"
            return forgotten

    async def _check_siblings(self, gid: Gid, order: Decision, contradict: bool) -> None:
        """Raise ``Conflict`` if ``order`` splits the transaction from another branch."""
        if contradict:
            return
        whole = await look(self.ledger, self.participants, gid.txid)
        if against := whole.contradicts(order, besides=gid.branch):
            raise Conflict(
                f"to {order.verb} {gid} would split transaction {gid.txid}: {', '.join(against)}; nothing was"
                " done. To split it nevertheless, add --contradict"
            )

    async def _locate(self, gid: Gid | Foreign) -> tuple[SurveyedBranch, Gid]:
        """The prepared branch of that name, unless undoubt must not change it."""
        found = (await survey(self.ledger, self.participants)).one(gid)
        own = found.branch.gid
        if isinstance(own, Foreign):
            raise NotOurs(f"{gid} is not a branch of undoubt: the program that prepared it must finish it")
        if found.standing is BranchStanding.IMPOSTOR:
            raise NotOurs(
                f"{gid} is an impostor: {found.why}. Nothing was done; it can only be rolled back, after a"
                f" warning: undoubt indoubt rollback {gid} --participant {found.participant}"
            )
        if found.standing is BranchStanding.NOT_KNOWN:
            raise NotAllSeen(f"{gid}: {found.why}. Nothing was done; look again once it does")
        if found.standing is BranchStanding.LOST_LEDGER:
            raise NotOurs(
                f"{gid} belongs to ledger {own.ledger}, which is not this one ({self.ledger.ledger_id})."
                f" If that ledger is lost, undoubt recover --adopt {own.ledger} shows what is known, and ends"
                " it"
            )
        if found.standing is BranchStanding.OTHER_LEDGER:
            raise NotOurs(
                f"{gid} belongs to another ledger (this one is {self.ledger.ledger_id}):"
                " use the configuration of the system that began it"
            )
        return found, own

    async def _aborted(self, found: SurveyedBranch, gid: Gid) -> tuple[Decision | None, str]:
        """Record ABORT, and return the decision that is recorded; None, and why, if ABORT cannot be."""
        if found.asks_agent:
            ended = await self.ask_agent(gid, Decision.ABORT)
            return ended.decision, ended.why
        if found.standing in {BranchStanding.FORGOTTEN, BranchStanding.ASK_PROTOCOL}:
            return None, found.why
        return await self._record_abort(found, gid), ""

    async def _record_abort(self, found: SurveyedBranch, gid: Gid) -> Decision:
        """Record ABORT; returns the decision that is recorded."""
        branch = record_of(gid)
        try:
            return await self.ledger.decide(
                gid.txid, Decision.ABORT, [branch], protocol=gid.protocol, cause=ROLLED_BACK_BY_HAND
            )
        except OutcomeUnknown:
            # For a session from before a restore of the ledger nothing can be recorded; a transaction below
            # the session's floor is aborted in any case.
            if found.standing is not BranchStanding.ABORTED:
                raise
            return Decision.ABORT

    async def _carry_out(self, found: SurveyedBranch, gid: Gid, decision: Decision) -> None:
        """Apply the decision. A contradicting end is recorded before it is raised. An end without a proof is
        left to recovery: the process that ended the branch meanwhile may be about to finish its
        transaction."""
        settled = await self._settle(found, gid, decision)
        if settled is Settled.HEURISTIC_HAZARD:
            if await applied_elsewhere(self.ledger, gid):
                return
            raise StillBusy(
                f"another process has ended {gid} meanwhile, and its database proves nothing: recovery finds"
                " out what became of it; look again"
            )
        action = for_settled(gid, decision, settled)
        if isinstance(action, RecordHeuristicOutcome):
            await self.ledger.record_heuristic(Heuristic(gid, action.kind, decision, time.time()))
        if settled in HEURISTICS:
            await self.participants.get(found.participant).forget(gid)
        if isinstance(action, RecordHeuristicOutcome):
            raise Conflict(
                f"the order was to {decision.verb} {gid}, and it ended as {settled}; recorded."
                " See undoubt indoubt list"
            )

    async def _against(
        self, found: SurveyedBranch, gid: Gid, order: Decision, note: str, decision: Decision | None = None
    ) -> None:
        """Carry out an order that no decision covers: a heuristic decision."""
        if decision is None and found.standing is BranchStanding.ABORTED:
            decision = Decision.ABORT
        cause = f"an operator's {order.verb}" + (f": {note}" if note else "")
        began = time.time()
        hazard = Heuristic(gid, Settled.HEURISTIC_HAZARD, decision, began, cause)
        await self.ledger.record_heuristic(hazard)
        settled = await self._settle(found, gid, order)
        ended = _ended(order, settled)
        if decision is not None and isinstance(for_settled(gid, decision, ended), BranchDone):
            await self.ledger.forget_heuristic(gid)  # another process was faster, and did what is decided
        elif ended is not Settled.HEURISTIC_HAZARD:
            await self.ledger.record_heuristic(Heuristic(gid, ended, decision, began, cause))
        if settled in HEURISTICS:
            await self.participants.get(found.participant).forget(gid)
            raise Conflict(
                f"the order was to {order.verb} {gid}, and another process had ended it: {settled}"
            )

    async def _settle(self, found: SurveyedBranch, gid: Gid, order: Decision) -> Settled:
        """Repeat the order until its answer is final."""
        participant = self.participants.get(found.participant)
        evidence = await self._evidence(found, gid)
        return await self._until_final(gid, lambda: participant.settle(gid, order, evidence))

    async def _until_final(self, gid: Gid | Foreign, ask: Callable[[], Awaitable[Settled]]) -> Settled:
        try:
            async with asyncio.timeout(BUSY_S):
                while (settled := await ask()) is Settled.BUSY:
                    await asyncio.sleep(BUSY_PAUSE_S)
        except TimeoutError:
            raise StillBusy(
                f"{gid} is busy: another process has been finishing it for {BUSY_S:.0f} s; look again"
            ) from None
        return settled

    async def _evidence(self, found: SurveyedBranch, gid: Gid) -> Evidence | None:
        listed = found.branch.evidence
        info = await self.ledger.transaction(gid.txid)
        for record in info.branches if info is not None else ():
            if record.number == gid.branch and (recorded := evidence_of(record)) is not None:
                return later(recorded, listed)
        return listed


def _verb(verb: str, heuristic: bool, contradict: bool) -> str:
    return verb + (" --heuristic" if heuristic else "") + (" --contradict" if contradict else "")


def _identity(found: SurveyedBranch) -> tuple[object, ...]:
    """What distinguishes one prepared transaction from another one of the same name."""
    branch = found.branch
    return found.participant, branch.database, branch.owner, branch.xid, branch.prepared_at


def _ended(order: Decision, settled: Settled) -> Settled:
    """The result of an operator's order, as a heuristic outcome."""
    match settled:
        case Settled.APPLIED | Settled.ABSENT | Settled.BUSY:
            return Settled.HEURISTIC_COMMIT if order is Decision.COMMIT else Settled.HEURISTIC_ROLLBACK
        case _:
            return settled
