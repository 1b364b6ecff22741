"""Runs all checks, also after one has failed, and collects their findings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from undoubt import wiring
from undoubt.config import Settings
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.settings import PROTOCOLS
from undoubt.doctor.cluster import look_at_nodes
from undoubt.doctor.configuration import look_at_configuration
from undoubt.doctor.ledger import look_at_ledger, missing, not_opened, room_beside
from undoubt.doctor.orphans import look_at_left, look_at_prepared
from undoubt.participants.findings import Finding
from undoubt.participants.ids import Protocol, new_ledger_id
from undoubt.participants.registry import Registry
from undoubt.recovery.lost import branches_left
from undoubt.recovery.operator.survey import SurveyedBranch, survey

_NO_LINE = (
    "The ledger made none of the names of that role's branches, so no line is printed: if the role is one of"
    " yours, put it into owners, and undoubt participants grants prints the rest"
)


async def examine(
    settings: Settings, *, older_than_s: float, only: Collection[str] | None = None
) -> list[Finding]:
    """The findings: first those that are about no participant, then those of each participant, in the order
    of the participants' names.

    ``only`` names participants: then the findings are about these alone, except for a ledger that cannot be
    opened. A branch that has been prepared for ``older_than_s`` seconds counts as left behind.
    """
    findings: list[Finding] = []
    if only is None:
        findings += [*look_at_configuration(settings), *await look_at_nodes(settings.ledger)]
    if (lacks := missing(settings.ledger)) is not None:
        return findings + [lacks] + await _without_ledger(settings, only)
    async with contextlib.AsyncExitStack() as stack:
        try:
            ledger, participants = await stack.enter_async_context(wiring.opened(settings))
            chosen = _chosen(participants, only)
            # Concurrently: each of the two waits for participants that do not answer.
            protocol = PROTOCOLS[settings.coordinator.protocol]
            checked, seen = await asyncio.gather(_checks(chosen, protocol), survey(ledger, chosen))
            if only is None:
                findings += await look_at_ledger(ledger, settings, older_than_s)
        except LedgerError as error:
            await stack.aclose()
            room = room_beside(settings.ledger) if only is None else []
            return [*findings, *not_opened(error), *room, *await _without_ledger(settings, only)]
        for participant in chosen:
            findings += vouched(checked[participant.name], seen.found)
            findings += await look_at_prepared(participant, seen, older_than_s)
        return findings


def vouched(findings: Sequence[Finding], seen: Sequence[SurveyedBranch]) -> list[Finding]:
    """``findings`` without the ``fix`` of those that would trust a role none of whose branches has a name
    that the ledger made: any role that may connect can prepare under any gid and use any application_name."""
    lines = {(found.participant, found.fix) for found in seen}
    return [
        replace(finding, fix=None, why=f"{finding.why}. {_NO_LINE}")
        if finding.unproved and (finding.participant, finding.fix) not in lines
        else finding
        for finding in findings
    ]


async def _without_ledger(settings: Settings, only: Collection[str] | None) -> list[Finding]:
    """The findings about the participants if there is no ledger. The outcome of prepared branches is not
    known then; all other checks run."""
    participants = wiring.registry(settings, new_ledger_id())
    try:
        chosen = _chosen(participants, only)
        checked = await _checks(chosen, PROTOCOLS[settings.coordinator.protocol])
        left = await branches_left(chosen)
    finally:
        await participants.close()
    found = [finding for name in sorted(checked) for finding in vouched(checked[name], [])]
    return [*found, *look_at_left(left)]


def _chosen(participants: Registry, only: Collection[str] | None) -> Registry:
    """Raises ``UnknownParticipant``."""
    if only is None:
        return participants
    chosen = Registry()
    for name in sorted(set(only)):
        chosen.add(participants.get(name))
    return chosen


async def _checks(participants: Registry, protocol: Protocol) -> dict[str, list[Finding]]:
    chosen = list(participants)
    checked = await asyncio.gather(*(one.check(protocol=protocol) for one in chosen))
    return {one.name: list(found) for one, found in zip(chosen, checked, strict=True)}
