"""The mark that a move leaves in a ledger, at the place from which it is moved and at the new place.

========  ============  =========  ==========================================================================
phase     at            answers    what may follow
========  ============  =========  ==========================================================================
sealed    the old one   nothing    *moved*; or no mark, if the move is undone
moved     the old one   nothing    nothing, unless the ledger is moved back
arriving  the new one   nothing    *arrived*, once the old one is *moved*
arrived   the new one   all calls  as for a ledger without a mark
========  ============  =========  ==========================================================================

So at most one place answers, wherever the moving process dies (:mod:`.moving`)."""

from __future__ import annotations

import enum

import msgspec

from undoubt.coordinator.errors import LedgerMoved


class MovePhase(enum.StrEnum):
    SEALED = "sealed"
    MOVED = "moved"
    ARRIVING = "arriving"
    ARRIVED = "arrived"


class MoveMark(msgspec.Struct, frozen=True, array_like=True):
    """``id`` names the move; ``place`` is the URL of the other place, without a password; ``at`` is a wall
    clock, in seconds since 1970, for operators."""

    id: str
    place: str
    at: float
    phase: MovePhase

    def into(self, phase: MovePhase) -> MoveMark:
        return msgspec.structs.replace(self, phase=phase)


class MoveStatus(msgspec.Struct, frozen=True, array_like=True):
    """What a move finds at a place. ``unused``: no session was ever
    opened there."""

    ledger_id: str
    mark: MoveMark | None
    unused: bool = False

    def takes(self, ledger_id: str) -> bool:
        """Whether ledger ``ledger_id`` may be moved here: nothing was recorded here, or it is what an earlier
        move of the same ledger has left."""
        left = self.mark is not None and self.mark.phase in {MovePhase.ARRIVING, MovePhase.MOVED}
        return self.unused or (left and self.ledger_id == ledger_id)


def lives(mark: MoveMark | None) -> bool:
    """Whether the ledger with this ``mark`` answers calls."""
    return mark is None or mark.phase is MovePhase.ARRIVED


def gone(mark: MoveMark) -> LedgerMoved:
    """The error of every call at a place where the ledger does not live."""
    match mark.phase:
        case MovePhase.MOVED:
            why = (
                f"this ledger was moved to {mark.place} (move {mark.id}), and answers nothing here: set"
                f" ledger.url to {mark.place}"
            )
        case MovePhase.SEALED:
            why = (
                f"this ledger is being moved to {mark.place} (move {mark.id}), and answers nothing until that"
                f" is complete: repeat `undoubt ledger move --to {mark.place}`, or give the move up with"
                " `undoubt ledger move --undo`"
            )
        case _:
            why = (
                f"a ledger is being moved here from {mark.place} (move {mark.id}), and answers nothing until"
                " that is complete: repeat `undoubt ledger move` with the configuration of the old place. If"
                " the move was undone, this copy is of no use: a later move replaces it"
            )
    return LedgerMoved(why)


def check_lives(mark: MoveMark | None) -> None:
    """Raise ``LedgerMoved`` if the ledger with this ``mark`` does not live here."""
    if mark is not None and not lives(mark):
        raise gone(mark)
