"""undoubt without ``await``, for any number of threads.

::

    import undoubt.sync

    with undoubt.sync.connect("undoubt.toml") as coordinator:
        with coordinator.transaction(timeout=30) as tx:
            orders = tx.branch("orders")          # a psycopg.Connection, inside its branch
            payments = tx.branch("payments")
            orders.execute("insert into orders ...")
            payments.execute("update accounts ...")
        # here it is committed in both, or TransactionAborted was raised and it is in neither

Nothing is implemented twice: :mod:`~undoubt.sync.portal` runs the async engine's loop in one thread, and
:mod:`~undoubt.sync.coordinator` and :mod:`~undoubt.sync.transaction` carry calls there. Statements do not go
that way: a thread works with its branch's connection directly, and the engine takes over where the thread
ends its transaction.
"""

from __future__ import annotations

from undoubt.sync.connect import connect
from undoubt.sync.coordinator import Coordinator
from undoubt.sync.transaction import Transaction

__all__ = ["Coordinator", "Transaction", "connect"]
