"""The errors of the coordinator.

::

    UndoubtError
    ├── UsageError
    │   ├── CoordinatorClosed      nothing begins any more
    │   ├── TransactionEnded       a branch or a commit after the transaction's end
    │   └── WrongProcess           a coordinator used in a fork of the process that opened it
    ├── TransactionAborted         it is in no database, for certain; ``cause`` says why
    ├── OutcomeUnknown             it may or may not be committed; ask later, never guess
    ├── HeuristicOutcome           some database did other than what was decided
    ├── AbortedByOthers            a cause: an operator or a recovery has aborted the transaction
    ├── DistributedDeadlock        a cause: chosen to end a deadlock across databases; may be run again
    │   └── SelfDeadlock           two of its own branches wait for each other; running it again does not help
    └── LedgerError
        ├── LedgerUnavailable      no answer, or no room; what was asked may or may not have happened
        ├── LedgerUnusable         it cannot be opened: unreadable, damaged, a newer version, not a ledger
        │   ├── LedgerMisconfigured    its URL, or a file that the settings name, is none
        │   └── LedgerMissing      there is none, and only ``undoubt ledger init`` makes one there
        ├── LedgerLocked           another process owns it and does not answer
        ├── ClusterRefused         an operation on the cluster that cannot be, or would stop it
        │   └── ClusterNotReady    or would, but for nodes that are silent or behind
        ├── NotPermitted           the certificate of this client has another role than the call needs
        ├── VersionHeldBack        the cluster has members of an older version, which do not know this yet
        ├── SessionLost            the lease is gone: nothing of it can commit any more
        ├── BranchListMismatch     a decision is recorded for other branches than those given
        └── Impostor               a name that the ledger never gave
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from undoubt.participants.believed import Mend
from undoubt.participants.contract import Settled, Vote
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import Gid, TxId

_ARROW = " → "
_DEADLOCK = re.compile(r"deadlock across (.+?): (.+)", re.DOTALL)
_SELF_DEADLOCK = re.compile(r"two branches of transaction \S+ wait for each other in one database \((.+?)\)")


class CoordinatorClosed(UsageError):
    """The coordinator was closed. A call that was under way may have had an effect."""

    def __init__(self, message: str = "the coordinator is closed") -> None:
        super().__init__(message)


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


class AbortedByOthers(UndoubtError):
    """Neither the application nor its coordinator has aborted the transaction. The message says who did, and
    why, as far as that is recorded."""


class DistributedDeadlock(UndoubtError):
    """The transaction was chosen to end a deadlock across databases. Running it again may succeed.

    ``cycle`` names who waited for whom, beginning with the victim: transactions, and sessions of the
    databases as ``"<participant>/<pid>"``.
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
        """The deadlock that ``text``, which was ``str()`` of one and may have been cut, tells of; None if it
        tells of something else. So the victim's own process can raise what another one has found."""
        if (told := _SELF_DEADLOCK.match(text)) is not None:
            return SelfDeadlock(victim, re.findall(r"'([^']*)'", told[1]))
        if (told := _DEADLOCK.match(text)) is not None:
            chain = told[2].split(_ARROW)
            cycle = chain[:-1] if len(chain) > 1 and chain[0] == chain[-1] else chain
            return DistributedDeadlock(victim, cycle, told[1].split(", "), text)
        return None


class SelfDeadlock(DistributedDeadlock):
    """Two branches of one transaction wait for each other, because two of its participants lead to the same
    database. Running it again would end in the same way."""

    retryable = False

    def __init__(self, victim: TxId, participants: Iterable[str]) -> None:
        names = sorted(participants)
        told = (
            f"two branches of transaction {victim} wait for each other in one database"
            f" ({' and '.join(map(repr, names))}): one of them wants a lock that the other holds until the"
            " transaction ends; use one participant for one database"
        )
        super().__init__(victim, [str(victim)], names, told)


class LedgerError(UndoubtError):
    """The ledger could not do what was asked."""


class LedgerUnavailable(LedgerError):
    """No answer, or no room to write. May be repeated."""


class LedgerUnusable(LedgerError):
    """The ledger cannot be opened and will not be until somebody acts; the message says how. ``mends``: what
    is wrong with a PostgreSQL ledger's schema, and the lines that mend it."""

    mends: tuple[Mend, ...] = ()


class LedgerMisconfigured(LedgerUnusable):
    """What the settings say of the ledger cannot be: its URL is none, or a TLS file is of no use."""


class LedgerMissing(LedgerUnusable):
    """There is no ledger at that URL."""


class LedgerLocked(LedgerError):
    """Another process owns the ledger and does not answer on its socket."""


class ClusterRefused(LedgerError):
    """The cluster does not do that; nothing was changed. The message says why, and what to do instead."""


class ClusterNotReady(ClusterRefused):
    """A node that has to take part is silent, or behind. Asking again helps once it runs and has caught
    up."""


class NotPermitted(LedgerError):
    """The certificate of this client does not have the role that the call needs. Nothing was done."""


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
