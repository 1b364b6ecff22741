"""A whole history, checked part by part.

An order for the whole, if there is one, is an order for each part: so a part without one condemns the whole.
The parts: each transaction with the calls of its session; each session with what its transactions show of it,
so that no two transactions can disagree on when it ended; the numbers of the sessions.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.linearizability.history import Call, History
from tests.linearizability.models import Lease, Transaction, droppable_transaction, lease, transaction
from tests.linearizability.search import possible


def violations(history: History, *, drops: bool = False) -> list[str]:
    """What no ledger could have answered; each names the transaction or the session. ``drops``: it went on
    for longer than the ledger retains sessions that are gone."""
    model = droppable_transaction if drops else transaction
    of_session: dict[int, list[Call]] = defaultdict(list)
    of_transaction: dict[tuple[int, int], list[Call]] = defaultdict(list)
    for call in history.calls:
        if call.what in {"keep_alive", "close"}:
            of_session[call.session].append(call)
        elif call.seq:
            of_transaction[call.session, call.seq].append(call)
    found = list(_numbers([call for call in history.calls if call.what == "open"]))
    for (session, seq), calls in of_transaction.items():
        around = [dataclasses.replace(call, seq=seq) for call in of_session[session]]
        if not possible([*calls, *around], Transaction(), model):
            found.append(f"transaction {session}.{seq}: {_told(calls)}")
    for session in {session for session, _ in of_transaction} | of_session.keys():
        shown = [sign for (of, _), calls in of_transaction.items() if of == session for sign in _signs(calls)]
        if not possible([*of_session[session], *shown], Lease(), lease):
            found.append(f"session {session} ends at no moment that fits all of its transactions")
    return found


def _numbers(opened: Sequence[Call]) -> Iterator[str]:
    """Session numbers are used once, and rise."""
    answered = [call for call in opened if call.result is not None]
    numbers = [call.session for call in answered]
    if len(set(numbers)) != len(numbers):
        yield f"a session's number was given out twice: {sorted(numbers)}"
    for call in answered:
        for later in answered:
            if call.answered_at < later.asked_at and call.session >= later.session:
                yield f"session {later.session} was opened after session {call.session}"


def _signs(calls: Sequence[Call]) -> Iterator[Call]:
    """What the calls about one transaction show of its session; nothing, if it ends without regard to it."""
    if any(call.protocol not in {"", "2"} for call in calls):
        return
    calls = [call for call in calls if call.result != "Impostor"]
    committing = [call for call in calls if call.what == "decide" and call.asked == "commit"]
    aborting = [call for call in calls if call.what == "decide" and call.asked == "abort"]
    told = [call for call in calls if call.result in {"commit", "committed"}]
    if told and committing:
        first = min(committing, key=lambda call: call.asked_at)
        ends = min(call.answered_at for call in told)
        yield dataclasses.replace(first, what="can", answered_at=ends, result="shown")
    for call in calls:
        if call.what == "outcome" and call.result == "active":
            yield dataclasses.replace(call, what="can")
        elif call.result in {"abort", "aborted"} and not aborting:
            yield dataclasses.replace(call, what="cannot")


def _told(calls: Sequence[Call]) -> str:
    return "; ".join(
        f"{call.who} {call.what} {call.asked}→{call.result} [{call.asked_at:.6f}, {call.answered_at:.6f}]"
        for call in calls
    )
