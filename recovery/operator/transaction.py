"""What an operator may do to a whole transaction. Each act is first recorded as one of this process's user.

``end`` commits or rolls back all branches that are still prepared, in one direction: the safe one if there
is one. If there is none, an operator chooses; that is one heuristic decision of all branches together, so
that it does not split the transaction.

``gone`` ends a recorded decision about a participant that will never answer again: a hazard is recorded for
each of its branches, and the ledger may finish the transaction once the others have applied the decision.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.acting import acting, new_act
from undoubt.coordinator.ledger.contract import Heuristic, Ledger, RecordedDecision
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.plural import plural
from undoubt.participants.registry import Registry
from undoubt.recovery.errors import Conflict
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.whole_transaction import BranchNow, Whole, check, look
from undoubt.recovery.service import RecoveryService


@dataclass(frozen=True, slots=True)
class Resolver:
    """Ends whole transactions. Each call is recorded as an act, may be repeated, and raises ``LedgerError``
    and the errors of :mod:`undoubt.recovery.errors`."""

    ledger: Ledger
    participants: Registry

    async def end(
        self,
        txid: TxId,
        direction: Decision,
        *,
        heuristic: bool = False,
        contradict: bool = False,
        note: str = "",
    ) -> list[tuple[BranchNow, str]]:
        """Commit or roll back all prepared branches; returns the result of each (``done``, or why not).
        Without ``heuristic`` it raises ``Conflict`` unless that direction is the safe one or ABORT can be
        recorded; without ``contradict``, if nothing is decided and a branch has ended in the other
        direction."""
        chosen = "--commit" if direction is Decision.COMMIT else "--rollback"
        words = (chosen, "--heuristic" if heuristic else "", "--contradict" if contradict else "")
        act = new_act(" ".join(("tx resolve", *filter(None, words))), txid, note)
        async with acting(self.ledger, act) as came_of:
            results = await self._end(txid, direction, heuristic=heuristic, contradict=contradict, note=note)
            failed = [said for _, said in results if said != "done"]
            if failed:
                count = plural(len(results), "branch", "branches")
                came_of.result = f"{len(failed)} of {count} not: {failed[0]}"
            elif not results:
                came_of.result = "nothing: no branch of it is prepared"
            return results

    async def _end(
        self, txid: TxId, direction: Decision, *, heuristic: bool, contradict: bool, note: str
    ) -> list[tuple[BranchNow, str]]:
        whole = await look(self.ledger, self.participants, txid)
        operator = Operator(self.ledger, self.participants)
        if whole.asks_agent:
            if direction is Decision.ABORT:  # what would be refused in any case writes no tombstone
                check(whole, direction, heuristic=heuristic, contradict=contradict)
            whole = await self._ask_agent(operator, whole, direction)
        check(whole, direction, heuristic=heuristic, contradict=contradict)
        results = []
        for one in whole.prepared:
            if one.gid is None:
                continue
            work = operator.commit if direction is Decision.COMMIT else operator.roll_back
            try:
                await work(one.gid, heuristic=heuristic, note=note, contradict=contradict)
            except LedgerError:
                raise
            except UndoubtError as error:
                results.append((one, str(error)))
            else:
                results.append((one, "done"))
        return results

    async def _ask_agent(self, operator: Operator, whole: Whole, direction: Decision) -> Whole:
        ended = await operator.ask_agent(next(filter(None, (one.gid for one in whole.prepared))), direction)
        if ended.decision is None:
            return replace(whole, why=ended.why, unfenced=True)
        return await look(self.ledger, self.participants, whole.txid)

    async def terminate(self, txid: TxId, *, note: str = "") -> Whole:
        """Let recovery find and apply the decision of the transaction's commit protocol; returns what is
        known afterwards. The transaction may still be undecided: a participant or too many acceptors do not
        answer, or the coordinator is alive."""
        async with acting(self.ledger, new_act("tx resolve (termination)", txid, note)) as came_of:
            await RecoveryService(self.ledger, self.participants).run_once()
            whole = await look(self.ledger, self.participants, txid)
            if whole.prepared:
                came_of.result = f"{_branches(whole.prepared)} still prepared: {whole.why}"
            return whole

    async def gone(self, txid: TxId, participant: str, *, note: str = "") -> list[Gid]:
        """``participant`` will never answer again: record a hazard for each of its branches of a recorded
        decision, and finish the transaction if all others have applied the decision. Returns these branches.
        Raises ``Conflict`` if no decision with a branch of that participant is recorded, or the participant
        answers."""
        act = new_act(f"tx resolve --participant-gone {participant}", txid, note)
        async with acting(self.ledger, act) as came_of:
            hazards = await self._gone(txid, participant, note)
            if not hazards:
                came_of.result = "nothing: no gid of a branch there is known"
            return hazards

    async def _gone(self, txid: TxId, participant: str, note: str) -> list[Gid]:
        whole = await look(self.ledger, self.participants, txid)
        if whole.info is None or whole.info.record is RecordedDecision.NOT_RECORDED:
            raise Conflict(f"no decision is recorded for transaction {txid}; nothing was done")
        decision = Decision(str(whole.info.record))
        theirs = [one for one in whole.branches if one.participant == participant]
        if not theirs:
            raise Conflict(
                f"transaction {txid} has no branch in participant {participant!r}; nothing was done"
            )
        if answering := [one for one in theirs if one.now in {"prepared", "not_prepared"}]:
            raise Conflict(
                f"participant {participant!r} answers (branch {answering[0].number} is"
                f" {answering[0].now.replace('_', ' ')} there): it is not gone; nothing was done"
            )
        cause = f"an operator: participant {participant} is gone for good" + (f": {note}" if note else "")
        named = [one.gid for one in theirs if one.gid is not None]
        for gid in named:
            await self.ledger.record_heuristic(
                Heuristic(gid, Settled.HEURISTIC_HAZARD, decision, time.time(), cause)
            )
        report = await RecoveryService(self.ledger, self.participants).run_once()
        waits = next((set(one.waits_for) for one in report.unfinished if one.txid == str(txid)), set())
        # If other branches have not applied it yet, the running recovery applies and finishes it later.
        if waits == {participant}:
            await self.ledger.finish([txid])
        return named


def _branches(found: list[BranchNow]) -> str:
    return plural(len(found), "of its branches is", "of its branches are")
