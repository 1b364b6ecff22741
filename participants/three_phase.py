"""The states of three-phase commit, and the calls to a participant that only three-phase commit makes.

Two-phase commit records its decision only in the ledger. Three-phase commit also keeps a row in every
participant. These rows survive the loss of the ledger and of the coordinator, so that the outcome can be
found from the participants alone (Skeen, *Nonblocking Commit Protocols*, 1981, §4; Keidar and Dolev,
*Increasing the Resilience of Distributed and Replicated Database Systems*, 1998, §4, "E3PC").

The row is a passive register: the coordinator and the termination change it by compare-and-set, and each
change is a separate committed transaction. The changes of a prepared branch can be neither read nor altered
until the branch ends, so the row is never written inside the branch. Only the state *committed* is: it is a
row of another table that becomes visible exactly when the branch commits.

:data:`TRANSITIONS` is the complete automaton; the protocol, termination, diagrams and tests derive from it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from undoubt.participants.ids import Gid, InvalidName


class BranchState(enum.StrEnum):
    """Skeen's states of one site; each value is one letter."""

    INITIAL = "q"
    """The branch was never enlisted, and can no longer be: it has no vote, so the transaction cannot
    commit."""
    WAIT = "w"
    """The branch is enlisted, and its PREPARE may have been sent. With ``last_attempt`` above 0: the row was
    changed by an attempt to abort in that election (Keidar and Dolev's *pre-abort*)."""
    PRECOMMIT = "p"
    """All branches have voted PREPARED, and this row records it."""
    ABORT = "a"
    """A tombstone: a branch that is prepared under this gid, now or later, is rolled back."""
    COMMIT = "c"
    """The branch has committed."""


class Event(enum.StrEnum):
    """An event that changes a row."""

    ENLIST = "enlist"
    """The coordinator makes the row, before PREPARE."""
    EXCLUDE = "exclude"
    """Termination found no row, and makes it."""
    TRY_COMMIT = "try commit"
    """The coordinator, when all have voted PREPARED, or termination in the attempt of an election."""
    TRY_ABORT = "try abort"
    """Termination with a quorum, in the attempt of an election."""
    COMMIT = "commit"
    """COMMIT PREPARED, after the outcome is fixed."""
    ABORT = "abort"
    """The tombstone is set, after the outcome is fixed."""


class Transition(NamedTuple):
    """One permitted change of a row. ``before`` None: there was no row. ``quorum_only``: Skeen's termination
    never makes it."""

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
    """The rules by which an interrupted transaction can end; the values are the names in the settings
    (:mod:`undoubt.coordinator.protocols.termination_rules`)."""

    QUORUM = "quorum"
    SKEEN = "skeen"


@dataclass(frozen=True, slots=True)
class Charter:
    """The data that is fixed when a transaction is enlisted, and is in every row: all of its branches, by
    number, and the rule by which an interrupted transaction has to end."""

    members: tuple[Gid, ...]
    rule: Termination


def write_members(members: Sequence[Gid]) -> str:
    """The text of ``members`` in a row: complete gids, since a reader of the row cannot make their tags."""
    return " ".join(map(str, members))


def read_members(text: str, gid: Gid) -> tuple[Gid, ...]:
    """The members from the text of :func:`write_members` in the row of ``gid``. Rows of version 0.1.0 have
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

    ``last_elected`` is the greatest election that this row has taken part in; the coordinator of the
    transaction is election 1. ``last_attempt`` is the election whose attempt last set ``state``, 0 if no
    attempt did. Invariant: ``last_attempt <= last_elected``.
    """

    state: BranchState
    last_elected: int
    last_attempt: int
    charter: Charter


class States(Protocol):
    """The rows of one participant. The effect of each call is durable before it returns. All may be called
    after a restart, and by several processes simultaneously. If a call fails with
    :class:`~undoubt.participants.errors.ParticipantError`, its effect may or may not have happened. All may
    be repeated unless their docstring says otherwise."""

    async def enlist(self, gid: Gid, charter: Charter, note: bytes = b"") -> bool:
        """Make the row, in WAIT, before the branch is asked to prepare. ``note`` is
        :meth:`~undoubt.participants.ids.SessionKey.note` of the branch: the commit of the branch is believed
        only with this note. False if there is a row already, from termination or from an earlier call whose
        answer was lost; then the branch must not be prepared. Call it once only."""
        ...

    async def read(self, gid: Gid) -> StateRow | None:
        """The row; None if there is none. Its state is COMMIT if the branch is known to have committed,
        whatever the stored state is."""
        ...

    async def elect(self, gid: Gid, election: int, charter: Charter) -> StateRow | None:
        """Take part in ``election``: from now on no attempt of a lower election changes this row. Returns the
        row after that; it is made, in INITIAL, if there was none. None if the row has taken part in this
        election, or a higher one, already."""
        ...

    async def attempt(self, gid: Gid, election: int, event: Event) -> bool:
        """Apply TRY_COMMIT or TRY_ABORT in ``election``. False if the row did not change, because it takes
        part in another election now, or its state permits no attempt. Repeating a call that returned True
        changes nothing."""
        ...

    async def bury(self, gid: Gid, charter: Charter) -> bool:
        """Set the tombstone; the row is made if there is none. False if the branch has committed."""
        ...

    async def unfinished(self) -> Sequence[tuple[Gid, StateRow]]:
        """The rows whose branch has not committed and that have no tombstone."""
        ...

    async def stale(self, older_than_s: float, buried_s: float) -> Sequence[Gid]:
        """The rows that have not changed for ``older_than_s`` seconds by the participant's clock, and the
        tombstones that have not changed for ``buried_s`` seconds."""
        ...

    async def forget(self, gids: Sequence[Gid]) -> None:
        """Delete the rows of transactions that every participant has finished. No other row may be deleted,
        since termination reads a missing row as INITIAL."""
        ...
