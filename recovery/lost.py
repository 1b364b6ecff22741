"""The branches that a lost ledger has left prepared: they are looked for before another ledger is made in its
place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from undoubt.participants.contract import Participant, PreparedBranch
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.plural import plural
from undoubt.participants.registry import Registry
from undoubt.recovery.scan import of_lost_ledger


@dataclass(frozen=True, slots=True)
class LeftoverBranches:
    """``branches`` have the name, database and owner of this installation's branches and belong to another
    ledger; each stands beside the name of its participant. ``unreachable`` has the participants that did not
    answer, and why."""

    branches: tuple[tuple[str, Gid], ...]
    unreachable: Mapping[str, ParticipantError]

    @property
    def ledgers(self) -> list[str]:
        """Ids of the ledgers; the one with the most branches is first."""
        count: dict[str, int] = {}
        for _, gid in self.branches:
            count[gid.ledger] = count.get(gid.ledger, 0) + 1
        return sorted(count, key=lambda one: (-count[one], one))

    def by_participant(self) -> list[tuple[str, int, list[str]]]:
        """For each participant its name, the number of its branches, and the ids of their ledgers."""
        names = sorted({name for name, _ in self.branches})
        return [
            (
                name,
                sum(name == each for each, _ in self.branches),
                sorted({gid.ledger for each, gid in self.branches if each == name}),
            )
            for name in names
        ]

    def in_words(self) -> str:
        """One sentence for an operator."""
        names = ", ".join(sorted({name for name, _ in self.branches}))
        ledgers = " and ".join(self.ledgers)
        count = plural(len(self.branches), "branch is", "branches are")
        return f"{count} prepared in {names} for ledger {ledgers}"


async def branches_left(participants: Registry) -> LeftoverBranches:
    """Ask all participants at once. Their errors are in the result."""
    everyone = list(participants)
    lists = await asyncio.gather(*map(_of_one, everyone))
    found: list[tuple[str, Gid]] = []
    unreachable: dict[str, ParticipantError] = {}
    for participant, listed in zip(everyone, lists, strict=True):
        if isinstance(listed, ParticipantError):
            unreachable[participant.name] = listed
            continue
        found += [
            (participant.name, branch.gid)
            for branch in listed
            if isinstance(branch.gid, Gid) and of_lost_ledger(participant, branch)
        ]
    return LeftoverBranches(tuple(found), unreachable)


async def _of_one(participant: Participant) -> list[PreparedBranch] | ParticipantError:
    try:
        return list(await participant.in_doubt())
    except ParticipantError as error:
        return error
