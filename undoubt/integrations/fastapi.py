"""Dependencies of FastAPI over the middleware of :mod:`.asgi`.

::

    app = FastAPI()
    app.add_middleware(CommitBeforeResponse, source="undoubt.toml")

    @app.post("/orders")
    async def order(tx: Tx) -> dict[str, bool]:
        orders, payments = await tx.branch("orders"), await tx.branch("payments")
        …
        return {"placed": True}      # not sent unless the transaction has committed

A dependency with ``yield`` that commits after its ``yield`` is too late: FastAPI runs that part after the
response (``scope="request"``, the default), and so the client reads 200 for a transaction that is aborted.
With ``scope="function"`` the commit is before the response; then its error is a bare 500, whatever the
outcome."""

from __future__ import annotations

from typing import Annotated, Any

from undoubt.coordinator.transaction import Transaction
from undoubt.integrations.asgi import CommitBeforeResponse, on_commit, session, sync_transaction, transaction
from undoubt.integrations.extras import needs
from undoubt.sync import Transaction as SyncTransaction

with needs("fastapi"):
    from fastapi import Depends

__all__ = [
    "CommitBeforeResponse",
    "SyncTx",
    "Tx",
    "WorkSession",
    "on_commit",
    "session",
    "sync_transaction",
    "transaction",
]

Tx = Annotated[Transaction, Depends(transaction)]
"""The transaction of the request, for ``async def``."""

SyncTx = Annotated[SyncTransaction, Depends(sync_transaction)]
"""The same for ``def``, which FastAPI calls in a thread; with ``threads=True``."""

WorkSession = Annotated[Any, Depends(session)]
"""The session of the request, made by ``sessions=``."""
