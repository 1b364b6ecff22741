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

``connect`` gives a :class:`Coordinator`; ``coordinator.transaction()`` a :class:`Transaction`;
``tx.branch(name)`` a connection to one database inside it. ``undoubt.errors`` draws the tree of errors. The
rooms beneath (``recovery``, ``coordinator``, ``participants``) are public too, for those who assemble their
own.
"""

from __future__ import annotations

from undoubt.config import Settings
from undoubt.connect import connect
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.transaction import CommitResult, Transaction
from undoubt.errors import (
    HeuristicOutcome,
    OutcomeUnknown,
    TransactionAborted,
    UndoubtError,
)
from undoubt.participants.ids import Gid, TxId

__version__ = "0.1.0"

__all__ = [
    "CommitResult",
    "Coordinator",
    "Gid",
    "HeuristicOutcome",
    "OutcomeUnknown",
    "RecordedDecision",
    "Settings",
    "Transaction",
    "TransactionAborted",
    "TxId",
    "UndoubtError",
    "connect",
]
