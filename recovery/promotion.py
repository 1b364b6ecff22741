"""Committed branches that a database has lost because it was promoted, or restored to a point in time.

A standby that had not received everything takes over: then transactions are missing there that were
committed, acknowledged and finished, and no branch of them is left that recovery could find prepared. The
history of the server's timeline says where it left the former one, and the recorded evidence says where each
PREPARE was. What is certainly lost is recorded as a heuristic rollback, once for each timeline.

Nothing is concluded that the server does not prove. A PREPARE before that position is asked for by its
transaction id, and a negative answer is recorded as a hazard only: in a server that was also set back on one
timeline the id may be another transaction's.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.ledger.acting import DONE, new_act
from undoubt.coordinator.ledger.contract import (
    ACTS_MAX,
    BranchRecord,
    Heuristic,
    Ledger,
    RecordedDecision,
    TransactionInfo,
)
from undoubt.participants.contract import (
    Decision,
    Evidence,
    Participant,
    Settled,
    TimelineHistory,
    XactStatus,
)
from undoubt.participants.ids import TxId
from undoubt.participants.plural import plural
from undoubt.recovery.scan import evidence_of

log = logging.getLogger(__name__)

ACT = "recovery: promotion"
"""The verb of the act that records a check, so that no other process repeats it."""
PAGE = 500
"""Transactions that are read at once."""
PREPARES_WITHIN = 1 << 30
"""Bytes of WAL that are written at most between the position in the evidence and the record of PREPARE: a
branch whose position is farther before the end of its timeline was prepared on it."""


@dataclass(slots=True)
class _Check:
    """A check that is under way."""

    history: TimelineHistory
    subject: str
    before: TxId | None = None
    """The next page ends before this transaction."""
    lost: int = 0


class PromotionCheck:
    """Looks for the committed branches that ``participant`` has lost, some at each call."""

    def __init__(self, ledger: Ledger, participant: Participant) -> None:
        self._ledger = ledger
        self._participant = participant
        self._done: set[str] = set()
        """The subjects that need no check."""
        self._unknown = False
        """Whether the database does not say on which timeline it is."""
        self._check: _Check | None = None

    async def go_on(self) -> bool:
        """Look at one page. True if nothing is left to look at. Raises ``LedgerError`` and
        ``ParticipantError``; may be repeated."""
        check = self._check or await self._begin()
        if check is None:
            return True
        page = await self._ledger.transactions(limit=PAGE, before=check.before)
        for info in page:
            await self._judge(check, info)
        if page:
            check.before = page[-1].txid
            return False
        await self._end(check)
        return True

    async def _begin(self) -> _Check | None:
        history = None if self._unknown else await self._participant.timeline_history()
        if history is None:
            self._unknown = True
            return None
        subject = f"{self._participant.name} {history.system} {history.timeline}"
        if subject in self._done:
            return None
        if history.ancestors is None:
            log.warning(
                "participant %r is on timeline %s: it was promoted or restored, and its role may not read"
                " from where; committed transactions that it may have lost cannot be told: grant execute on"
                " function pg_catalog.pg_read_file(text, bigint, bigint, boolean)",
                self._participant.name,
                history.timeline,
            )
        if not history.ancestors or await self._is_recorded(subject):
            self._done.add(subject)
            return None
        self._check = _Check(history, subject)
        return self._check

    async def _is_recorded(self, subject: str) -> bool:
        return any(
            act.verb == ACT and act.subject == subject and act.result
            for act in await self._ledger.acts(limit=ACTS_MAX)
        )

    async def _judge(self, check: _Check, info: TransactionInfo) -> None:
        if info.record is not RecordedDecision.COMMIT or info.protocol is None:
            return
        for branch in info.branches:
            if branch.participant not in self._participant.names:
                continue
            kind = await self._kind(check.history, branch)
            gid = branch.gid(self._ledger.ledger_id, info.protocol, info.txid)
            if kind is None or any(known.gid == gid for known in info.heuristics):
                continue
            check.lost += 1
            lost = "has lost" if kind is Settled.HEURISTIC_ROLLBACK else "seems to have lost"
            note = (
                f"the transaction is committed, and {self._participant.name} {lost} this branch: it is on"
                f" timeline {check.history.timeline}, and has left timeline {branch.timeline}"
            )
            log.error("%s: %s (%s)", kind, gid, note)
            found = Heuristic(gid, kind, Decision.COMMIT, time.time(), note)
            await self._ledger.record_heuristic(found)

    async def _kind(self, history: TimelineHistory, branch: BranchRecord) -> Settled | None:
        """What to record of ``branch``; None if nothing."""
        evidence = evidence_of(branch)
        if evidence is None:
            return None
        lost = history.lost(evidence)
        if lost:
            return Settled.HEURISTIC_ROLLBACK
        if lost is None or not _may_have_left(history, evidence):
            return None
        here = replace(evidence, timeline=history.timeline, history=None, position=None)
        is_aborted = await self._participant.evidence(here) is XactStatus.ABORTED
        return Settled.HEURISTIC_HAZARD if is_aborted else None

    async def _end(self, check: _Check) -> None:
        self._done.add(check.subject)
        self._check = None
        lost = plural(check.lost, "committed branch", "committed branches")
        log.warning(
            "participant %r is on timeline %s now, and has lost %s",
            self._participant.name,
            check.history.timeline,
            lost,
        )
        try:
            await self._ledger.record_act(new_act(ACT, check.subject, f"lost: {lost}", result=DONE))
        except VersionHeldBack:
            log.info("the check of %s is repeated after the next start", check.subject)


def _may_have_left(history: TimelineHistory, evidence: Evidence) -> bool:
    """Whether the PREPARE may have come after the end of its timeline, although its position is before."""
    left_at = (history.ancestors or {}).get(evidence.timeline or "")
    return left_at is not None and left_at - (evidence.position or 0) <= PREPARES_WITHIN
