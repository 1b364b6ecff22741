"""Runs cases of the X/Open rules for mixed answers: one transaction over scripted participants a line.

The file is CSV with the columns ``case, participants, ends_with, expected_outcome, expected_calls``.
A participant is ``prepare=… commit=… one_phase=… rollback=…``, several are separated by `` | ``.
``expected_calls`` is ``1: prepare>commit; 2: prepare or rollback``; a participant not named is not checked.

A line that asks for what this product does not do, by design, is skipped, with the reason. The reasons are
rules over the line itself; what the product answered plays no part in them.
"""

from __future__ import annotations

import csv
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import HeuristicOutcome, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.participants.contract import HEURISTICS, Settled, Vote
from undoubt.participants.errors import BranchFailed, UsageError
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import Script, ScriptedAnswer, ScriptedParticipant

OUTCOMES = {"committed", "aborted", *(str(kind) for kind in HEURISTICS)}
XA_CALLS = {"prepare", "commit", "one_phase", "rollback", "forget"}
ENDINGS = {"commit", "rollback", "rollback_only"}


class Bad(ValueError):
    """The file is not in the format."""


@dataclass(frozen=True)
class Case:
    number: str
    participants: tuple[dict[str, str], ...]
    ends_with: str
    outcomes: frozenset[str]
    calls: dict[int, frozenset[str]]

    def votes(self) -> list[str]:
        return [participant["prepare"] for participant in self.participants]


@dataclass
class Report:
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        return f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"


def read(path: Path) -> list[Case]:
    with path.open(newline="") as lines:
        return [_parse(row) for row in csv.DictReader(lines)]


def _parse(row: dict[str, str]) -> Case:
    number = row["case"]
    participants = tuple(
        dict(pair.split("=", 1) for pair in text.split()) for text in row["participants"].split(" | ")
    )
    for participant in participants:
        if set(participant) != {"prepare", "commit", "one_phase", "rollback"}:
            raise Bad(f"case {number}: a participant answers {sorted(participant)}")
    outcomes = frozenset(row["expected_outcome"].split(" or "))
    if not outcomes <= OUTCOMES or row["ends_with"] not in ENDINGS:
        raise Bad(f"case {number}: {row['ends_with']!r} / {sorted(outcomes)}")
    calls: dict[int, frozenset[str]] = {}
    for part in filter(None, (row["expected_calls"] or "").split("; ")):
        position, alternatives = part.split(": ")
        calls[int(position)] = frozenset(alternatives.split(" or "))
    return Case(number, participants, row["ends_with"], outcomes, calls)


def _one_phase(word: str) -> ScriptedAnswer:
    match word:
        case "transaction_rolledback":
            return BranchFailed("xa", "transaction rolled back")
        case "not_prepared":
            return Settled.HEURISTIC_HAZARD  # it cannot say what became of its only branch
        case _:
            return _settled(word)


def _settled(word: str) -> ScriptedAnswer:
    if word == "ok":
        return None
    if word == "not_prepared":
        return Settled.ABSENT
    return Settled(word)


def _script(participant: dict[str, str]) -> Script:
    votes: dict[str, Vote | Settled] = {str(vote): vote for vote in Vote}
    prepare = participant["prepare"]
    return Script(
        prepare=votes[prepare] if prepare in votes else Settled(prepare),
        one_phase=_one_phase(participant["one_phase"]),
        commit=[_settled(participant["commit"])],
        rollback=[_settled(participant["rollback"])],
    )


Rule = Callable[[Case], bool]


def _rolls_back_after_decision(case: Case) -> bool:
    everybody_can = all(vote in {"prepared", "read_only"} for vote in case.votes())
    return (
        case.ends_with == "commit"
        and everybody_can
        and any("rollback" in call for calls in case.calls.values() for call in calls)
    )


def _told_aborted_though_committed(case: Case) -> bool:
    """Someone rolls back by ending as committed or mixed, and the line allows nothing but "aborted"."""
    return case.outcomes == {"aborted"} and any(
        participant["rollback"] in {"heuristic_commit", "heuristic_mixed", "heuristic_hazard"}
        for participant in case.participants
    )


def _hazard_though_known(case: Case) -> bool:
    """Every answer is definite, or one is mixed for certain, and the line allows nothing but "hazard"."""
    if case.outcomes != {"heuristic_hazard"} or case.ends_with != "commit":
        return False
    if not any(vote == "abort" or vote.startswith("heuristic") for vote in case.votes()):
        return False
    answers = {
        participant["prepare"] if participant["prepare"].startswith("heuristic") else participant["rollback"]
        for participant in case.participants
        if participant["prepare"] != "read_only"
    }
    return "heuristic_mixed" in answers or "heuristic_hazard" not in answers


