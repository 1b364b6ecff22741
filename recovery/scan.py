"""The first half of a pass over one participant: everything is looked at, in the one order that is safe.

1. The unfinished decisions are read, *before* the list: a branch that is missing from a list taken later has
   ended, and is not merely too young to be in it.
2. The participant lists what is prepared.
3. The ledger is asked for the outcomes, *after* the list: COMMIT is recorded only when every branch is
   prepared, so a branch in the list cannot get another answer than its transaction's.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.ledger.contract import BranchRecord, DecisionRecord, Ledger, Verdict
from coordinator.protocols.steps import Observer
from participants.contract import Evidence, Participant, PreparedBranch
from participants.ids import Foreign, Gid, Protocol, TxId
from recovery.plan import Standing, standing
from recovery.steps import RecoveryStep, reach

OUTCOMES_MAX = 1_000
"""Transactions asked for in one call."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What was seen at ``participant``. ``records`` are all unfinished decisions, read before the list."""

    participant: str
    records: Mapping[TxId, DecisionRecord]
    prepared: Sequence[tuple[PreparedBranch, Standing]]
    listed: Mapping[tuple[TxId, int], Evidence | None] = field(default_factory=dict)
    """What the list says of each branch of this ledger in it, by transaction and number, whatever its
    participant's name."""

    def evidence(self, gid: Gid) -> Evidence | None:
        """What was recorded with the decision, else what the list says of a branch that was in it."""
        record = self.records.get(gid.txid)
        for branch in record.branches if record is not None else ():
            if branch.number == gid.branch and (recorded := evidence_of(branch)) is not None:
                return recorded
        return self.listed.get((gid.txid, gid.branch))

    def absent(self, names: Container[str]) -> Iterator[tuple[DecisionRecord, BranchRecord]]:
        """Branches recorded for this participant, or for one that is not among ``names`` (it may have been
        renamed), that this one did not list."""
        for record in self.records.values():
            for branch in record.branches:
                asked = branch.participant == self.participant or branch.participant not in names
                if asked and (record.txid, branch.number) not in self.listed:
                    yield record, branch


async def unfinished(ledger: Ledger) -> dict[TxId, DecisionRecord]:
    """Step 1. Raises ``LedgerError``."""
    return {record.txid: record for record in await ledger.unfinished()}


async def scan(
    ledger: Ledger,
    participant: Participant,
    records: Mapping[TxId, DecisionRecord],
    observe: Observer | None = None,
) -> Scan:
    """Steps 2 and 3; ``records`` are of step 1. Raises ``ParticipantError`` or ``LedgerError``. Changes
    nothing."""
    await reach(observe, RecoveryStep.BEFORE_SCAN, participant.name)
    listed = await participant.in_doubt()
    await reach(observe, RecoveryStep.AFTER_SCAN, participant.name)
    stands = await standings(ledger, [branch.gid for branch in listed])
    await reach(observe, RecoveryStep.AFTER_OUTCOMES, participant.name)
    return Scan(
        participant.name,
        records,
        [(branch, stands[branch.gid]) for branch in listed],
        {
            (branch.gid.txid, branch.gid.branch): branch.evidence
            for branch in listed
            if isinstance(branch.gid, Gid) and branch.gid.ledger == ledger.ledger_id
        },
    )


async def standings(ledger: Ledger, gids: Sequence[Gid | Foreign]) -> dict[Gid | Foreign, Standing]:
    """The standing of each of ``gids``, which were listed before this is called."""
    stands: dict[Gid | Foreign, Standing] = {}
    ours: dict[Protocol, list[Gid]] = {}
    for gid in gids:
        if isinstance(gid, Gid) and gid.ledger == ledger.ledger_id:
            ours.setdefault(gid.protocol, []).append(gid)
        else:
            stands[gid] = standing(gid, ledger.ledger_id, None)
    for protocol, of_protocol in ours.items():
        verdicts = await _outcomes(ledger, sorted({gid.txid for gid in of_protocol}), protocol)
        stands |= {gid: standing(gid, ledger.ledger_id, verdicts[gid.txid]) for gid in of_protocol}
    return stands


async def _outcomes(ledger: Ledger, txids: Sequence[TxId], protocol: Protocol) -> dict[TxId, Verdict]:
    verdicts: dict[TxId, Verdict] = {}
    for start in range(0, len(txids), OUTCOMES_MAX):
        verdicts |= await ledger.outcomes(txids[start : start + OUTCOMES_MAX], protocol=protocol)
    return verdicts


def evidence_of(branch: BranchRecord) -> Evidence | None:
    """None unless all of it was recorded: half of it would be a guess."""
    if branch.xid is None or branch.system is None or branch.timeline is None:
        return None
    return Evidence(branch.xid, branch.system, branch.timeline)


def gid_of(ledger_id: str, record: DecisionRecord, branch: BranchRecord) -> Gid:
    """The name under which the branch was prepared."""
    return Gid(ledger_id, Protocol(record.protocol), record.txid, branch.number, branch.participant)
