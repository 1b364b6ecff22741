"""The errors of the ground floor, and the root of the whole tree.

::

    UndoubtError
    ├── UsageError                 the caller's mistake: nothing happened, the call was refused
    │   ├── UnknownParticipant
    │   └── WrongLoop              used in another event loop than that in which it was opened
    └── ParticipantError           a database misbehaves or is not there; ``participant`` names it
        ├── ParticipantUnavailable   no answer: down, unreachable, connection lost, busy for too long
        ├── ParticipantRefused       an answer, and it is no: wrong password, not set up, a standby, no right
        └── BranchFailed             this branch can not go on; its transaction aborts

``undoubt.errors`` draws the whole tree with what the other rooms add.
"""

from __future__ import annotations


class UndoubtError(Exception):
    """Everything that undoubt raises on purpose."""


class UsageError(UndoubtError):
    """The API was used in a way that cannot work. The call had no effect."""


class WrongLoop(UsageError):
    """A coordinator, a transaction or a branch was used in another event loop than its own. The call had no
    effect; open a coordinator in each loop."""


class UnknownParticipant(UsageError):
    """No participant of that name is registered."""

    def __init__(self, name: str, known: list[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"unknown participant {name!r}; registered: {listed}."
            f" Add [participants.{name}] with its dsn to undoubt.toml, or coordinator.add_participant()"
        )
        self.name = name
        self.known = sorted(known)


class ParticipantError(UndoubtError):
    """Something about one participant. ``sqlstate`` is PostgreSQL's code where it gave one."""

    def __init__(self, participant: str, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(f"participant {participant!r}: {message}")
        self.participant = participant
        self.sqlstate = sqlstate


class ParticipantUnavailable(ParticipantError):
    """The participant gave no answer. Whatever was asked may or may not have happened."""


class ParticipantRefused(ParticipantError):
    """The participant answered no, and will until somebody changes its set-up. Nothing happened."""


class ParticipantMisconfigured(ParticipantRefused):
    """Its dsn, or what that leads to, is none: no server was asked."""


class BranchFailed(ParticipantError):
    """The branch is over, by its own fault or the application's; it has not committed."""
