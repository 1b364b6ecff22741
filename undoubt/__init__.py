"""undoubt: one atomic commit across several PostgreSQL databases.

::

    import undoubt

    async with undoubt.connect("undoubt.toml") as coordinator:
        async with coordinator.transaction(timeout=30) as tx:
            orders = await tx.branch("orders")
            payments = await tx.branch("payments")
            await orders.execute("insert into orders ...")
            await payments.execute("update accounts ...")
        # here it is committed in both, or TransactionAborted was raised and it is in neither

``connect`` returns a :class:`Coordinator`; ``coordinator.transaction()`` returns a :class:`Transaction`;
``tx.branch(name)`` returns a connection to one database inside that transaction. The rooms
:mod:`undoubt.coordinator`, :mod:`undoubt.participants` and :mod:`undoubt.recovery` are public too, for
programs that assemble a coordinator themselves.

The modules and rooms, in the order in which an application uses them:

====================  ========================================================================================
:mod:`.config`        reads the settings from ``undoubt.toml``, the environment and flags.
:mod:`.connect`       ``connect``: opens ledger, participants and coordinator, and starts recovery.
:mod:`.wiring`        makes the ledger and the participants that the settings name.
:mod:`.coordinator`   drives each transaction to its end.
:mod:`.participants`  implements the calls that a transaction makes to a database.
:mod:`.recovery`      finishes the branches that a coordinator has left prepared.
:mod:`.sync`          offers the same API without ``await``, for threads.
:mod:`.relay`         delivers what transactions have published in an outbox.
:mod:`.integrations`  offers the same commit inside other libraries and web frameworks.
:mod:`.errors`        lists every error, as one tree.
:mod:`.logs`          formats log records as JSON, with the transaction as a field.
:mod:`.metrics`       exports metrics to Prometheus.
:mod:`.report`        gives the JSON and the sentences that commands, doctor and the console have in common.
:mod:`.cli`           implements the command ``undoubt``.
:mod:`.doctor`        checks settings, ledger and databases, and proposes repairs.
:mod:`.serve`         runs a node of the ledger's cluster, and makes its disk and certificates.
:mod:`.demo`          runs real databases and real crashes, and checks the money afterwards.
:mod:`.bench`         measures the cost of a commit beside that of hand-written two-phase commit.
:mod:`.embedded`      starts PostgreSQL servers for the demo, the tests and experiments.
====================  ========================================================================================
"""

from __future__ import annotations

from undoubt.config import Settings
from undoubt.connect import connect
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.locks import Lock
from undoubt.coordinator.transaction import CommitResult, Transaction
from undoubt.errors import (
    AlreadyCommitted,
    HeuristicOutcome,
    KeyInUse,
    LockLost,
    LockTimeout,
    OutcomeUnknown,
    StaleLock,
    TransactionAborted,
    TransactionEnded,
    UndoubtError,
    UsageError,
)
from undoubt.participants.ids import Gid, TxId

__version__ = "0.1.0"

__all__ = [
    "AlreadyCommitted",
    "CommitResult",
    "Coordinator",
    "Gid",
    "HeuristicOutcome",
    "KeyInUse",
    "Lock",
    "LockLost",
    "LockTimeout",
    "OutcomeUnknown",
    "RecordedDecision",
    "Settings",
    "StaleLock",
    "Transaction",
    "TransactionAborted",
    "TransactionEnded",
    "TxId",
    "UndoubtError",
    "UsageError",
    "connect",
]
