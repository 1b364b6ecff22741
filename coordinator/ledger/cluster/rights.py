"""Which role of a client each call needs: declared here, enforced by the nodes."""

from __future__ import annotations

from undoubt.coordinator.errors import NotPermitted
from undoubt.coordinator.ledger import calls
from undoubt.coordinator.ledger.cluster import messages
from undoubt.coordinator.wire import Right

NEEDS: dict[type[calls.Call | messages.NodeCall], Right] = {
    # What is asked, and changes nothing.
    calls.SessionsCall: Right.OBSERVE,
    calls.OutcomesCall: Right.OBSERVE,
    calls.VerdictsCall: Right.OBSERVE,
    calls.BackendsCall: Right.OBSERVE,
    calls.DoomedCall: Right.OBSERVE,
    calls.RecordsCall: Right.OBSERVE,
    calls.UnfinishedCall: Right.OBSERVE,
    calls.HeuristicsCall: Right.OBSERVE,
    calls.TransactionCall: Right.OBSERVE,
    calls.TransactionsCall: Right.OBSERVE,
    calls.InfoCall: Right.OBSERVE,
    calls.VotersCall: Right.OBSERVE,
    calls.ActsCall: Right.OBSERVE,
    messages.StatusCall: Right.OBSERVE,
    # What a coordinator does, and the recovery of its transactions.
    calls.OpenSessionCall: Right.TRANSACT,
    calls.KeepAliveCall: Right.TRANSACT,
    calls.CloseSessionCall: Right.TRANSACT,
    calls.DecideCall: Right.TRANSACT,
    calls.PrecommitCall: Right.TRANSACT,
    calls.DoomCall: Right.TRANSACT,
    calls.FinishCall: Right.TRANSACT,
    calls.RecordHeuristicCall: Right.TRANSACT,
    messages.AcceptorCall: Right.TRANSACT,
    # What operators do. A backup holds the ledger's secret.
    calls.ForgetHeuristicCall: Right.OPERATE,
    calls.RecordActCall: Right.OPERATE,
    calls.BackupFileCall: Right.OPERATE,
    messages.ChangeMembersCall: Right.OPERATE,
    messages.TransferCall: Right.OPERATE,
    messages.SnapshotCall: Right.OPERATE,
    messages.BackupCall: Right.OPERATE,
    messages.HeldCall: Right.OPERATE,
}


def check(call: calls.Call | messages.NodeCall, right: Right, holder: str) -> None:
    """Raises ``NotPermitted`` unless ``right``, which the certificate of ``holder`` gives, is enough for
    ``call``."""
    needed = NEEDS[type(call)]
    if right < needed:
        raise NotPermitted(
            f"{type(call).__name__} needs a certificate with the role {needed}; that of {holder} has {right}"
        )
