"""Which participants have the rows of a three-phase commit: they may have been renamed since it began."""

from __future__ import annotations

from collections.abc import Mapping

from undoubt.coordinator.protocols.termination import ANSWER_TIMEOUT_S, Find
from undoubt.participants.contract import Participant
from undoubt.participants.ids import Gid
from undoubt.participants.registry import Registry
from undoubt.participants.tasks import all_within
from undoubt.participants.three_phase import Charter, StateRow


async def finding(charter: Charter, participants: Registry, holders: Mapping[str, Participant]) -> Find:
    """A lookup of participants by the names that they had when the transaction began. ``holders``, by those
    names, have its branches prepared, and win over a participant that has such a name now and may be another
    database. A name that no participant has now belongs to the participant with the row."""
    found = dict(holders)
    for member in charter.members:
        known = member.participant in found or participants.find(member.participant) is not None
        if not known and (holder := await _who_has(member, participants)) is not None:
            found[member.participant] = holder
    return lambda name: found.get(name) or participants.find(name)


async def _who_has(gid: Gid, participants: Registry) -> Participant | None:
    """The participant with the row of ``gid``; None also if that participant does not answer."""
    everyone = list(participants)
    rows = await all_within((_row(participant, gid) for participant in everyone), ANSWER_TIMEOUT_S)
    return next((one for one, row in zip(everyone, rows, strict=True) if isinstance(row, StateRow)), None)


async def _row(participant: Participant, gid: Gid) -> StateRow | None:
    return await participant.states.read(gid)
