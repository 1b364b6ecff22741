"""What a ledger promises: about one transaction, and about one session with all of its transactions.

Expiry and dropping are the ledger's own doing and no call of anybody's: where a result needs them, they have
happened just before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.linearizability.history import Call


class Transaction(NamedTuple):
    """``session`` is open, gone or dropped; ``below``: its floor has passed this transaction."""

    session: str = "open"
    below: bool = False
    decision: str | None = None


def transaction(state: Transaction, call: Call) -> Iterator[Transaction]:
    """Calls about one transaction, and those about its session, which is not dropped."""
    yield from _from([state, state._replace(session="gone")] if state.session == "open" else [state], call)


def droppable_transaction(state: Transaction, call: Call) -> Iterator[Transaction]:
    """The same where retention may have dropped the session."""
    yield from transaction(state, call)
    if state.session != "dropped":
        yield from _from([state._replace(session="dropped")], call)


def _from(states: Iterable[Transaction], call: Call) -> Iterator[Transaction]:
    for state in states:
        if (after := _transaction(state, call)) is not None:
            yield after


def _transaction(state: Transaction, call: Call) -> Transaction | None:
    match call.what:
        case "keep_alive":
            return _keep_alive(state, call)
        case "close":
            return state if state.session != "open" else state._replace(session="gone")
        case "decide":
            return _decide(state, call)
        case "outcome":
            return state if call.result in (None, _outcome(state, call)) else None
        case "record":
            known = "not_recorded" if state.session == "dropped" else state.decision or "not_recorded"
            return state if call.result in (None, known) else None
        case _:
            return state


def _keep_alive(state: Transaction, call: Call) -> Transaction | None:
    if state.session != "open":
        return state if call.result in (None, "SessionLost") else None
    if call.result == "SessionLost":
        return None
    return state._replace(below=state.below or call.floor > call.seq)


def _decide(state: Transaction, call: Call) -> Transaction | None:
    if call.result == "Impostor":
        return state  # judged by the names alone
    if state.session == "dropped":
        return state if call.result is None else None
    if state.decision is not None:
        fits = call.result in (None, state.decision)
        return state if fits or (call.result == "BranchListMismatch" and state.decision == "commit") else None
    fenced = state.session != "open" or state.below
    decided = "abort" if fenced and call.protocol == "2" else call.asked
    return state._replace(decision=decided) if call.result in (None, decided) else None


def _outcome(state: Transaction, call: Call) -> str:
    if state.session == "dropped":
        return "forgotten"
    if state.decision is not None:
        return "committed" if state.decision == "commit" else "aborted"
    if call.protocol != "2":
        return "ask_protocol"  # it has a termination of its own, and no session's end presumes anything
    return "aborted" if state.session != "open" or state.below else "active"


class Lease(NamedTuple):
    """A session by itself."""

    gone: bool = False
    floor: int = 1


def lease(state: Lease, call: Call) -> Iterator[Lease]:
    """``keep_alive`` and ``close``; and of transactions only what shows whether the session could still
    commit them: ``can`` (it could) and ``cannot``."""
    match call.what:
        case "keep_alive" if call.result == "SessionLost":
            yield state._replace(gone=True)
        case "keep_alive":
            if not state.gone:
                yield state._replace(floor=max(state.floor, call.floor))
            elif call.result is None:
                yield state
        case "close":
            yield state._replace(gone=True)
        case "can":
            if not state.gone and call.seq >= state.floor:
                yield state
        case "cannot":
            yield state if call.seq < state.floor else state._replace(gone=True)
        case _:
            pass
