"""The first half of a pass over one participant: it reads everything, in the only order that is safe.

1. It reads the unfinished decisions *before* the list: a branch that is missing from a list taken later has
   ended, and is not merely too young to be in it.
2. The participant lists what is prepared. 3. It asks the ledger for the outcomes *after* the list: COMMIT is
recorded only when every branch is prepared,
   so the answer about a branch in the list is the answer about its transaction.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    DecisionRecord,
    Ledger,
    RecordedDecision,
    TransactionInfo,
    Verdict,
)
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.coordinator.protocols.steps import Observer, reach
from undoubt.participants.contract import Decision, Evidence, Participant, PreparedBranch
from undoubt.participants.ids import Gid, TxId
from undoubt.recovery.plan import BranchStanding, standing
from undoubt.recovery.steps import RecoveryStep

DROPPED = (
    "the role that prepared it has been dropped, and no decision was recorded with a transaction id, the only"
    " proof that it is not another role's"
)
OUTCOMES_MAX = 1_000
"""Number of branches in one call for outcomes."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan read at ``participant``. ``records`` are all unfinished decisions, read before the list."""

    participant: str
    names: frozenset[str]
    """The participant's name, and the names that it had before."""
    records: Mapping[TxId, DecisionRecord]
    prepared: Sequence[tuple[PreparedBranch, BranchStanding]]
    listed: Mapping[tuple[TxId, int], Evidence | None] = field(default_factory=dict)
    """The evidence in the list for each branch of this ledger that is no impostor, by transaction and branch
    number."""

    def evidence(self, gid: Gid) -> Evidence | None:
        """The evidence recorded with the decision, unless the list shows the branch in another history: after
        a promotion only the evidence of the list counts."""
        listed = self.listed.get((gid.txid, gid.branch))
        record = self.records.get(gid.txid)
        for branch in record.branches if record is not None else ():
            if branch.number == gid.branch and (recorded := evidence_of(branch)) is not None:
                return later(recorded, listed)
        return listed

    def absent(self) -> Iterator[tuple[DecisionRecord, BranchRecord]]:
        """Branches recorded for this participant that it did not list. Only this participant can say what
        became of them: another database of the same server may have another history."""
        for record in self.records.values():
            for branch in record.branches:
                if branch.participant in self.names and (record.txid, branch.number) not in self.listed:
                    yield record, branch


async def unfinished(ledger: Ledger) -> dict[TxId, DecisionRecord]:
    """Step 1: the unfinished decisions. Raises ``LedgerError``."""
    return {record.txid: record async for record in every_unfinished(ledger)}


async def scan(
    ledger: Ledger,
    participant: Participant,
    records: Mapping[TxId, DecisionRecord],
    observe: Observer | None = None,
) -> Scan:
    """Steps 2 and 3; ``records`` is the result of step 1. Raises ``ParticipantError`` or ``LedgerError``.
    Changes nothing."""
    await reach(observe, RecoveryStep.BEFORE_SCAN, participant.name)
    listed = await participant.in_doubt()
    await reach(observe, RecoveryStep.AFTER_SCAN, participant.name)
    stands = await standings(ledger, [(participant, branch) for branch in listed], records)
    await reach(observe, RecoveryStep.AFTER_OUTCOMES, participant.name)
    prepared = list(zip(listed, stands, strict=True))
    return Scan(
        participant.name,
        participant.names,
        records,
        prepared,
        {
            (branch.gid.txid, branch.gid.branch): branch.evidence
            for branch, stand in prepared
            if isinstance(branch.gid, Gid) and stand.ours
        },
    )


async def standings(
    ledger: Ledger,
    listed: Sequence[tuple[Participant, PreparedBranch]],
    records: Mapping[TxId, DecisionRecord] | None = None,
) -> list[BranchStanding]:
    """The standing of each branch, in order, beside the participant that listed it before this call.
    ``records`` are unfinished decisions that are known already."""
    gids = [branch.gid for _, branch in listed]
    ours = [gid for gid in gids if isinstance(gid, Gid) and gid.ledger == ledger.ledger_id]
    verdicts = await _outcomes(ledger, list(dict.fromkeys(ours)))
    dropped = {branch.gid for _, branch in listed if branch.owner_dropped}
    asked = [
        gid
        for gid, verdict in verdicts.items()
        if verdict is Verdict.COMMITTED or (gid in dropped and verdict is not Verdict.IMPOSTOR)
    ]
    recorded, left_out = await _recorded(ledger, asked, records or {})
    stands = []
    for participant, branch in listed:
        gid = branch.gid
        if not isinstance(gid, Gid) or gid not in verdicts:
            lost = of_lost_ledger(participant, branch)
            stands.append(BranchStanding.LOST_LEDGER if lost else standing(gid, ledger.ledger_id, None))
        elif why_impostor(participant.names, branch, recorded.get(gid)) is not None:
            stands.append(BranchStanding.IMPOSTOR)
        elif gid in left_out:
            stands.append(BranchStanding.ABORTED)
        else:
            stands.append(standing(gid, ledger.ledger_id, verdicts[gid]))
    return stands


