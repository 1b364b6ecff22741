"""Three-phase commit's states, and what it asks of a participant besides the contract.

Two-phase commit keeps its decision in the ledger alone. Three-phase commit also keeps a row in every
participant that survives the ledger and the coordinator, so that the participants can find out the outcome
among themselves (Skeen, *Nonblocking Commit Protocols*, 1981, §4; Keidar and Dolev, *Increasing the
Resilience of Distributed and Replicated Database Systems*, 1998, §4, "E3PC").

The row is a passive register: whoever terminates a transaction changes it by compare-and-set, each change a
committed transaction of its own. A prepared branch's own changes can be neither read nor altered until it
ends, so the row is never written inside the branch; only *committed* is, as a row of another table that
becomes visible exactly when the branch commits.

:data:`TRANSITIONS` is the whole automaton; protocol, termination, diagrams and tests derive from it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from undoubt.participants.ids import Gid, InvalidName


class BranchState(enum.StrEnum):
    """Skeen's states of one site, as one letter each."""

    INITIAL = "q"
    """It was never enlisted, and never can be any more: it has no vote, so nothing can commit."""
    WAIT = "w"
    """Enlisted: its PREPARE may have been sent. With ``last_attempt`` above 0: asked to abort in that
    attempt (Keidar and Dolev's *pre-abort*)."""
    PRECOMMIT = "p"
    """All branches have voted PREPARED, and this one was told so."""
    ABORT = "a"
    """A tombstone: whatever is prepared under it, now or later, is rolled back."""
    COMMIT = "c"
    """The branch has committed."""


class Event(enum.StrEnum):
    """What moves a row."""

    ENLIST = "enlist"
    """By the coordinator, before PREPARE."""
    EXCLUDE = "exclude"
    """By termination, which found no row."""
    TRY_COMMIT = "try commit"
    """By the coordinator when all have voted PREPARED; by termination in an election's attempt."""
    TRY_ABORT = "try abort"
    """By termination with a quorum, in an election's attempt."""
    COMMIT = "commit"
    """COMMIT PREPARED, once the outcome is fixed."""
    ABORT = "abort"
    """The tombstone, once the outcome is fixed."""


class Transition(NamedTuple):
    """``before`` None: there was no row. ``quorum_only``: never made by Skeen's own termination."""

    before: BranchState | None
    event: Event
    after: BranchState
    quorum_only: bool = False


_Q, _W, _P = BranchState.INITIAL, BranchState.WAIT, BranchState.PRECOMMIT
_A, _C = BranchState.ABORT, BranchState.COMMIT

TRANSITIONS: tuple[Transition, ...] = (
    Transition(None, Event.ENLIST, _W),
    Transition(None, Event.EXCLUDE, _Q),
    Transition(_W, Event.TRY_COMMIT, _P),
    Transition(_P, Event.TRY_COMMIT, _P),
    Transition(_W, Event.TRY_ABORT, _W, quorum_only=True),
    Transition(_P, Event.TRY_ABORT, _W, quorum_only=True),
    Transition(_P, Event.COMMIT, _C),
    Transition(_W, Event.COMMIT, _C, quorum_only=True),
    Transition(_Q, Event.ABORT, _A),
    Transition(_W, Event.ABORT, _A),
    Transition(_P, Event.ABORT, _A, quorum_only=True),
    Transition(_A, Event.ABORT, _A),
    Transition(_C, Event.COMMIT, _C),
)


def sources(event: Event) -> frozenset[BranchState]:
    """The states that ``event`` may be applied to."""
    return frozenset(t.before for t in TRANSITIONS if t.event is event and t.before is not None)


class Termination(enum.StrEnum):
    """The rules by which an interrupted transaction can end, by the names that users choose
    (:mod:`undoubt.coordinator.protocols.termination_rules`)."""

    QUORUM = "quorum"
    SKEEN = "skeen"


@dataclass(frozen=True, slots=True)
class Charter:
    """What is fixed when a transaction is enlisted and stands in every row: all of its branches, by number,
    and the rule by which whoever comes later has to end it."""

    members: tuple[Gid, ...]
    rule: Termination


def write_members(members: Sequence[Gid]) -> str:
    """The list as it stands in a row: full gids, since nobody else can make up their tags."""
    return " ".join(map(str, members))


def read_members(text: str, gid: Gid) -> tuple[Gid, ...]:
    """The inverse of :func:`write_members`, in the row of ``gid``. Rows of version 0.1.0 have
    ``<branch number>:<participant>`` in place of a gid. Raises ``InvalidName``."""
    return tuple(_read_member(part, gid) for part in text.split(" "))


def _read_member(text: str, gid: Gid) -> Gid:
    member = Gid.parse(text)
    if isinstance(member, Gid) and member.txid == gid.txid:
        return member
    number, _, participant = text.partition(":")
    if gid.tag or not number.isdecimal():
        raise InvalidName(f"{text!r} in the row of {gid} is not a branch of that transaction")
    return Gid(gid.ledger, gid.protocol, gid.txid, int(number), participant)


@dataclass(frozen=True, slots=True)
class StateRow:
    """One participant's record of one transaction.

    ``last_elected`` is the greatest election that this row has taken part in; the transaction's own
    coordinator is election 1. ``last_attempt`` is the election in whose attempt ``state`` was last set, 0 if
    in none. Invariant: ``last_attempt <= last_elected``.
    """

    state: BranchState
    last_elected: int
    last_attempt: int
    charter: Charter


class States(Protocol):
    """The rows of one participant. Each call is durable before it answers, may be called after a restart, by
    several processes at once, and fails with :class:`~undoubt.participants.errors.ParticipantError`; then it
    may or may not have happened. All may be repeated unless they say otherwise."""

    async def enlist(self, gid: Gid, charter: Charter, note: bytes = b"") -> bool:
        """Make the row, in WAIT, before the branch is asked to prepare. ``note`` is
        :meth:`~undoubt.participants.ids.SessionKey.note` of the branch: a commit is believed only beside it.
        False if there is a row already: termination was here first, or an earlier call whose answer was lost;
        the branch must not be prepared then. Once only."""
        ...

    async def read(self, gid: Gid) -> StateRow | None:
        """The row; None if there is none. COMMIT if the branch is seen to have committed, whatever the row
        says."""
        ...

    async def elect(self, gid: Gid, election: int, charter: Charter) -> StateRow | None:
        """Take part in ``election``: no attempt of a lower one changes this row any more. The row as it is
        then; made, in INITIAL, if there was none. None if it took part in one as high or higher."""
        ...

    async def attempt(self, gid: Gid, election: int, event: Event) -> bool:
        """TRY_COMMIT or TRY_ABORT in ``election``. False if the row did not change: it takes part in another
        election by now, or is past all attempts. Repeated with True, it changes nothing more."""
        ...

    async def bury(self, gid: Gid, charter: Charter) -> bool:
        """Set the tombstone; the row is made if there is none. False if the branch has committed."""
        ...

    async def unfinished(self) -> Sequence[tuple[Gid, StateRow]]:
        """Rows whose branch has neither committed nor been buried."""
        ...

    async def stale(self, older_than_s: float, buried_s: float) -> Sequence[Gid]:
        """Rows that have not changed for so many seconds of the participant's own clock; tombstones for
        ``buried_s``."""
        ...

    async def forget(self, gids: Sequence[Gid]) -> None:
        """Delete the rows of transactions that every participant has finished: a row that is missed by a
        termination reads as INITIAL, so nothing else may be forgotten."""
        ...
