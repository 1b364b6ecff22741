"""Everything that is prepared in any participant, and what the ledger says about it.

First all participants are asked for their lists, then the ledger for the outcomes: in the opposite order a
transaction that is decided in between would look undecided.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from undoubt.coordinator.ledger.contract import Heuristic, Ledger, RecordedDecision, Verdict
from undoubt.participants.contract import Decision, Evidence, Participant, PreparedBranch
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Foreign, Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.errors import Conflict, NotAllSeen, NotPrepared
from undoubt.recovery.plan import BranchStanding
from undoubt.recovery.scan import of_lost_ledger, standings, why_impostor

ROLE_GONE = "its role is gone; only a superuser can finish it"
_OWNER_SILENT = "it names participant {0!r}, which does not answer: whether this is its database is not known"


@dataclass(frozen=True, slots=True)
class SurveyedBranch:
    """One prepared branch, the participant that lists it, and its standing."""

    participant: str
    branch: PreparedBranch
    standing: BranchStanding
    why: str
    """The standing as a reason, for an operator."""
    fix: str | None = None
    """For an impostor whose name and database are right and only whose owner is not a role of the
    participant: the GRANT, or the line of configuration, that makes it a branch of this ledger. For a decided
    branch of ours whose role was dropped: the statement for a superuser."""

    @property
    def asks_agent(self) -> bool:
        """Whether it is undecided, and the row at the agent of last-agent commit decides."""
        return self.standing is BranchStanding.ASK_PROTOCOL and (
            isinstance(self.branch.gid, Gid) and self.branch.gid.protocol is Protocol.LAST
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that was found, oldest first. If ``unreachable`` is not empty, there may be more."""

    found: tuple[SurveyedBranch, ...]
    heuristics: tuple[Heuristic, ...]
    """The open heuristic outcomes, each with the decision that is recorded by now."""
    unreachable: dict[str, ParticipantError]
    known: tuple[Heuristic, ...] = ()
    """All heuristic outcomes, also the forgotten ones."""
    ledger_error: str = ""
    """Why the ledger did not answer: then no standing is known."""

    def siblings(self, found: SurveyedBranch) -> list[Heuristic]:
        """Heuristic outcomes of other branches of the same transaction."""
        gid = found.branch.gid
        if not isinstance(gid, Gid) or not found.standing.ours:
            return []
        return [one for one in self.known if one.gid.txid == gid.txid and one.gid != gid]

    def of(self, name: Gid | Foreign | TxId) -> list[SurveyedBranch]:
        """The branches that a gid or a transaction id names."""
        return [
            one
            for one in self.found
            if one.branch.gid == name or (isinstance(one.branch.gid, Gid) and one.branch.gid.txid == name)
        ]

    def one(self, gid: Gid | Foreign, participant: str = "") -> SurveyedBranch:
        """The prepared transaction of that name, in ``participant`` if one is named. Of several in different
        databases the one that is a branch of this ledger. Raises ``NotPrepared``, ``NotAllSeen`` if a
        participant did not answer, and ``Conflict`` if there are several and none is a branch."""
        found = [one for one in self.of(gid) if participant in {"", one.participant}]
        found = [one for one in found if one.standing.ours] or found
        if len(found) > 1:
            names = " and in ".join(one.participant for one in found)
            raise Conflict(f"{gid} is prepared in {names}: name one of them with --participant")
        if found:
            return found[0]
        if self.unreachable:
            names = ", ".join(f"{name} ({error})" for name, error in self.unreachable.items())
            raise NotAllSeen(f"{gid} was not found, but not all participants answered: {names}")
        more = f"; what the ledger knows of it: undoubt tx show {gid.txid}" if isinstance(gid, Gid) else ""
        where = f"participant {participant!r}" if participant else "any participant"
        raise NotPrepared(f"no prepared branch {gid} in {where}{more}")

    def older_than(self, seconds: float) -> Survey:
        """What has been prepared for at least that long, and the outcomes that were found so long ago."""
        return replace(
            self,
            found=tuple(one for one in self.found if one.branch.age_s >= seconds),
            heuristics=tuple(one for one in self.heuristics if time.time() - one.found_at >= seconds),
        )

    def in_doubt(self) -> list[SurveyedBranch]:
        """The branches of this ledger, or of a lost one."""
        return [one for one in self.found if one.standing.in_doubt]


async def survey(ledger: Ledger, participants: Registry) -> Survey:
    """Ask all participants at once, then the ledger. A participant that fails is in ``unreachable``."""
    seen, unreachable = await _prepared(participants)
    stands = await standings(ledger, seen)
    silent = [participants.get(name) for name in unreachable]
    found = [
        SurveyedBranch(participant.name, branch, *await _judged(ledger, participant, branch, stand, silent))
        for (participant, branch), stand in zip(seen, stands, strict=True)
    ]
    found.sort(key=_oldest_first)
    known = tuple(await ledger.heuristics(include_forgotten=True))
    opened = [await _with_decision(ledger, one) for one in known if not one.forgotten]
    return Survey(tuple(found), tuple(opened), unreachable, known)


async def _with_decision(ledger: Ledger, one: Heuristic) -> Heuristic:
    """``one`` with the decision that was recorded after it."""
    if one.decision is not None:
        return one
    info = await ledger.transaction(one.gid.txid)
    if info is None or info.record is RecordedDecision.NOT_RECORDED:
        return one
    return msgspec.structs.replace(one, decision=Decision(str(info.record)))