async def _outcomes(ledger: Ledger, gids: Sequence[Gid]) -> dict[Gid, Verdict]:
    verdicts: dict[Gid, Verdict] = {}
    for start in range(0, len(gids), OUTCOMES_MAX):
        verdicts |= await ledger.outcomes(gids[start : start + OUTCOMES_MAX])
    return verdicts


async def _recorded(
    ledger: Ledger, gids: Iterable[Gid], records: Mapping[TxId, DecisionRecord]
) -> tuple[dict[Gid, BranchRecord], set[Gid]]:
    """What was recorded about branches whose verdict is committed, or whose role was dropped: a name may be
    prepared again after its branch has ended. And those of a committed transaction that are not among its
    recorded branches: all that were prepared for the decision are, so that these were withdrawn from the
    transaction before, and no COMMIT is about them."""
    found: dict[Gid, BranchRecord] = {}
    left_out: set[Gid] = set()
    for gid in gids:
        known = records.get(gid.txid) or await ledger.transaction(gid.txid)
        for branch in known.branches if known is not None else ():
            if branch.number == gid.branch:
                found[gid] = branch
        if gid not in found and known is not None and known.branches and _is_commit(known):
            left_out.add(gid)
    return found, left_out


def _is_commit(known: DecisionRecord | TransactionInfo) -> bool:
    if isinstance(known, DecisionRecord):
        return known.decision is Decision.COMMIT
    return known.record is RecordedDecision.COMMIT


def why_impostor(names: Container[str], branch: PreparedBranch, recorded: BranchRecord | None) -> str | None:
    """Why ``branch``, listed by the participant that has or had ``names``, is not the branch that its gid
    names, although its tag is right; None if it may be that branch. A gid is public from its PREPARE on, and
    any role that may connect can prepare it again after its branch has ended."""
    gid = branch.gid
    if isinstance(gid, Gid) and gid.participant not in names:
        return in_another_database(gid)
    if not branch.owned and not branch.owner_dropped:
        return of_another_role(branch)
    ids = (None if recorded is None else recorded.xid, branch.xid)
    if None in ids:
        return DROPPED if branch.owner_dropped else None
    if (ids[0] or 0) % _XID_MODULUS != (ids[1] or 0) % _XID_MODULUS:
        return f"its transaction id is {ids[1]}, and the decision was recorded of {ids[0]}"
    return None


def of_another_role(branch: PreparedBranch) -> str:
    """For an operator: why ``branch``, which was prepared by a role of no participant, is not ours."""
    return f"role {branch.owner!r} prepared it, and that role prepares no branch of this installation"


def in_another_database(gid: Gid) -> str:
    """For an operator: why what is prepared under ``gid`` is not the branch of that name."""
    return f"it names participant {gid.participant!r}, and is prepared in another database"


def of_lost_ledger(participant: Participant, branch: PreparedBranch) -> bool:
    """Whether ``branch``, which ``participant`` listed, has the name, database and owner of this
    installation's branches, but belongs to another ledger. Its tag can be verified only with the secret of
    that ledger."""
    gid = branch.gid
    if not isinstance(gid, Gid) or gid.ledger in participant.other_ledgers:
        return False
    return why_impostor(participant.names, branch, None) is None


_XID_MODULUS = 2**32
"""A database shows the lower 32 bits of a prepared transaction's id."""


def later(recorded: Evidence, listed: Evidence | None) -> Evidence:
    """Which evidence the database can judge, where ``listed`` was read about the same branch after
    ``recorded``. If both name the same history, ``recorded``, which has a WAL position."""
    if listed is None or (listed.history is None and None in {listed.system, listed.timeline}):
        return recorded
    if listed.history is None:
        same = (listed.system, listed.timeline) == (recorded.system, recorded.timeline)
    else:
        same = listed.history == recorded.history
    return recorded if same else listed


def evidence_of(branch: BranchRecord) -> Evidence | None:
    """The evidence of ``branch``; None unless a transaction id was recorded."""
    if branch.xid is None:
        return None
    return Evidence(branch.xid, branch.system, branch.timeline, branch.history, branch.position)
