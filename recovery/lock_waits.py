"""The edges of the wait graph that come of the ledger's own locks (:mod:`undoubt.coordinator.ledger.locks`).

A request waits for the holders of its lock, and for the conflicting requests before it in the queue, which is
never reordered. A request that was made with a transaction is that transaction's node in the graph, so that a
cycle through rows of databases and locks of the ledger is found like any other. A holder without a
transaction has no outgoing edge that anybody could know of, and is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.ledger.locks import LockEntry, LockInfo, LockRequest
from undoubt.participants.contract import Waiting

log = logging.getLogger(__name__)

LOCKS = "ledger locks"
"""Stands where other waits have the name of their participant; no participant can be called so."""


@dataclass(frozen=True, slots=True)
class LockWait(Waiting):
    """``request`` waits for a lock. ``queued``: it waits for a request that waits too, and not for a holder.

    No ledger ends a cycle of its locks by itself, so such waits are no chain of backends: ``pid`` is 0 and
    ``holder_pid`` -1, which never meet."""

    request: LockRequest | None = None
    queued: bool = False


async def lock_waits(ledger: Ledger) -> Sequence[Waiting]:
    """All waits for locks at this moment; none if the ledger does not tell them."""
    try:
        found = await ledger.contended_locks()
    except LedgerError as error:
        # Deadlocks through databases alone are still found.
        log.debug("no waits for locks: %s", error)
        return ()
    return [wait for info in found for wait in waits_of(info)]


def waits_of(info: LockInfo) -> Iterator[LockWait]:
    """The waits for one lock. Of the waiting requests before a request only those are named that reach all
    others: the number of waits stays in proportion to the queue."""
    ahead: list[LockEntry] = []
    for entry in info.waiters:
        for holder in info.holders:
            if holder.request.txid is not None and _conflict(entry, holder):
                yield from _wait(entry, holder)
        for other in reversed(ahead):
            if _conflict(entry, other):
                yield from _wait(entry, other)
            if not other.request.shared:
                break
        ahead.append(entry)


def _conflict(one: LockEntry, other: LockEntry) -> bool:
    return not (one.request.shared and other.request.shared)


def _wait(waiter: LockEntry, holder: LockEntry) -> Iterator[LockWait]:
    """None within one transaction, whose tasks may take turns."""
    one, other = waiter.request, holder.request
    if one.txid is None or one.txid != other.txid:
        since = f"{_number(one)} {_number(other)}"
        queued = not holder.granted
        yield LockWait(_node(one), _node(other), since, 0, None, -1, request=one, queued=queued)


def _node(request: LockRequest) -> str:
    return f"{LOCKS}/{_number(request)}" if request.txid is None else str(request.txid)


def _number(request: LockRequest) -> str:
    """Names one request for ever: numbers are drawn once in a session."""
    return f"{request.session}.{request.number}"
