"""The ledger is destroyed: end the prepared branches of three-phase commit from the participants alone.

This is possible only for three-phase commit. The decisions of two-phase commit and of Paxos Commit were in
the ledger, or with its nodes, and in no database: their branches are reported, with the reason, and not
changed.

A coordinator that is still alive does no harm: its rows take part in elections like all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from undoubt.coordinator.protocols.steps import Observer
from undoubt.coordinator.protocols.termination import Find, Round, Terminated
from undoubt.coordinator.protocols.termination_rules import Move, is_quorum
from undoubt.participants.contract import HEURISTICS, Decision, Participant, PreparedBranch, Settled
from undoubt.participants.errors import ParticipantError, UsageError
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.participants.three_phase import Charter, StateRow
from undoubt.recovery.holders import finding
from undoubt.recovery.plan import BranchDone, for_settled
from undoubt.recovery.report import Report, ReportedBranch
from undoubt.recovery.scan import in_another_database, of_another_role
from undoubt.recovery.terminate import DECISIONS, NO_ROW, in_words

_BY_HAND = "find the other branches of the transaction, and decide by hand"
NOT_WITHOUT_LEDGER = {
    Protocol.TWO_PHASE: f"two-phase commit keeps its decision only in the ledger: {_BY_HAND}",
    Protocol.LAST: f"last-agent commit keeps its decision under a key that the ledger makes: {_BY_HAND}",
    Protocol.PAXOS: f"Paxos Commit keeps its votes only with the ledger's nodes: {_BY_HAND}",
}


class WhichLedger(UsageError):
    """Branches of several ledgers were found; ``ledgers`` are their ids. Some of these ledgers may still
    exist."""

    def __init__(self, ledgers: Sequence[str]) -> None:
        super().__init__(
            f"these databases hold branches of several ledgers: {', '.join(ledgers)}."
            " Name the one that is destroyed with --ledger-id"
        )
        self.ledgers = tuple(ledgers)


@dataclass(slots=True)
class _Found:
    """One participant's prepared branches and rows of the destroyed ledger."""

    prepared: dict[Gid, PreparedBranch] = field(default_factory=dict)
    rows: dict[Gid, StateRow] = field(default_factory=dict)


