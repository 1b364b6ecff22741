"""Participants by name, added and removed while the system runs."""

from __future__ import annotations

from collections.abc import Iterator

from participants.contract import Participant
from participants.errors import UnknownParticipant, UsageError
from participants.ids import check_participant_name


class Registry:
    """The participants that this process knows. Iterating gives them by name, in a stable order."""

    def __init__(self) -> None:
        self._by_name: dict[str, Participant] = {}

    def add(self, participant: Participant) -> None:
        """Register ``participant`` under its name; a name that is taken raises ``UsageError``."""
        name = check_participant_name(participant.name)
        if name in self._by_name:
            raise UsageError(f"participant {name!r} is registered already; remove it first")
        self._by_name[name] = participant

    def remove(self, name: str) -> Participant:
        """Unregister and return it, still open. Whoever calls has made sure nothing of it is unresolved."""
        participant = self.get(name)
        del self._by_name[name]
        return participant

    def get(self, name: str) -> Participant:
        """Raises :class:`~participants.errors.UnknownParticipant`."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownParticipant(name, list(self._by_name)) from None

    def find(self, name: str) -> Participant | None:
        """None if there is none of that name."""
        return self._by_name.get(name)

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
