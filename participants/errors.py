"""The errors of participants, and the root of all errors of undoubt.

::

    UndoubtError
    ├── UsageError                 a mistake of the caller: the call was refused and had no effect
    │   ├── UnknownParticipant
    │   └── WrongLoop              used in an event loop other than the one that opened it
    └── ParticipantError           an error of one database; ``participant`` names it
        ├── ParticipantUnavailable   no answer: down, unreachable, connection lost, too slow
        ├── ParticipantRefused       a refusal: wrong password, not set up, a standby, no right
        └── BranchFailed             this branch cannot continue; its transaction aborts
            └── StaleLock                another holder of a lock has been seen: this one has lost it

``undoubt.errors`` draws the whole tree with the errors of the other rooms.
"""

from __future__ import annotations


class UndoubtError(Exception):
    """The base class of all errors that undoubt raises on purpose."""


class UsageError(UndoubtError):
    """The API was used in a way that cannot work. The call had no effect."""


class WrongLoop(UsageError):
    """A coordinator, a transaction or a branch was used in an event loop other than its own. The call had
    no effect; open a coordinator in each loop."""


class UnknownParticipant(UsageError):
    """No participant of that name is registered."""

    def __init__(self, name: str, known: list[str]) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"unknown participant {name!r}; registered: {listed}."
            f" Add [participants.{name}] with its dsn to undoubt.toml"
        )
        self.name = name
        self.known = sorted(known)


class ParticipantError(UndoubtError):
    """An error of one participant. ``sqlstate`` is PostgreSQL's code where the server sent one."""

    def __init__(self, participant: str, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(f"participant {participant!r}: {message}")
        self.participant = participant
        self.sqlstate = sqlstate


class ParticipantUnavailable(ParticipantError):
    """The participant gave no answer. The requested action may or may not have happened."""


class ParticipantRefused(ParticipantError):
    """The participant refused, and will refuse until its configuration is changed. Nothing happened."""


class ParticipantMisconfigured(ParticipantRefused):
    """The dsn, or a file or value that the dsn refers to, is invalid: no server was asked."""


class BranchFailed(ParticipantError):
    """The branch cannot continue, because of an error of the branch or of the application; it has not
    committed."""


class StaleLock(BranchFailed):
    """The token of a lock is lower than one that the database has seen: another holder has the lock now, or
    had it since. The branch can only be rolled back."""
