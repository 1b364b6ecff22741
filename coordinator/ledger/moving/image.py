"""The whole content of a ledger, in the form that all backends are translated to and from.

An image is the state of the state machine, and the details of finished transactions, which are history. It is
*canonical*: it has only what every backend keeps, so that images of one ledger at two places are equal. It is
made of a sealed ledger: no session is open, so that there are no requests for locks and no causes of aborts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from undoubt.coordinator.ledger.commands import RULES
from undoubt.coordinator.ledger.contract import ACTS_MAX, Act, DecisionRecord, SessionState
from undoubt.coordinator.ledger.keys import Keys
from undoubt.coordinator.ledger.lock_queue import LockTable
from undoubt.coordinator.ledger.move_mark import MoveMark
from undoubt.coordinator.ledger.state import LedgerState, PrecommitRecord
from undoubt.coordinator.ledger.state_machine_ledger import SESSION_SKIP
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant

Recorded = TypeVar("Recorded", DecisionRecord, PrecommitRecord)


class ImageCounts(msgspec.Struct, frozen=True):
    """How much is in an image. ``details``: the finished transactions of which more than the decision is
    kept."""

    sessions: int
    unfinished: int
    finished: int
    precommitted: int
    heuristics: int
    keys: int
    acts: int
    details: int


@dataclass(slots=True)
class LedgerImage:
    """``finished`` has the details of finished transactions."""

    state: LedgerState
    finished: dict[TxId, DecisionRecord] = field(default_factory=dict)

    @property
    def counts(self) -> ImageCounts:
        state = self.state
        books = state.sessions.values()
        return ImageCounts(
            len(books),
            len(state.unfinished),
            sum(len(book.committed) + len(book.aborted) for book in books),
            len(state.precommitted),
            len(state.heuristics),
            len(state.keys.claimed) + len(state.keys.kept),
            len(state.acts),
            len(self.finished),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of everything except the mark of the move, in hexadecimal; equal for equal contents."""
        hashed = hashlib.sha256(canonical(replace(self.state, move=None)).encode())
        for txid in sorted(self.finished):
            hashed.update(msgspec.msgpack.encode(self.finished[txid]))
        return hashed.hexdigest()


def canonical(state: LedgerState) -> LedgerState:
    """``state`` with only what all backends keep of a ledger without open sessions."""
    for book in state.sessions.values():
        invariant(book.state is not SessionState.OPEN, f"session {book.id} is open in a ledger that is moved")
    names = {book.id: book.name for book in state.sessions.values()}

    def named(record: Recorded) -> Recorded:
        name = names.get(record.txid.session, record.coordinator)
        return msgspec.structs.replace(record, coordinator=name)

    keys = state.keys.stored()
    kept = sorted(keys.kept, key=lambda each: (each.kept_ms, each.key))
    acts = sorted(state.acts.values(), key=lambda act: (act.at, act.id))[-ACTS_MAX:]
    return replace(
        state,
        sessions={
            number: replace(state.sessions[number], owner="", acceptors=())
            for number in sorted(state.sessions)
        },
        unfinished={txid: named(record) for txid, record in sorted(state.unfinished.items())},
        precommitted={
            txid: msgspec.structs.replace(named(record), at=0.0)
            for txid, record in sorted(state.precommitted.items())
        },
        heuristics={gid: state.heuristics[gid] for gid in sorted(state.heuristics)},
        doomed={},
        acts={act.id: act for act in acts},
        rules=RULES,
        keys=Keys.loaded(msgspec.structs.replace(keys, kept=kept)),
        locks=LockTable(state.locks.next_token, state.locks.incarnation),
        incoming=[],
    )


def entering(image: LedgerImage, mark: MoveMark, act: Act) -> LedgerImage:
    """What the new place gets: a new incarnation, so that tokens of locks are above all that were issued, and
    numbers of sessions above all that a copy of the old place could issue. Sessions stay as they ended: since
    nothing was decided after the seal, what they have left undecided is aborted as before."""
    state = canonical(image.state)
    return LedgerImage(
        canonical(
            replace(
                state,
                incarnation=state.incarnation + 1,
                next_session=state.next_session + SESSION_SKIP,
                acts=state.acts | {act.id: act},
                move=mark,
            )
        ),
        dict(image.finished),
    )
