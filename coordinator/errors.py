"""The errors of the coordinator.

::

    UndoubtError
    ├── UsageError
    │   ├── TransactionEnded       a branch or a commit after the transaction's end
    │   └── WrongProcess           a coordinator used in a fork of the process that opened it
    ├── TransactionAborted         it is in no database, for certain; ``cause`` says why
    ├── OutcomeUnknown             it may or may not be committed; ask later, never guess
    ├── HeuristicOutcome           some database did other than what was decided
    └── LedgerError
        ├── LedgerUnavailable      no answer, or no room; what was asked may or may not have happened
        ├── LedgerUnusable         it cannot be opened: unreadable, damaged, a newer version, not a ledger
        │   └── LedgerMissing      there is none, and only ``undoubt ledger init`` makes one there
        ├── LedgerLocked           another process owns it and does not answer
        ├── ClusterRefused         an operation on the cluster that cannot be, or would stop it
        │   └── ClusterNotReady    or would, but for nodes that are silent or behind
        ├── VersionHeldBack        the cluster has members of an older version, which do not know this yet
        ├── SessionLost            the lease is gone: nothing of it can commit any more
        ├── BranchListMismatch     a decision is recorded for other branches than those given
        └── Impostor               a name that the ledger never gave
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from participants.contract import Settled, Vote
from participants.errors import UndoubtError, UsageError
from participants.ids import Gid, TxId


class TransactionEnded(UsageError):
    """The transaction is over, or its branch is: nothing more can be done in it."""


class WrongProcess(UsageError):
    """A forked process used its parent's coordinator. Open one of its own after the fork."""


class TransactionAborted(UndoubtError):
    """The transaction is in no participant, and never will be.

    ``cause`` is the first reason; ``votes`` tells what each participant answered, by name of branch
    (``"1:orders"``), for as far as they were asked.
    """

    def __init__(
        self, txid: TxId, cause: BaseException | str, votes: Mapping[str, Vote] | None = None
    ) -> None:
        super().__init__(f"transaction {txid} aborted: {cause}")
        self.txid = txid
        self.cause = cause
        self.votes = dict(votes or {})


class OutcomeUnknown(UndoubtError):
    """Nobody can say now whether the transaction committed. Ask again with ``coordinator.outcome(txid)``
    or ``undoubt tx show``; never treat it as aborted, and never simply run it again."""

    def __init__(self, txid: TxId, why: str) -> None:
        super().__init__(f"outcome of transaction {txid} is unknown: {why}")
        self.txid = txid
        self.why = why


class HeuristicOutcome(UndoubtError):
    """A participant ended its branch on its own. ``kind`` is the worst of ``branches``, which maps each
    such branch to what happened there. It is recorded; see ``undoubt indoubt list``."""

    def __init__(self, txid: TxId, kind: Settled, branches: Mapping[Gid, Settled]) -> None:
        listed = ", ".join(f"{gid.participant}: {what}" for gid, what in branches.items())
        super().__init__(f"transaction {txid} ended as {kind} ({listed})")
        self.txid = txid
        self.kind = kind
        self.branches = dict(branches)


class LedgerError(UndoubtError):
    """The ledger could not do what was asked."""


class LedgerUnavailable(LedgerError):
    """No answer, or no room to write. May be repeated."""


class LedgerUnusable(LedgerError):
    """The ledger cannot be opened and will not be until somebody acts; the message says how."""


class LedgerMissing(LedgerUnusable):
    """There is no ledger at that URL."""


class LedgerLocked(LedgerError):
    """Another process owns the ledger and does not answer on its socket."""


class ClusterRefused(LedgerError):
    """The cluster does not do that; nothing was changed. The message says why, and what to do instead."""


class ClusterNotReady(ClusterRefused):
    """A node that has to take part is silent, or behind. Asking again helps once it runs and has caught
    up."""


class VersionHeldBack(LedgerError):
    """What was asked came with a version that not all members of the cluster speak. The message names those
    that hold it up; nothing was recorded."""


class SessionLost(LedgerError):
    """The session was closed or has expired: no transaction of it can commit any more."""


class BranchListMismatch(LedgerError):
    """A decision is recorded for this transaction with another list of branches."""

    def __init__(self, txid: TxId, recorded: Sequence[str], given: Sequence[str]) -> None:
        super().__init__(f"transaction {txid} is recorded with branches {list(recorded)}, not {list(given)}")
        self.txid = txid
        self.recorded = tuple(recorded)
        self.given = tuple(given)


class Impostor(LedgerError):
    """The ledger never gave that name: its tag is wrong, or is missing where there has to be one. Nothing was
    recorded."""
