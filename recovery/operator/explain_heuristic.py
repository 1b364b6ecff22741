"""Explains a branch that has ended otherwise than was decided, and what to repair."""

from __future__ import annotations

from dataclasses import dataclass

from undoubt.coordinator.ledger.contract import Heuristic, Ledger, TransactionInfo
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Gid

_REPAIR = {
    Settled.HEURISTIC_ROLLBACK: "What this branch wrote is not in its database. Write it again by hand, or"
    " undo what the other branches wrote.",
    Settled.HEURISTIC_COMMIT: "What this branch wrote is in its database. Undo it by hand, or do by hand what"
    " the other branches should have written.",
    Settled.HEURISTIC_MIXED: "Part of what this branch wrote is in its database. Compare, and complete or"
    " undo it by hand.",
    Settled.HEURISTIC_HAZARD: "Nothing proves whether what this branch wrote is in its database: look for"
    " it there, and complete it by hand if it is missing.",
}


@dataclass(frozen=True, slots=True)
class HeuristicExplanation:
    """``info`` comes from the ledger, None where it has none; ``repair`` says in sentences what to do."""

    heuristic: Heuristic
    info: TransactionInfo | None
    repair: tuple[str, ...]


async def explain_heuristic(ledger: Ledger, gid: Gid) -> HeuristicExplanation | None:
    """None if no heuristic outcome of ``gid`` is recorded. Raises ``LedgerError``."""
    known = await ledger.heuristics(include_forgotten=True)
    found = next((heuristic for heuristic in known if heuristic.gid == gid), None)
    if found is None:
        return None
    info = await ledger.transaction(gid.txid)
    return HeuristicExplanation(found, info, tuple(_repair(found, info)))


def _repair(found: Heuristic, info: TransactionInfo | None) -> list[str]:
    said = [_decided(found.decision), _REPAIR[found.kind]]
    others = [branch for branch in (info.branches if info else ()) if branch.number != found.gid.branch]
    if others:
        names = ", ".join(branch.participant for branch in others)
        said.append(f"The other branches of the transaction: {names}.")
    evidence = next((b for b in (info.branches if info else ()) if b.number == found.gid.branch), None)
    if evidence is not None and evidence.xid is not None:
        timeline = f", on timeline {evidence.timeline}" if evidence.timeline is not None else ""
        said.append(f"Its transaction id there was {evidence.xid}{timeline}.")
    if not found.forgotten:
        said.append("Once that is done, close it with undoubt indoubt forget.")
    return said


def _decided(decision: Decision | None) -> str:
    match decision:
        case Decision.COMMIT:
            return "COMMIT is recorded, and stands: the transaction is committed."
        case Decision.ABORT:
            return "ABORT is recorded or certain, and stands: the transaction is rolled back."
        case None:
            return "No decision was recorded: an operator ended this branch; the others are not known."