def _all_committed_by_themselves(case: Case) -> bool:
    """All of an aborted transaction's branches are committed: neither mixed nor unknown."""
    return (
        "heuristic_commit" not in case.outcomes
        and any(vote == "abort" for vote in case.votes())
        and all(participant["rollback"] == "heuristic_commit" for participant in case.participants)
    )


def _told_aborted_after_decision(case: Case) -> bool:
    """COMMIT was recorded, then every writing branch turned out to be rolled back."""
    writers = [participant for participant in case.participants if participant["prepare"] != "read_only"]
    return (
        case.ends_with == "commit"
        and len(case.participants) > 1
        and case.outcomes == {"aborted"}
        and all(writer["prepare"] == "prepared" for writer in writers)
        and all(writer["commit"] == "heuristic_rollback" for writer in writers)
    )


def _rollback_after_read_only(case: Case) -> bool:
    return any(
        vote == "read_only" and position in case.calls and not _allows_silence(case.calls[position])
        for position, vote in enumerate(case.votes(), start=1)
    )


def _allows_silence(calls: frozenset[str]) -> bool:
    return "prepare" in calls


SKIPS: list[tuple[Rule, str]] = [
    (
        _rolls_back_after_decision,
        "expects a rollback after every participant could commit: a recorded decision is never undone",
    ),
    (
        _told_aborted_though_committed,
        "expects 'aborted' although a participant did, or may have done, otherwise: told as heuristic",
    ),
    (
        _hazard_though_known,
        "expects 'hazard' although it is known what each participant did: the definite outcome is told",
    ),
    (
        _all_committed_by_themselves,
        "expects 'mixed' or 'hazard' although every branch committed: told as heuristic_commit",
    ),
    (
        _told_aborted_after_decision,
        "expects 'aborted' after COMMIT was recorded: that all rolled back is told as heuristic_rollback",
    ),
    (
        _rollback_after_read_only,
        "expects a rollback call after a READ_ONLY vote: such a branch has left the protocol",
    ),
]


def reason_to_skip(case: Case) -> str | None:
    return next((reason for rule, reason in SKIPS if rule(case)), None)


class _Ending(enum.StrEnum):
    COMMITTED = "committed"
    ABORTED = "aborted"


async def _play(case: Case, participants: list[ScriptedParticipant]) -> str:
    registry = Registry()
    for participant in participants:
        registry.add(participant)
    async with Coordinator(MemoryLedger(), registry) as coordinator:
        tx = await coordinator.transaction().start()
        for participant in participants:
            await tx.branch(participant.name)
        if case.ends_with == "rollback":
            await tx.rollback()
            return _Ending.ABORTED
        if case.ends_with == "rollback_only":
            tx.doom(UsageError("rollback only, says the case"))
        try:
            await tx.commit()
        except TransactionAborted:
            return _Ending.ABORTED
        except HeuristicOutcome as error:
            return str(error.kind)
        except OutcomeUnknown:
            return str(Settled.HEURISTIC_HAZARD)  # X/Open's word for "may have": one-phase, the answer lost
        return _Ending.COMMITTED


async def run_case(case: Case) -> str | None:
    """None if it passes, else what is wrong."""
    participants = [
        ScriptedParticipant(f"p{position}", _script(script))
        for position, script in enumerate(case.participants, start=1)
    ]
    outcome = await _play(case, participants)
    wrong = []
    if outcome not in case.outcomes:
        wrong.append(f"outcome {outcome}, expected {' or '.join(sorted(case.outcomes))}")
    for position, allowed in case.calls.items():
        calls = ">".join(call for call in participants[position - 1].trace() if call in XA_CALLS)
        if calls not in allowed:
            wrong.append(f"participant {position} saw {calls!r}, expected {' or '.join(sorted(allowed))}")
    return "; ".join(wrong) or None


async def run_all(cases: list[Case]) -> Report:
    report = Report()
    for case in cases:
        reason = reason_to_skip(case)
        if reason is not None:
            report.skipped[case.number] = reason
        elif (wrong := await run_case(case)) is not None:
            report.failed[case.number] = wrong
        else:
            report.passed.append(case.number)
    return report
