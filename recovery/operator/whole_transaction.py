"""A whole transaction: all its branches, what is recorded, what its databases prove, and what an order to end
it would split.

``look`` collects what is known; ``check`` says which flags an order needs.
:mod:`undoubt.recovery.operator.transaction` carries it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    Heuristic,
    Ledger,
    RecordedDecision,
    TransactionInfo,
    Verdict,
)
from undoubt.participants.contract import Decision, Settled, XactStatus
from undoubt.participants.errors import ParticipantError
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.errors import Conflict, NotAllSeen, NotPrepared
from undoubt.recovery.operator.survey import Survey, SurveyedBranch, survey
from undoubt.recovery.plan import BranchStanding
from undoubt.recovery.unfinished import ask_books


@dataclass(frozen=True, slots=True)
class BranchNow:
    """One branch. ``now``: ``prepared``, ``not_prepared``, ``no_answer`` (its participant did not answer) or
    ``not_configured``. ``proved``: the transaction status of a branch that is no longer prepared, ``unknown``
    if there is none. ``fix``: as in :class:`~undoubt.recovery.operator.survey.SurveyedBranch`. ``gid`` is
    None where the ledger has only a number and a participant."""

    number: int
    participant: str
    gid: Gid | None
    now: str
    standing: BranchStanding | None
    why: str
    proved: XactStatus
    heuristic: Heuristic | None
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """``direction`` is the safe one, None where nothing proves one; ``why`` says why. ``info`` comes from the
    ledger, None where it has none. If no list of the branches is recorded, there may be more of them:
    ``hidden`` are participants that do not answer and may have one, ``gaps`` the unknown numbers below the
    highest known one, as (first, last)."""

    txid: TxId
    info: TransactionInfo | None
    branches: tuple[BranchNow, ...]
    ledger_id: str
    direction: Decision | None
    why: str
    seen: Survey
    hidden: tuple[str, ...] = ()
    gaps: tuple[tuple[int, int], ...] = ()
    unlisted: bool = False
    """No list of branches is recorded, nothing proves a direction, and the coordinator is not alive."""
    unfenced: bool = False
    """The agent of last-agent commit was asked, and that has decided nothing; ``why`` says why."""

    @property
    def prepared(self) -> list[BranchNow]:
        return [one for one in self.branches if one.now == "prepared"]

    @property
    def impostors(self) -> list[SurveyedBranch]:
        """What is prepared under a name of the transaction without being a branch of it."""
        return [one for one in self.seen.of(self.txid) if one.standing is BranchStanding.IMPOSTOR]

    @property
    def may_be_fenced(self) -> bool:
        """Whether ABORT can be recorded without splitting the transaction: its coordinator is alive and has
        not decided, or the agent of last-agent commit has not been asked yet."""
        if self.direction is not None or self.unfenced:
            return False
        return self.asks_agent or all(one.standing is BranchStanding.ACTIVE for one in self.prepared)

    @property
    def asks_agent(self) -> bool:
        """Whether the row at the agent of last-agent commit decides it."""
        return self.asks_protocol and all(
            one.gid is not None and one.gid.protocol is Protocol.LAST for one in self.prepared
        )

    @property
    def asks_protocol(self) -> bool:
        """Whether the termination of its commit protocol decides it."""
        return any(one.standing is BranchStanding.ASK_PROTOCOL for one in self.prepared)

    def splits(self, direction: Decision) -> list[BranchNow]:
        """The branches that ended, or are proved to have ended, against ``direction``."""
        return [one for one in self.branches if _is_against(one, direction)]

    def contradicts(self, order: Decision, *, besides: int = 0) -> list[str]:
        """What ``order`` splits the transaction from, in words, branch ``besides`` apart: the branches that
        ended the other way; and, where ``order`` is against a decision, those that are not seen to be
        prepared and not known to have ended against it, since they have applied it, or will."""
        others = [one for one in self.branches if one.number != besides]
        lines = [
            f"branch {one.number} in {one.participant} has ended the other way"
            for one in others
            if _is_against(one, order)
        ]
        if self.direction in {None, order}:
            return lines
        does = "has committed, or will commit"
        if order is Decision.COMMIT:
            does = "has been rolled back, or will be"
        lines += [
            f"branch {one.number} in {one.participant} {does}"
            for one in others
            if one.now != "prepared" and not any(_is_against(one, each) for each in Decision)
        ]
        return lines + [f"participant {name!r} may have a branch that {does}" for name in self.hidden]

    @property
    def not_seen(self) -> list[str]:
        """For an operator: where there may be unknown branches."""
        lines = [
            f"participant {name!r} does not answer, and may have a branch of it"
            f" ({self.seen.unreachable[name]})"
            for name in self.hidden
        ]
        lines += [
            f"branch {first} is not known: look for its rows"
            if first == last
            else f"branches {first} to {last} are not known: look for their rows"
            for first, last in self.gaps
        ]
        return lines

    @property
    def more_unknown(self) -> str:
        """For an operator, about a transaction that is ``unlisted``; else empty."""
        if not self.unlisted:
            return ""
        return (
            "no list of its branches is recorded: those that are not listed here are not known. Look for the"
            " rows that the transaction wrote in the other databases"
        )


def _ended(one: BranchNow) -> Decision | None:
    if one.now == "prepared":
        return None
    kind = one.heuristic.kind if one.heuristic is not None else None
    if kind is Settled.HEURISTIC_COMMIT or one.proved is XactStatus.COMMITTED:
        return Decision.COMMIT
    if kind is Settled.HEURISTIC_ROLLBACK or one.proved is XactStatus.ABORTED:
        return Decision.ABORT
    return None


def _is_against(one: BranchNow, order: Decision) -> bool:
    if one.now != "prepared" and one.heuristic is not None and one.heuristic.kind is Settled.HEURISTIC_MIXED:
        return True
    return _ended(one) not in {None, order}


async def look(ledger: Ledger, participants: Registry, txid: TxId) -> Whole:
    """Everything that is known of the transaction. Raises ``LedgerError``, and ``NotPrepared`` if nothing is,
    or ``NotAllSeen`` where that is only a guess."""
    seen = await survey(ledger, participants)
    info = await ledger.transaction(txid)
    known = {one.gid.branch: one for one in seen.known if one.gid.txid == txid}
    prepared: dict[int, SurveyedBranch] = {}
    for found in seen.of(txid):
        if found.standing.ours and isinstance(found.branch.gid, Gid):
            prepared[found.branch.gid.branch] = found
    recorded = {record.number: record for record in (info.branches if info else ())}
    branches = []
    for number in sorted(prepared.keys() | recorded.keys() | known.keys()):
        heuristic, record = known.get(number), recorded.get(number)
        if number in prepared:
            branches.append(_prepared(number, prepared[number], heuristic))
            continue
        gid = None if heuristic is None else heuristic.gid
        if record is not None and info is not None and info.protocol:
            gid = record.gid(ledger.ledger_id, info.protocol, txid)
        branches.append(await _absent(participants, seen, number, gid, record, heuristic))
    if not branches and info is None:
        false = [one for one in seen.of(txid) if one.standing is BranchStanding.IMPOSTOR]
        forged = f"; {impostor_line(false[0])}" if false else ""
        nowhere = f"neither the ledger nor any participant that answers knows of transaction {txid}{forged}"
        if seen.unreachable:
            silent = ", ".join(f"{name} ({error})" for name, error in seen.unreachable.items())
            raise NotAllSeen(f"{nowhere}; not all could be asked: {silent}")
        raise NotPrepared(nowhere)
    direction, why = _direction(info, prepared.values())
    whole = Whole(txid, info, tuple(branches), ledger.ledger_id, direction, why, seen)
    if info is not None and info.branches:
        return whole
    hidden = tuple(sorted(seen.unreachable.keys() - {one.participant for one in branches}))
    active = any(one.standing is BranchStanding.ACTIVE for one in prepared.values())
    unlisted = direction is None and not active
    gaps = tuple(_gaps([one.number for one in branches])) if unlisted else ()
    return replace(whole, hidden=hidden, gaps=gaps, unlisted=unlisted)


def _gaps(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """What is missing from 1 up to the last of ``numbers``, which are in order and may be far apart."""
    before = 0
    for number in numbers:
        if number > before + 1:
            yield before + 1, number - 1
        before = number


def impostor_line(one: SurveyedBranch) -> str:
    """What is prepared under a name of a transaction, and is no branch of it."""
    return (
        f"{one.branch.gid} is prepared in {one.participant} by role {one.branch.owner} and is an impostor:"
        f" {one.why}. It holds its locks until it is ended: `undoubt indoubt rollback {one.branch.gid}"
        f" --participant {one.participant}`"
    )


def _prepared(number: int, found: SurveyedBranch, heuristic: Heuristic | None) -> BranchNow:
    gid = found.branch.gid
    return BranchNow(
        number,
        found.participant,
        gid if isinstance(gid, Gid) else None,
        "prepared",
        found.standing,
        found.why,
        XactStatus.UNKNOWN,
        heuristic,
        found.fix,
    )


async def _absent(  # noqa: PLR0917 - what is known of it
    participants: Registry,
    seen: Survey,
    number: int,
    gid: Gid | None,
    record: BranchRecord | None,
    heuristic: Heuristic | None,
) -> BranchNow:
    """One that no list has."""
    name = record.participant if record is not None else "" if gid is None else gid.participant
    holder = next((one for one in participants if name in one.names), None)
    if holder is None:
        return BranchNow(number, name, gid, "not_configured", None, "", XactStatus.UNKNOWN, heuristic)
    if holder.name in seen.unreachable:
        why = str(seen.unreachable[holder.name])
        return BranchNow(number, name, gid, "no_answer", None, why, XactStatus.UNKNOWN, heuristic)
    proved, why = XactStatus.UNKNOWN, ""
    if gid is not None and record is not None:
        try:
            proved = await ask_books(holder, gid, record)
        except ParticipantError as error:
            why = str(error)
    return BranchNow(number, name, gid, "not_prepared", None, why, proved, heuristic)


def _direction(
    info: TransactionInfo | None, prepared: Iterable[SurveyedBranch]
) -> tuple[Decision | None, str]:
    stands = {one.standing for one in prepared}
    record = info.record if info is not None else RecordedDecision.NOT_RECORDED
    if record is RecordedDecision.COMMIT or BranchStanding.COMMITTED in stands:
        return Decision.COMMIT, "COMMIT is recorded: the first decision recorded is the only one"
    if record is RecordedDecision.ABORT or BranchStanding.ABORTED in stands:
        return Decision.ABORT, "ABORT is recorded, or no COMMIT can be recorded from now on"
    if BranchStanding.ACTIVE in stands or (info is not None and info.verdict is Verdict.ACTIVE):
        return None, "its coordinator is alive and may still decide: leave it alone, or choose rollback"
    if info is None and not stands:
        return None, "nothing is recorded about it, and no branch of it is prepared"
    if BranchStanding.ASK_PROTOCOL in stands:
        return None, "the termination of its commit protocol decides, and has not ended yet"
    return None, "the ledger no longer has its session, so no direction is proved to be safe"


def check(whole: Whole, direction: Decision, *, heuristic: bool, contradict: bool) -> None:
    """Raise ``Conflict`` if ``direction`` needs a flag that is not given; ``NotAllSeen`` if nothing proves a
    direction and a participant that may have a branch does not answer."""
    if whole.direction is not direction:
        # While the coordinator is alive, ABORT can be recorded: that does not split the transaction.
        fences = direction is Decision.ABORT and whole.may_be_fenced
        if not heuristic and not fences:
            raise Conflict(
                f"{whole.txid}: {whole.why}; nothing was done. To {direction} it nevertheless, add"
                " --heuristic"
            )
        if whole.direction is None and whole.hidden and not fences and not contradict:
            raise NotAllSeen(
                f"not all of transaction {whole.txid} is known: {whole.not_seen[0]}; nothing was"
                f" done. To {direction} the rest nevertheless, add --contradict"
            )
        if not contradict and (against := whole.contradicts(direction)):
            raise Conflict(
                f"to {direction} the rest would split transaction {whole.txid}: {', '.join(against)};"
                " nothing was done. To split it nevertheless, add --contradict"
            )