async def survey_alone(participants: Registry, ledger_error: str, *, lost: bool = False) -> Survey:
    """What is prepared in any participant, while the ledger does not answer or does not exist (``lost``)."""
    seen, unreachable = await _prepared(participants)
    found = []
    for participant, branch in seen:
        ours = isinstance(branch.gid, Gid)
        stand = BranchStanding.NOT_KNOWN if ours else BranchStanding.FOREIGN
        if lost and of_lost_ledger(participant, branch):
            stand = BranchStanding.LOST_LEDGER
        gone = f"; {ROLE_GONE}" if ours and branch.owner_gone else ""
        found.append(SurveyedBranch(participant.name, branch, stand, f"{stand.why}{gone}"))
    found.sort(key=_oldest_first)
    return Survey(tuple(found), (), unreachable, ledger_error=ledger_error)


def _statement(gid: Gid | Foreign, stands: BranchStanding) -> str | None:
    """What ends a branch as is decided."""
    name = str(gid).replace("'", "''")
    match stands:
        case BranchStanding.COMMITTED:
            return f"COMMIT PREPARED '{name}';"
        case BranchStanding.ABORTED:
            return f"ROLLBACK PREPARED '{name}';"
        case _:
            return None


def _oldest_first(one: SurveyedBranch) -> tuple[float, str]:
    return -one.branch.age_s, str(one.branch.gid)


async def _prepared(
    participants: Registry,
) -> tuple[list[tuple[Participant, PreparedBranch]], dict[str, ParticipantError]]:
    everyone = list(participants)
    lists = await asyncio.gather(*(_list(participant) for participant in everyone))
    unreachable: dict[str, ParticipantError] = {}
    found: dict[str, list[tuple[str, PreparedBranch]]] = {}
    lists = await _of_late_owners(participants, everyone, lists)
    for participant, listed in zip(everyone, lists, strict=True):
        if isinstance(listed, ParticipantError):
            unreachable[participant.name] = listed
            continue
        for branch in listed:
            of_name = found.setdefault(str(branch.gid), [])
            # Two participants may be one database: the branch is one, under the name it was begun with. On
            # another server it is another prepared transaction, whatever its name.
            place = next((at for at, (_, other) in enumerate(of_name) if _is_same(branch, other)), None)
            if place is None:
                of_name.append((participant.name, branch))
            elif getattr(branch.gid, "participant", None) in participant.names:
                of_name[place] = (participant.name, branch)
    everything = [one for of_name in found.values() for one in of_name]
    return [(participants.get(name), branch) for name, branch in everything], unreachable


async def _of_late_owners(
    participants: Registry,
    everyone: Sequence[Participant],
    lists: Sequence[Sequence[PreparedBranch] | ParticipantError],
) -> list[Sequence[PreparedBranch] | ParticipantError]:
    """``lists``, with those of participants read again whose branches only others list: where both are one
    database, a branch that was prepared between the two lists would look like an impostor."""
    gids = [set() if isinstance(each, ParticipantError) else {one.gid for one in each} for each in lists]
    listed = dict(zip((each.name for each in everyone), gids, strict=True))
    late = set()
    for name, seen in listed.items():
        for gid in seen:
            owner = participants.find(gid.participant) if isinstance(gid, Gid) else None
            if owner is not None and owner.name != name and gid not in listed[owner.name]:
                late.add(owner.name)
    again = [each for each in everyone if each.name in late]
    answers = await asyncio.gather(*(_list(each) for each in again))
    read = {each.name: answer for each, answer in zip(again, answers, strict=True)}
    return [read.get(each.name, before) for each, before in zip(everyone, lists, strict=True)]


def _is_same(one: PreparedBranch, other: PreparedBranch) -> bool:
    """Whether two lists of participants show the same prepared transaction. A clone of a server shows a copy
    of it, which has the same id and time, in another history."""
    if (one.gid, one.database, one.xid, one.prepared_at) != (
        other.gid,
        other.database,
        other.xid,
        other.prepared_at,
    ):
        return False
    if one.evidence is None or other.evidence is None:
        return True
    known = zip(_server(one.evidence), _server(other.evidence), strict=True)
    return all(mine is None or theirs is None or mine == theirs for mine, theirs in known)


def _server(evidence: Evidence) -> tuple[object, ...]:
    return evidence.system, evidence.timeline, evidence.history


async def _judged(
    ledger: Ledger,
    participant: Participant,
    branch: PreparedBranch,
    stands: BranchStanding,
    silent: Sequence[Participant],
) -> tuple[BranchStanding, str, str | None]:
    """Standing, ``why`` and ``fix``. What has the name of a branch of a participant that is ``silent`` is no
    impostor for certain: both may be one database."""
    gid = branch.gid
    if branch.owner_gone and stands.ours:
        return stands, f"{stands.why}; {ROLE_GONE}", _statement(gid, stands)
    if stands is not BranchStanding.IMPOSTOR or not isinstance(gid, Gid):
        return stands, stands.why, None
    verdict = (await ledger.outcomes([gid]))[gid]
    if verdict is Verdict.IMPOSTOR:
        return stands, "the ledger never gave that name: its tag is wrong, or is missing", None
    if gid.participant not in participant.names and any(gid.participant in one.names for one in silent):
        return BranchStanding.NOT_KNOWN, _OWNER_SILENT.format(gid.participant), None
    info = await ledger.transaction(gid.txid)
    recorded = next((one for one in (info.branches if info else ()) if one.number == gid.branch), None)
    if (why := why_impostor(participant.names, branch, recorded)) is None:
        return stands, stands.why, None
    only_the_owner = not branch.owned and (
        why_impostor(participant.names, replace(branch, owned=True, owner_dropped=False), recorded) is None
    )
    return stands, why, branch.owner_fix if only_the_owner else None


async def _list(participant: Participant) -> Sequence[PreparedBranch] | ParticipantError:
    try:
        return await participant.in_doubt()
    except ParticipantError as error:
        return error
