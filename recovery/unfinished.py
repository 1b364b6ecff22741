"""Recorded decisions: what became of their branches, and when the ledger may forget them.

:mod:`undoubt.recovery.resolve` settles a branch that is prepared. For a branch that is not prepared, the
database's transaction status proves whether it has applied the decision. :class:`UnfinishedProgress` keeps
both results. A decision is finished when each of its branches has applied it or is recorded as heuristic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from undoubt.coordinator.ledger.contract import BranchRecord, DecisionRecord
from undoubt.coordinator.ledger.session_mark import MARK_SEQ
from undoubt.participants.contract import Evidence, Participant, XactStatus
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import BranchState
from undoubt.recovery.report import Unfinished
from undoubt.recovery.scan import evidence_of

FINISH_MAX = 1_000
"""Number of transactions finished in one command."""


class UnfinishedProgress:
    """Which branches of unfinished decisions are known to be done. All workers of a process share it. It is
    not stored: a new process computes it again."""

    def __init__(self) -> None:
        self._done: dict[TxId, set[int]] = {}
        self._claimed: set[TxId] = set()
        self._finished: set[TxId] = set()
        self._doubted: dict[Gid, float] = {}
        self._seen: dict[str, dict[tuple[TxId, int], Evidence]] = {}
        self._listed: dict[str, frozenset[tuple[TxId, int]]] = {}
        self._since: dict[TxId, float] = {}
        self._records: Mapping[TxId, DecisionRecord] = {}

    def read(self, records: Mapping[TxId, DecisionRecord], now_s: float) -> None:
        """Take the ledger's unfinished decisions as just read, and forget all others."""
        self._records = records
        self._since = {txid: self._since.get(txid, now_s) for txid in records}
        self._done = {txid: done for txid, done in self._done.items() if txid in records}
        self._finished &= records.keys()
        self._doubted = {gid: since for gid, since in self._doubted.items() if gid.txid in records}

    def saw(self, participant: str, listed: Mapping[tuple[TxId, int], Evidence | None]) -> None:
        """Take what ``participant`` has just listed as prepared, with the evidence that later proves what
        became of it. An entry stays until its transaction is no longer unfinished; a decision may be recorded
        only after the list was taken."""
        before = self._listed.get(participant, frozenset())
        kept = {
            key: evidence
            for key, evidence in self._seen.get(participant, {}).items()
            if key[0] in self._records or key in before
        }
        kept |= {key: evidence for key, evidence in listed.items() if evidence is not None}
        self._seen[participant] = kept
        self._listed[participant] = frozenset(listed)

    def seen(self, participant: str, gid: Gid) -> Evidence | None:
        """The evidence in an earlier list of ``participant`` for a branch that was prepared then."""
        return self._seen.get(participant, {}).get((gid.txid, gid.branch))

    def done(self, gid: Gid) -> None:
        """Note that the branch has applied the decision, or that its heuristic outcome is recorded."""
        self._done.setdefault(gid.txid, set()).add(gid.branch)

    def known_since(self, txid: TxId) -> float:
        """When that decision was first read, in seconds of the clock that ``read`` was given; infinity for a
        decision that is not unfinished."""
        return self._since.get(txid, math.inf)

    def is_done(self, txid: TxId, number: int) -> bool:
        # The mark of a session whose coordinator died while it marked it: no participant is behind it.
        return number in self._done.get(txid, ()) or txid.seq == MARK_SEQ

    def sure(self, gid: Gid, now_s: float, grace_s: float) -> bool:
        """Whether a hazard at ``gid`` was first seen at least ``grace_s`` seconds before ``now_s``.

        Without evidence a branch that was committed a moment ago looks the same as one that is lost. The
        process that committed it (its coordinator, or another recovery) will soon finish the transaction."""
        return now_s - self._doubted.setdefault(gid, now_s) >= grace_s

    @property
    def doubts(self) -> bool:
        """Whether a hazard waits for its second look."""
        return bool(self._doubted)

    def claim(self, records: Iterable[DecisionRecord]) -> list[TxId]:
        """Claim the decisions that can be finished now; at most :data:`FINISH_MAX`, and each for one caller
        only."""
        taken = self._claimed | self._finished
        ready = [
            record.txid
            for record in records
            if record.txid not in taken
            and all(self.is_done(record.txid, branch.number) for branch in record.branches)
        ][:FINISH_MAX]
        self._claimed.update(ready)
        return ready

    def finished(self, txids: Iterable[TxId]) -> None:
        """Note that the ledger has finished these: no other worker needs to finish them again."""
        self._finished.update(txids)

    def release(self, txids: Iterable[TxId]) -> None:
        """Give back claimed decisions, finished or not."""
        self._claimed.difference_update(txids)

    def left(self, participants: Registry) -> tuple[Unfinished, ...]:
        """Decisions that were unfinished when last read and are not known to be done since."""
        found = []
        for record in self._records.values():
            names = {
                branch.participant
                for branch in record.branches
                if not self.is_done(record.txid, branch.number)
            }
            if names:
                unknown = tuple(sorted(name for name in names if name not in participants))
                found.append(
                    Unfinished(str(record.txid), str(record.decision), tuple(sorted(names)), unknown)
                )
        return tuple(found)


async def ask_books(
    participant: Participant, gid: Gid, branch: BranchRecord, seen: Evidence | None = None
) -> XactStatus:
    """The transaction status of a branch that is not prepared, at the participant it was recorded for.
    ``seen`` is its evidence in a list that was taken while it was prepared. Raises ``ParticipantError``."""
    xact_status = XactStatus.UNKNOWN
    for evidence in dict.fromkeys((evidence_of(branch), seen)):
        if evidence is not None and xact_status is XactStatus.UNKNOWN:
            xact_status = await participant.evidence(evidence)
    if xact_status is XactStatus.UNKNOWN and gid.protocol is Protocol.THREE_PHASE:
        # A commit is noted beside the branch's row. A row without that note, of a branch that is no longer
        # prepared, was rolled back. A row that only a termination has made proves nothing: this may be
        # another database than the branch's, or an older state of it.
        row = await participant.states.read(gid)
        if row is not None and row.state is not BranchState.INITIAL:
            return XactStatus.COMMITTED if row.state is BranchState.COMMIT else XactStatus.ABORTED
    return xact_status
