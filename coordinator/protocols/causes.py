"""Reads from the ledger why a transaction was aborted by another process or an operator.

A deadlock detector in another process can only cancel the statement for which a victim waits, and an operator
can only record ABORT; both record the cause in the ledger. The victim's coordinator reads the cause there and
raises it in the application. The time for reading is limited: the outcome is certain without the cause.
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
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.participants.tasks import all_within

T = TypeVar("T")

ASK_S = 1.0
"""How long a question to the ledger may take, in seconds."""
CANCELLED = frozenset({"57014", "25P02"})
"""query_canceled, and in_failed_sql_transaction: the state of a branch in which the application has swallowed
the error of a cancelled statement (PostgreSQL manual, appendix A)."""


def may_come_of_a_cancellation(error: BaseException) -> bool:
    """Whether ``error``, its cause or its context says that a statement was cancelled."""
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
    """Return the recorded cause for aborting an undecided transaction. None if no cause is recorded, or the
    ledger does not answer within ``ASK_S`` seconds."""
    text = await _soon(ledger.doomed(txid))
    if text is None:
        return None
    return DistributedDeadlock.parse(txid, text) or AbortedByOthers(text)


async def why_recorded(ledger: Ledger, txid: TxId) -> UndoubtError:
    """Return why the ledger has ABORT for ``txid``, and not the COMMIT that this process wanted to record."""
    info = await _soon(ledger.transaction(txid))
    if info is not None and info.cause:
        return AbortedByOthers(info.cause)
    for session in await _soon(ledger.sessions()) or ():
        if (session.id, session.nonce) == (txid.session, txid.nonce) and session.state is SessionState.OPEN:
            return AbortedByOthers("a recovery, or an operator, recorded ABORT before the decision")
    return SessionLost("the coordinator's session ended before the decision")


async def _soon(asking: Awaitable[T]) -> T | None:
    [answer] = await all_within([_awaited(asking)], ASK_S)
    if isinstance(answer, LedgerError | OutcomeUnknown | asyncio.CancelledError):
        return None
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _awaited(asking: Awaitable[T]) -> T:
    return await asking
