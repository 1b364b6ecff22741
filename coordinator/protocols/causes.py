"""Why a transaction is aborted that somebody else has aborted, as far as the ledger was told.

A detector of deadlocks in another process can only cancel the statement that a victim waits for, and an
operator can only record ABORT: both write down why. The victim's coordinator finds it there, and its
application hears the true cause. Asking is bounded in time: the outcome is certain without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from undoubt.coordinator.errors import (
    AbortedByOthers,
    DistributedDeadlock,
    LedgerError,
    OutcomeUnknown,
    SessionLost,
)
from undoubt.coordinator.ledger.contract import Ledger, SessionState
from undoubt.coordinator.uncancellable import all_within
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId

T = TypeVar("T")

ASK_S = 1.0
CANCELLED = frozenset({"57014", "25P02"})
"""query_canceled, and in_failed_sql_transaction, in which a statement whose cancellation was swallowed leaves
its branch (PostgreSQL manual, appendix A)."""


def may_come_of_a_cancellation(error: BaseException) -> bool:
    """Whether ``error``, or what it was raised from or while handling, says that somebody has cancelled a
    statement."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        each = todo.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        if getattr(each, "sqlstate", None) in CANCELLED:
            return True
        seen.add(id(each))
        todo += [each.__cause__, each.__context__, getattr(each, "orig", None)]
        todo += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
    return False


async def why_doomed(ledger: Ledger, txid: TxId) -> UndoubtError | None:
    """Why an undecided transaction is being aborted from outside. None if nobody has said so, or the ledger
    does not answer at once."""
    text = await _at_once(ledger.doomed(txid))
    if text is None:
        return None
    return DistributedDeadlock.parse(txid, text) or AbortedByOthers(text)


async def why_recorded(ledger: Ledger, txid: TxId) -> UndoubtError:
    """Why the ledger holds ABORT, and not the COMMIT that was to be recorded."""
    info = await _at_once(ledger.transaction(txid))
    if info is not None and info.cause:
        return AbortedByOthers(info.cause)
    for session in await _at_once(ledger.sessions()) or ():
        if (session.id, session.nonce) == (txid.session, txid.nonce) and session.state is SessionState.OPEN:
            return AbortedByOthers("a recovery, or an operator, recorded ABORT before the decision")
    return SessionLost("the coordinator's session ended before the decision")


async def _at_once(asking: Awaitable[T]) -> T | None:
    [answer] = await all_within([_awaited(asking)], ASK_S)
    if isinstance(answer, LedgerError | OutcomeUnknown | asyncio.CancelledError):
        return None
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _awaited(asking: Awaitable[T]) -> T:
    return await asking
