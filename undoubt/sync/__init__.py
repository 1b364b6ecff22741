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

Each call runs the async engine's method in the engine's event loop; no method is implemented twice.
Statements do not pass through the loop: a thread uses its branch's connection directly, and the engine uses
that connection again when the thread ends the transaction.

In the order in which a call passes through them:

===================  =========================================================================================
:mod:`.connect`      ``connect``: makes a coordinator for threads.
:mod:`.coordinator`  ``Coordinator``: begins transactions, and runs functions in them.
:mod:`.transaction`  ``Transaction``: opens branches, commits, and rolls back.
:mod:`.lock`         ``Lock``: a distributed lock.
:mod:`.portal`       runs the event loop in its own thread, and takes calls from any other thread.
===================  =========================================================================================
"""

from __future__ import annotations

from undoubt.sync.connect import connect
from undoubt.sync.coordinator import Coordinator
from undoubt.sync.lock import Lock
from undoubt.sync.transaction import Transaction

__all__ = ["Coordinator", "Lock", "Transaction", "connect"]
