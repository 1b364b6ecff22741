"""The participants of a process by name; they can be added and removed at any time."""

from __future__ import annotations

from collections.abc import Iterator

from undoubt.participants.bounds import having, text
from undoubt.participants.contract import Participant
from undoubt.participants.errors import UnknownParticipant, UsageError
from undoubt.participants.ids import check_participant_name


class Registry:
    """The participants that this process knows. Iteration is in the order of their names."""

    def __init__(self) -> None:
        self._by_name: dict[str, Participant] = {}

    def add(self, participant: Participant) -> None:
        """Register ``participant`` under its name. Raises ``UsageError`` if another participant has or had
        one of its names, since each branch must belong to one database, and if ``participant`` is not a
        participant."""
        having("participant", participant, "a participant", "begin", "in_doubt", "settle")
        name = check_participant_name(participant.name)
        if name in self._by_name:
            raise UsageError(f"participant {name!r} is registered already; remove it first")
        for other in self:
            if shared := sorted(participant.names & other.names):
                raise UsageError(
                    f"participants {name!r} and {other.name!r} both are, or were, called {shared[0]!r}:"
                    " a branch of that name would belong to both"
                )
        self._by_name[name] = participant

    def remove(self, name: str) -> Participant:
        """Unregister the participant and return it, still open. The caller must make sure that none of its
        branches is in doubt."""
        participant = self.get(name)
        del self._by_name[name]
        return participant

    def get(self, name: str) -> Participant:
        """The participant called ``name``. Raises :class:`~undoubt.participants.errors.UnknownParticipant`,
        and ``UsageError`` if ``name`` is not text."""
        text("name", name)
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownParticipant(name, list(self._by_name)) from None

    def find(self, name: str) -> Participant | None:
        """The participant that has or had that name; None if there is none."""
        return self._by_name.get(name) or next((one for one in self if name in one.names), None)

    def names(self) -> list[str]:
        return sorted(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Participant]:
        return iter([self._by_name[name] for name in self.names()])

    def __len__(self) -> int:
        return len(self._by_name)

    async def close(self) -> None:
        """Close every participant."""
        for participant in self:
            await participant.close()
