"""The errors of the coordinator.

::

    UndoubtError
    ├── UsageError
    │   ├── AlreadyCommitted       a transaction with the same key has committed: nothing is done again
    │   ├── CoordinatorClosed      the coordinator is closed: no transaction begins
    │   ├── TransactionEnded       a branch or a commit after the transaction's end
    │   └── WrongProcess           a coordinator used in a fork of the process that opened it
    ├── TransactionAborted         it is certainly in no database; ``cause`` says why
    ├── OutcomeUnknown             it may or may not be committed; ask for the outcome later
    ├── HeuristicOutcome           some database did something else than was decided
    ├── KeyInUse               another transaction with the same key is undecided; try again later
    ├── AbortedByOthers            a cause: an operator or a recovery has aborted the transaction
    ├── DistributedDeadlock        a cause: chosen to end a deadlock across databases; may be run again
    │   └── SelfDeadlock           two of its own branches wait for each other; running it again does not help
    └── LedgerError
        ├── LedgerUnavailable      no answer, or no room; the call may or may not have had an effect
        ├── LedgerUnusable         it cannot be opened: unreadable, damaged, a newer version, not a ledger
        │   ├── LedgerMisconfigured    its URL is invalid, or a file that the settings name is of no use
        │   ├── LedgerMissing      there is no ledger; only ``undoubt ledger init`` makes one there
        │   └── LedgerMoved        it was moved to another place, or is being moved: nothing is answered here
        ├── LedgerLocked           another process owns it and does not answer
        ├── MoveRefused            a move of a ledger that is impossible now; the message says why
        ├── ClusterRefused         an operation that is impossible, or would stop the cluster
        │   ├── ClusterNotReady    nodes that have to take part do not answer, or are behind
        │   └── UnknownNode        the cluster has no node of that number
        ├── NotPermitted           the certificate of this client has another role than the call needs
        ├── VersionHeldBack        the cluster has members of an older version, which do not support the call
        ├── SessionLost            the session has ended: none of its transactions can commit
        ├── BranchListMismatch     a decision is recorded with another list of branches
        └── Impostor               a name that the ledger never gave
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from undoubt.participants.contract import Settled, Vote
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.schema_trust import Mend

_ARROW = " → "
_DEADLOCK = re.compile(r"deadlock across (.+?): (.+)", re.DOTALL)
_SELF_DEADLOCK = re.compile(r"two branches of transaction \S+ wait for each other in one database \((.+?)\)")


class CoordinatorClosed(UsageError):
    """The coordinator is closed. A call that was running may have had an effect."""

    def __init__(self, message: str = "the coordinator is closed") -> None:
        super().__init__(message)


class TransactionEnded(UsageError):
    """The transaction or the branch has ended: it accepts no further calls."""


class WrongProcess(UsageError):
    """A forked process used the coordinator of its parent process. Open another coordinator after the
    fork."""


class TransactionAborted(UndoubtError):
    """The transaction is not committed in any participant, and never will be.

    ``cause`` is the first reason; ``votes`` has the votes that were received, by name of branch
    (``"1:orders"``).
    """

    def __init__(
        self, txid: TxId, cause: BaseException | str, votes: Mapping[str, Vote] | None = None
    ) -> None:
        super().__init__(f"transaction {txid} aborted: {cause}")
        self.txid = txid
        self.cause = cause
        self.votes = dict(votes or {})


class OutcomeUnknown(UndoubtError):
    """It is not known yet whether the transaction has committed. Ask again with ``coordinator.outcome(txid)``
    or ``undoubt tx show``; never treat the transaction as aborted, and never run it again without asking."""

    def __init__(self, txid: TxId, why: str) -> None:
        super().__init__(f"outcome of transaction {txid} is unknown: {why}")
        self.txid = txid
        self.why = why


class HeuristicOutcome(UndoubtError):
    """A participant has ended its branch without, or against, the decision. ``kind`` is the worst of
    ``branches``, which maps each such branch to its outcome. The outcomes are recorded; see ``undoubt indoubt
    list``."""

    def __init__(self, txid: TxId, kind: Settled, branches: Mapping[Gid, Settled]) -> None:
        listed = ", ".join(f"{gid.participant}: {what}" for gid, what in branches.items())
        super().__init__(f"transaction {txid} ended as {kind} ({listed})")
        self.txid = txid
        self.kind = kind
        self.branches = dict(branches)


class AlreadyCommitted(UsageError):
    """A branch was opened in a transaction with whose ``key`` another transaction, ``txid``, has committed:
    nothing is done again. ``result`` is the result of that one."""

    def __init__(self, key: str, txid: TxId, result: object) -> None:
        super().__init__(
            f"transaction {txid} has committed with the key {key!r}: look at tx.repeated before anything is"
            " done in the transaction, and use tx.result"
        )
        self.key = key
        self.txid = txid
        self.result = result


class KeyInUse(UndoubtError):
    """Another transaction, ``txid``, has the ``key`` and is undecided. Nothing was done, and the call may be
    repeated. If the process of that transaction has died, the key is free once its session has expired."""

    def __init__(self, key: str, txid: TxId, waited_s: float) -> None:
        super().__init__(f"transaction {txid} has the key {key!r} and is undecided after {waited_s:g} s")
        self.key = key
        self.txid = txid


class LockTimeout(UndoubtError):
    """The lock was not granted within the given time. The request has left the queue."""


class LockLost(UndoubtError):
    """A lock that was held is not held any more, or may not be: its session has ended or could not be
    renewed, or an operator has released it. Another holder may work already; databases that are guarded
    (``lock.guard``) refuse this one."""


class AbortedByOthers(UndoubtError):
    """The transaction was aborted, but not by the application or its coordinator. The message says by what,
    and why, as far as that is recorded."""


class DistributedDeadlock(UndoubtError):
    """The transaction was chosen to end a deadlock across databases. Running it again may succeed.

    ``cycle`` names the waiting transactions and sessions, each followed by the one that it waits for,
    beginning with the victim. A session of a database is named ``"<participant>/<pid>"``.
    """

    retryable = True

    def __init__(
        self, victim: TxId, cycle: Sequence[str], participants: Iterable[str], message: str | None = None
    ) -> None:
        chain = _ARROW.join([*cycle, cycle[0]])
        super().__init__(message or f"deadlock across {', '.join(sorted(participants))}: {chain}")
        self.victim = victim
        self.cycle = tuple(cycle)

    @staticmethod
    def parse(victim: TxId, text: str) -> DistributedDeadlock | None:
        """Return the deadlock that ``text`` describes; None if ``text`` describes something else. ``text``
        was ``str()`` of a deadlock, and may have been cut. With this the victim's process raises what another
        process has found."""
        if (found := _SELF_DEADLOCK.match(text)) is not None:
            return SelfDeadlock(victim, re.findall(r"'([^']*)'", found[1]))
        if (found := _DEADLOCK.match(text)) is not None:
            chain = found[2].split(_ARROW)
            cycle = chain[:-1] if len(chain) > 1 and chain[0] == chain[-1] else chain
            return DistributedDeadlock(victim, cycle, found[1].split(", "), text)
        return None


class SelfDeadlock(DistributedDeadlock):
    """Two branches of one transaction wait for each other, because two of its participants lead to the same
    database. Running it again would end in the same way."""

    retryable = False

    def __init__(self, victim: TxId, participants: Iterable[str]) -> None:
        names = sorted(participants)
        message = (
            f"two branches of transaction {victim} wait for each other in one database"
            f" ({' and '.join(map(repr, names))}): one of them wants a lock that the other holds until the"
            " transaction ends; use one participant for one database"
        )
        super().__init__(victim, [str(victim)], names, message)


class LedgerError(UndoubtError):
    """The base of all errors of a ledger: a call of the ledger failed."""


class LedgerUnavailable(LedgerError):
    """The ledger did not answer, or has no room to write. The call may be repeated."""


class LedgerUnusable(LedgerError):
    """The ledger cannot be opened until an operator acts; the message says how. ``mends``: the faults of a
    PostgreSQL ledger's schema, and the statements that mend them."""

    mends: tuple[Mend, ...] = ()


