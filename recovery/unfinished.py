"""Recorded decisions: what became of their branches, and when the ledger may forget them.

A branch that is prepared is settled by :mod:`undoubt.recovery.resolve`. One that is not must be asked about:
its database's books say whether it has applied the decision. Both tell :class:`UnfinishedProgress`; a
decision all of whose branches are known to have applied it, or are recorded as heuristic, is finished."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from undoubt.coordinator.ledger.contract import BranchRecord, DecisionRecord
from undoubt.participants.contract import Evidence, Participant, XactStatus
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import BranchState
from undoubt.recovery.report import Unfinished
from undoubt.recovery.scan import evidence_of

FINISH_MAX = 1_000
"""Transactions finished in one command."""


class UnfinishedProgress:
    """Which branches of unfinished decisions are known to be done. Shared by all workers of a process; lost
    with it, and then found out again."""

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
        """The ledger's unfinished decisions as just read. What is not among them needs no remembering."""
        self._records = records
        self._since = {txid: self._since.get(txid, now_s) for txid in records}
        self._done = {txid: done for txid, done in self._done.items() if txid in records}
        self._finished &= records.keys()
        self._doubted = {gid: since for gid, since in self._doubted.items() if gid.txid in records}

    def saw(self, participant: str, listed: Mapping[tuple[TxId, int], Evidence | None]) -> None:
        """What ``participant`` has just listed as prepared, with what proves later what became of it. It is
        remembered until the transaction is no more among the unfinished decisions; a decision may be recorded
        only after the list."""
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
        """What an earlier list of ``participant`` said of a branch that was prepared then."""
        return self._seen.get(participant, {}).get((gid.txid, gid.branch))

    def done(self, gid: Gid) -> None:
        """That branch has applied the decision, or its heuristic is recorded."""
        self._done.setdefault(gid.txid, set()).add(gid.branch)

    def known_since(self, txid: TxId) -> float:
        """When that decision was first read, in seconds of the clock that ``read`` was given; what is not
        unfinished any more counts as new."""
        return self._since.get(txid, math.inf)

    def is_done(self, txid: TxId, number: int) -> bool:
        return number in self._done.get(txid, ())

    def sure(self, gid: Gid, now_s: float, grace_s: float) -> bool:
        """Whether a hazard at ``gid`` was first seen at least ``grace_s`` seconds before ``now_s``.

        Without evidence a branch that was committed a moment ago looks the same as one that is lost. Whoever
        committed it, its own coordinator or another recovery, will soon finish the transaction.
        """
        return now_s - self._doubted.setdefault(gid, now_s) >= grace_s

    @property
    def doubts(self) -> bool:
        """Whether some hazard waits for its second look."""
        return bool(self._doubted)

    def claim(self, records: Iterable[DecisionRecord]) -> list[TxId]:
        """Decisions that can be finished now, for whoever asks first; at most :data:`FINISH_MAX`."""
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
        """The ledger has finished these; whoever read them before need not do it again."""
        self._finished.update(txids)

    def release(self, txids: Iterable[TxId]) -> None:
        """The claimed ones have been finished, or could not be."""
        self._claimed.difference_update(txids)

    def left(self, participants: Registry) -> tuple[Unfinished, ...]:
        """What was unfinished when last read, and is not known to be done since."""
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
    """What the books of the participant that it was recorded for say of a branch that is not prepared.
    ``seen`` is what a list said of it while it was. Raises ``ParticipantError``."""
    fate = XactStatus.UNKNOWN
    for evidence in dict.fromkeys((evidence_of(branch), seen)):
        if evidence is not None and fate is XactStatus.UNKNOWN:
            fate = await participant.evidence(evidence)
    if fate is XactStatus.UNKNOWN and gid.protocol is Protocol.THREE_PHASE:
        # What has committed is noted beside its row. A row without a note, of a branch that is not prepared
        # any more, has ended otherwise; but one that only a termination has made proves nothing: the database
        # may be another one than the branch's, or that as it was before.
        row = await participant.states.read(gid)
        if row is not None and row.state is not BranchState.INITIAL:
            return XactStatus.COMMITTED if row.state is BranchState.COMMIT else XactStatus.ABORTED
    return fate
