"""What a branch is given: the application's side of its session, and the participant around it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from undoubt.participants.postgres.one_phase import OnePhase
from undoubt.participants.postgres.pool import Slot
from undoubt.participants.postgres.session import ServerError
from undoubt.participants.postgres.settle import Settler

_BLANK = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_OUTLIVES = re.compile(rf"(?:^|;){_BLANK}(?:(?:prepare|load)\b|do\b.*\bload\b)", re.IGNORECASE | re.DOTALL)


def outlives_reset(statement: str) -> bool:
    """Whether it leaves something in its session that nothing but the session's end takes away: a statement
    that was prepared by SQL, a library that was loaded.

    False does not say that it leaves nothing. The server tells of prepared statements when the session is
    reset; of a library that a function has loaded nobody tells."""
    return _OUTLIVES.search(statement) is not None


class Handle(Protocol):
    """The application's side of a branch: the driver's connection with the exits locked."""

    undoubt_why: Callable[[], Exception] | None
    """What every use raises after ``undoubt_end``, in the place of ``UsageError``: the transaction was
    aborted while the application worked."""
    undoubt_failure: ServerError | None
    """The last error that a statement of the application got, as far as that is known."""

    @property
    def undoubt_used(self) -> bool:
        """The application has sent something: the session must be reset before its next use."""
        ...

    @property
    def undoubt_wrote(self) -> bool:
        """Some statement is known to have changed something."""
        ...

    @property
    def undoubt_reusable(self) -> bool:
        """The session may be lent to another branch."""
        ...

    @property
    def undoubt_stale(self) -> bool:
        """A statement failed since what was prepared for it is not valid any more."""
        ...

    def undoubt_end(self) -> bool:
        """From now on every use raises ``UsageError``, or what ``undoubt_why`` gives. True if the application
        is in the middle of something all the same (a statement that runs, a pipeline, a COPY): then nobody
        else may speak on the session, and it has to be discarded. May be repeated."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a branch needs of its participant."""

    name: str
    settler: Settler
    one_phase: OnePhase
    give_back: Callable[[Slot[Any]], None]
    draw_history: Callable[[], Awaitable[None]]
    """For the branches to come; never fails."""
    statement_timeout_s: float
    owners: tuple[str, ...]
    """The settings': roles that prepare its branches, besides the obvious ones."""
