"""What is known of one transaction: its state in words, and the warnings before it is ended by hand."""

from __future__ import annotations

from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision, TransactionInfo, Verdict
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.recovery.operator.whole_transaction import Whole
from undoubt.recovery.plan import BranchStanding


def state(info: TransactionInfo) -> str:
    """The outcome in words; a transaction without a decision may have committed in one phase, so it is never
    called aborted."""
    if open_ones := [found for found in info.heuristics if not found.forgotten]:
        return str(open_ones[0].kind).replace("_", " ")
    match info.record:
        case RecordedDecision.COMMIT:
            return "committed" if info.finished else "committed, not yet applied everywhere"
        case RecordedDecision.ABORT:
            return "aborted" if info.finished else "aborted, not yet applied everywhere"
        case RecordedDecision.NOT_RECORDED:
            return "active" if info.verdict is Verdict.ACTIVE else "no decision recorded"


async def known(ledger: Ledger, txid: TxId) -> TransactionInfo | None:
    """What the ledger knows about the transaction. None if nothing."""
    return await ledger.transaction(txid) or await _ended_by_hand(ledger, txid)


async def _ended_by_hand(ledger: Ledger, txid: TxId) -> TransactionInfo | None:
    """For an undecided transaction with a branch that an operator has ended."""
    known = [one for one in await ledger.heuristics(include_forgotten=True) if one.gid.txid == txid]
    if not known:
        return None
    gid = known[0].gid
    verdict = (await ledger.outcomes([gid]))[gid]
    return TransactionInfo(
        txid,
        RecordedDecision.NOT_RECORDED,
        verdict,
        gid.protocol,
        (),
        None,
        "",
        finished=False,
        heuristics=tuple(known),
    )


def warnings(found: Whole, chosen: Decision) -> list[str]:
    """The warnings that are shown before the question."""
    lines = []
    recorded = None if found.info is None else str(found.info.record)
    if chosen is Decision.ABORT and (recorded == "commit" or found.direction is Decision.COMMIT):
        lines.append("COMMIT IS RECORDED: the other branches have committed, or will commit.")
    if chosen is Decision.COMMIT and found.direction is Decision.ABORT:
        lines.append("ABORTED: the other branches are rolled back, or will be.")
    if chosen is Decision.COMMIT and any(one.standing is BranchStanding.ACTIVE for one in found.prepared):
        lines.append("ITS COORDINATOR IS ALIVE: it may still abort, and then the transaction is split.")
    lines += splitting(found.contradicts(chosen))
    lines += [
        f"Branch {one.number} in {one.participant} is not known: {one.why or 'it is not configured'}."
        for one in found.branches
        if one.now in {"no_answer", "not_configured"}
    ]
    return lines + not_seen(found)


def splitting(against: list[str]) -> list[str]:
    """The warning that an order splits a transaction; ``against`` is what :meth:`Whole.contradicts` says."""
    return [f"{line[0].upper()}{line[1:]}: this splits the transaction." for line in against]


def not_seen(found: Whole) -> list[str]:
    """The warning that there may be other, unknown branches."""
    lines = [*found.not_seen, *filter(None, [found.more_unknown])]
    return [f"{line[0].upper()}{line[1:]}." for line in lines]
