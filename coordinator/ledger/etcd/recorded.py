"""What is recorded about the decision on a transaction: the decision with its details, or only a summary."""

from __future__ import annotations

from typing import NamedTuple

from undoubt.coordinator.errors import BranchListMismatch, LedgerError
from undoubt.coordinator.ledger.commands import Decide
from undoubt.coordinator.ledger.etcd.keyspace import DecisionValue, Keyspace, SummaryValue
from undoubt.coordinator.ledger.etcd.store import KeySnapshot
from undoubt.coordinator.ledger.machine import fingerprint
from undoubt.coordinator.ledger.rules import agrees, labels
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId


class Recorded(NamedTuple):
    """``details`` is None once they were deleted; then ``fingerprint`` is that of the branches."""

    decision: Decision
    details: DecisionValue | None
    fingerprint: int = 0


def keys_about(keys: Keyspace, txid: TxId) -> list[bytes]:
    """The keys that :func:`recorded` looks at."""
    return [keys.decision(txid), keys.summary(txid)]


def recorded(keys: Keyspace, snapshot: KeySnapshot, txid: TxId) -> Recorded | None:
    details = snapshot.get(keys.decision(txid), DecisionValue)
    if details is not None:
        return Recorded(details.decision, details) if details.nonce == txid.nonce else None
    summary = snapshot.get(keys.summary(txid), SummaryValue)
    if summary is None or summary.nonce != txid.nonce:
        return None
    found = summary.of(txid.seq)
    return None if found is None else Recorded(found[0], None, found[1])


def answer_to(command: Decide, found: Recorded) -> Decision | LedgerError:
    """The answer to ``command`` if ``found`` is recorded."""
    given = labels(command.branches)
    if found.details is not None:
        known = labels(found.details.branches)
    else:  # the fingerprint is all that is left of its branches
        known = given if found.fingerprint == fingerprint(command.branches) else ["finished"]
    if agrees(command.decision, given, found.decision, known):
        return found.decision
    return BranchListMismatch(command.txid, known, given)