class LedgerMisconfigured(LedgerUnusable):
    """The settings of the ledger are invalid: its URL, or a TLS file that they name."""


class LedgerMissing(LedgerUnusable):
    """There is no ledger at the URL of the settings."""


class LedgerMoved(LedgerUnusable):
    """The ledger was moved to another place by ``undoubt ledger move``, or such a move is not complete. It
    records and answers nothing here. The message names the other place."""


class MoveRefused(LedgerError):
    """A ledger was not moved, or the move was not undone. The message says why, and what to do."""


class LedgerLocked(LedgerError):
    """Another process owns the ledger and does not answer on its socket."""


class ClusterRefused(LedgerError):
    """The cluster refused an operation; nothing was changed. The message says why, and what to do instead."""


class ClusterNotReady(ClusterRefused):
    """A node that has to take part does not answer, or is behind. The operation may be repeated once that
    node runs and has caught up."""


class UnknownNode(ClusterRefused):
    """The cluster has no node of that number. Nothing was changed."""


class NotPermitted(LedgerError):
    """The certificate of this client does not have the role that the call needs. Nothing was done."""


class VersionHeldBack(LedgerError):
    """The call needs a protocol version that not all members of the cluster support. The message names the
    members that do not; nothing was recorded."""


class SessionLost(LedgerError):
    """The session was closed or has expired: no transaction of it can commit from then on."""


class BranchListMismatch(LedgerError):
    """A decision is recorded for this transaction with another list of branches."""

    def __init__(self, txid: TxId, recorded: Sequence[str], given: Sequence[str]) -> None:
        super().__init__(f"transaction {txid} is recorded with branches {list(recorded)}, not {list(given)}")
        self.txid = txid
        self.recorded = tuple(recorded)
        self.given = tuple(given)


class Impostor(LedgerError):
    """The ledger never gave the name of a branch: its tag is wrong, or is missing where a tag is required.
    Nothing was recorded."""
