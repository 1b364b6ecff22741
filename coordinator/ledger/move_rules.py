"""The commands of a move, as the state machine applies them. Each may be repeated."""

from __future__ import annotations

import hashlib

import msgspec

from undoubt.coordinator.errors import MoveRefused
from undoubt.coordinator.ledger.commands import ReceiveState, SealLedger, SettleMove
from undoubt.coordinator.ledger.contract import SessionState
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, MoveStatus, lives
from undoubt.coordinator.ledger.state import LedgerState

_FROM = {MovePhase.MOVED: MovePhase.SEALED, MovePhase.ARRIVED: MovePhase.ARRIVING}
"""The phase before each phase that :class:`SettleMove` may bring."""


def seal(state: LedgerState, command: SealLedger) -> MoveMark | MoveRefused:
    """Seal the ledger, unless a session is open or another move has sealed it."""
    mark = state.move
    if mark is not None and not lives(mark):
        return mark if mark.id == command.move.id else other_move(mark)
    still_open = [
        f"{book.id} ({book.name})" for book in state.sessions.values() if book.state is SessionState.OPEN
    ]
    if still_open:
        return sessions_open(still_open)
    state.move = command.move
    return command.move


def settle(state: LedgerState, command: SettleMove) -> MoveMark | MoveRefused | None:
    mark = state.move
    if command.phase is None:
        if mark is None or lives(mark):
            return None
        if mark.id != command.move or mark.phase is not MovePhase.SEALED:
            return other_move(mark)
        state.move = None
        return None
    if (settled := settled_mark(mark, command.move, command.phase)) is None:
        return not_in(mark, command.move, command.phase)
    state.move = settled
    return settled


def settled_mark(mark: MoveMark | None, move: str, phase: MovePhase) -> MoveMark | None:
    """``mark`` in ``phase``, if it is that of ``move`` and is in that phase or in the one before; otherwise
    None."""
    if mark is None or mark.id != move or mark.phase not in {phase, _FROM.get(phase)}:
        return None
    return mark.into(phase)


def receive(  # noqa: PLR0911 - one line per rule
    state: LedgerState, command: ReceiveState
) -> LedgerState | MoveMark | MoveRefused:
    """Note a piece. Returns the whole state that was received if this was the last one."""
    mark = state.move
    if command.number == 0:
        if not status_of(state).takes(command.ledger_id):
            return occupied(state.ledger_id)
        state.move, state.incoming = command.move, [command.data]
    elif mark is None or (mark.id, mark.phase) != (command.move.id, MovePhase.ARRIVING):
        return not_in(mark, command.move.id, MovePhase.ARRIVING)
    elif not state.incoming and state.ledger_id == command.ledger_id:
        return mark  # the last piece, whose answer was lost
    elif command.number == len(state.incoming):
        state.incoming.append(command.data)
    elif command.number >= len(state.incoming) or state.incoming[command.number] != command.data:
        return MoveRefused(f"piece {command.number} of move {command.move.id} is not the next: begin again")
    if not command.digest:
        return command.move
    return _whole(b"".join(state.incoming), command)


def _whole(received: bytes, command: ReceiveState) -> LedgerState | MoveRefused:
    if hashlib.sha256(received).hexdigest() != command.digest:
        return MoveRefused(f"the state of move {command.move.id} does not match its digest: begin again")
    try:
        state = LedgerState.decode(received)
    except msgspec.MsgspecError as error:
        return MoveRefused(f"the state of move {command.move.id} cannot be read: {error}")
    state.move = command.move
    return state


def status_of(state: LedgerState) -> MoveStatus:
    """What a move finds where ``state`` is. Acts of operators do not count as use."""
    unused = state.next_session == 1 and not (state.sessions or state.unfinished or state.heuristics)
    return MoveStatus(state.ledger_id, state.move, unused)


def sessions_open(which: list[str]) -> MoveRefused:
    """The error if a ledger that is to be moved has open sessions."""
    listed = ", ".join(which[:10]) + (f" and {len(which) - 10} more" if len(which) > 10 else "")  # noqa: PLR2004
    return MoveRefused(
        f"sessions are open: {listed}. Stop their processes first; the session of a process that was killed"
        " expires by itself: --wait 30s waits for that. Nothing was changed"
    )


def other_move(mark: MoveMark) -> MoveRefused:
    return MoveRefused(f"move {mark.id} to or from {mark.place} is {mark.phase} here")


def not_in(mark: MoveMark | None, move: str, phase: MovePhase) -> MoveRefused:
    found = "there is no move" if mark is None else f"move {mark.id} is {mark.phase}"
    return MoveRefused(f"move {move} cannot become {phase} here: {found}")


def occupied(ledger_id: str) -> MoveRefused:
    """The error if there is a ledger at the new place."""
    return MoveRefused(
        f"there is ledger {ledger_id} already, which has been used: a ledger is moved only to where there is"
        " none, or one without a session"
    )