class WithoutLedger:
    """Each :meth:`run` is one pass; passes may be repeated and may run at once. ``ledger_id`` None: all
    branches that are found, if they belong to one ledger."""

    def __init__(
        self, participants: Registry, ledger_id: str | None = None, *, observe: Observer | None = None
    ) -> None:
        self._participants = participants
        self._ledger_id = ledger_id
        self._observe = observe

    async def run(self, *, dry_run: bool = False) -> Report:
        """One pass. Raises :class:`WhichLedger`. Participants that fail are in the report's ``errors``."""
        errors: dict[str, str] = {}
        found: dict[str, _Found] = {}
        for participant in self._participants:
            try:
                found[participant.name] = await _look(participant)
            except ParticipantError as error:
                errors[participant.name] = str(error)
        self._choose(found)
        lines: list[ReportedBranch] = []
        for txid in sorted({gid.txid for each in found.values() for gid in (*each.prepared, *each.rows)}):
            lines += await self._end(txid, found, dry_run=dry_run)
        return Report(dry_run, tuple(lines), (), (), errors)

    def _choose(self, found: Mapping[str, _Found]) -> None:
        ledgers = sorted({gid.ledger for each in found.values() for gid in (*each.prepared, *each.rows)})
        if self._ledger_id is None and len(ledgers) > 1:
            raise WhichLedger(ledgers)
        for each in found.values():
            for gid in [*each.prepared, *each.rows]:
                if self._ledger_id not in {None, gid.ledger}:
                    each.prepared.pop(gid, None)
                    each.rows.pop(gid, None)

    async def _end(self, txid: TxId, found: Mapping[str, _Found], *, dry_run: bool) -> list[ReportedBranch]:
        prepared = [
            (name, branch)
            for name, each in found.items()
            for gid, branch in each.prepared.items()
            if gid.txid == txid
        ]
        whys = [self._why_not(name, branch, found[name].rows) for name, branch in prepared]
        lines = [
            _line(name, branch, "report", "nothing", why)
            for (name, branch), why in zip(prepared, whys, strict=True)
            if why is not None
        ]
        prepared = [one for one, why in zip(prepared, whys, strict=True) if why is None]
        if not prepared:
            return lines
        if dry_run:
            return lines + [_line(name, branch, "terminate", "would_do") for name, branch in prepared]
        rows: dict[Gid, StateRow] = {}
        holders: dict[str, Participant] = {}
        for name, branch in prepared:
            if isinstance(gid := branch.gid, Gid):
                rows[gid] = found[name].rows[gid]
                holders[gid.participant] = self._participants.get(name)
        charter = rows[min(rows)].charter
        find = await finding(charter, self._participants, holders)
        ended = await Round(charter, find, self._observe).run()
        decision = DECISIONS.get(ended.move)
        if decision is None:
            result = "nothing" if _hopeless(ended, charter, find) else "look_again"
            return lines + [
                _line(name, branch, "terminate", result, in_words(ended)) for name, branch in prepared
            ]
        return lines + [await self._settle(name, branch, decision) for name, branch in prepared]

    def _why_not(self, name: str, branch: PreparedBranch, rows: Mapping[Gid, StateRow]) -> str | None:
        """Why a branch that participant ``name`` has listed cannot be ended without its ledger; None if it
        can. ``rows`` are those of that database: a row proves a branch that is prepared in the same database,
        and nothing elsewhere. A role of another database may prepare the same name there."""
        gid = branch.gid
        if not isinstance(gid, Gid):
            return "not a branch of undoubt"
        if gid.protocol is not Protocol.THREE_PHASE:
            return NOT_WITHOUT_LEDGER[gid.protocol]
        if not branch.owned:
            return of_another_role(branch)
        if gid in rows:
            return None
        if gid.participant not in self._participants.get(name).names:
            return in_another_database(gid)
        return NO_ROW

    async def _settle(self, name: str, branch: PreparedBranch, decision: Decision) -> ReportedBranch:
        what = decision.verb
        gid = branch.gid
        if not isinstance(gid, Gid):
            raise TypeError(gid)
        try:
            settled = await self._participants.get(name).settle(gid, decision, branch.evidence)
        except ParticipantError as error:
            return _line(name, branch, what, "failed", str(error))
        if settled is Settled.BUSY or settled is Settled.HEURISTIC_HAZARD:
            return _line(name, branch, what, "look_again", "another process is finishing it")
        if settled in HEURISTICS and not isinstance(for_settled(gid, decision, settled), BranchDone):
            return _line(name, branch, "heuristic", "done", str(settled))
        return _line(name, branch, what, "done")


async def _look(participant: Participant) -> _Found:
    """The prepared branches, and their rows."""
    found = _Found()
    for branch in await participant.in_doubt():
        if isinstance(branch.gid, Gid):
            found.prepared[branch.gid] = branch
            if branch.gid.protocol is Protocol.THREE_PHASE:
                row = await participant.states.read(branch.gid)
                if row is not None:
                    found.rows[branch.gid] = row
    return found


def _hopeless(ended: Terminated, charter: Charter, find: Find) -> bool:
    """Whether another round will not help: the rows contradict each other, or they are too few although all
    participants that are configured here have answered."""
    if ended.move is Move.CONFLICT:
        return True
    unknown = {member.branch for member in charter.members if find(member.participant) is None}
    too_few = ended.seen and not is_quorum([member.branch for member in charter.members], ended.seen)
    return bool(too_few) and ended.silent.keys() <= unknown


def _line(name: str, branch: PreparedBranch, action: str, result: str, why: str = "") -> ReportedBranch:
    return ReportedBranch(str(branch.gid), name, None, action, result, why)
