"""What a branch uses of its participant, and what it tells it of a plain COMMIT that was not answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from undoubt.participants.contract import Decision, Evidence, Settled
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.pool import Slot
from undoubt.participants.postgres.session import ServerSession


@dataclass(frozen=True, slots=True)
class Lost:
    """A branch whose plain COMMIT was not answered.

    ``session`` is the lost session. ``proof`` is the proof of the note that was sent before COMMIT, empty if
    there was no note. ``evidence`` is that of the branch, None if it was not known before COMMIT was sent.
    ``certain``: COMMIT could not be executed without the note, so that a missing note proves that the branch
    has not committed.
    """

    session: ServerSession
    gid: Gid
    proof: bytes = field(repr=False)
    evidence: Evidence | None
    certain: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The values and functions of its participant that a branch uses."""

    name: str
    settle: Callable[[Gid, Decision, Evidence | None], Awaitable[Settled]]
    """Ends a prepared branch if its own session could not."""
    look_up: Callable[[Lost], Awaitable[Settled]]
    """Returns the outcome of a plain COMMIT."""
    give_back: Callable[[Slot[Any]], None]
    draw_history: Callable[[], Awaitable[None]]
    """Draws a history id for later branches; never fails."""
    statement_timeout_s: float
    owners: tuple[str, ...]
    """From the settings: roles that prepare its branches, besides the login role and the roles granted to
    it."""
