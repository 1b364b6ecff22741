"""Which of today's participants have the rows of a three-phase commit: they may have been renamed since."""

from __future__ import annotations

from collections.abc import Mapping

from undoubt.coordinator.protocols.termination import ANSWER_TIMEOUT_S, Find
from undoubt.coordinator.uncancellable import all_within
from undoubt.participants.contract import Participant
from undoubt.participants.ids import Gid
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import Charter, StateRow


async def finding(charter: Charter, participants: Registry, holders: Mapping[str, Participant]) -> Find:
    """Participants by the names that they had when the transaction was begun. ``holders``, by
    those names, have its branches prepared: what has such a name now may be another database. A name that
    nobody has any more is that of whoever has the row."""
    found = dict(holders)
    for member in charter.members:
        known = member.participant in found or participants.find(member.participant) is not None
        if not known and (holder := await _who_has(member, participants)) is not None:
            found[member.participant] = holder
    return lambda name: found.get(name) or participants.find(name)


async def _who_has(gid: Gid, participants: Registry) -> Participant | None:
    """None also if whoever has its row does not answer."""
    everyone = list(participants)
    rows = await all_within((_row(participant, gid) for participant in everyone), ANSWER_TIMEOUT_S)
    return next((one for one, row in zip(everyone, rows, strict=True) if isinstance(row, StateRow)), None)


async def _row(participant: Participant, gid: Gid) -> StateRow | None:
    return await participant.states.read(gid)
