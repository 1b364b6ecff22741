"""Lists branches that have been prepared for too long, with what they block and what to do."""

from __future__ import annotations

import shlex

from undoubt.participants.contract import Participant
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import Gid
from undoubt.participants.plural import plural
from undoubt.recovery.lost import LeftoverBranches
from undoubt.recovery.operator.explain import mending
from undoubt.recovery.operator.holding_cost import Burden, burden, waits_of
from undoubt.recovery.operator.survey import Survey, SurveyedBranch
from undoubt.recovery.plan import BranchStanding
from undoubt.report.times import show_duration

CHECK = "prepared"
SHOWN_MAX = 20
"""Limit of findings for single branches; a database that was down for an hour may have thousands."""


async def look_at_prepared(participant: Participant, seen: Survey, older_than_s: float) -> list[Finding]:
    """The findings about prepared branches of a participant. Empty if it did not answer, which its own check
    reports."""
    name = participant.name
    if name in seen.unreachable:
        return []
    here = [found for found in seen.found if found.participant == name]
    # A branch that only an operator can end is reported at any age.
    old = [found for found in here if found.branch.age_s >= older_than_s or _needs_operator(found)]
    if not old:
        return [_none(name, len(here), older_than_s)]
    waits = await waits_of(participant)
    findings = [_finding(found, burden(found, waits)) for found in old[:SHOWN_MAX]]
    if left := old[SHOWN_MAX:]:
        what = f"{len(left)} more, the oldest of them for {show_duration(left[0].branch.age_s)}"
        findings.append(Finding(name, CHECK, Severity.PROBLEM, what, "", "undoubt indoubt list"))
    return findings


def look_at_left(left: LeftoverBranches) -> list[Finding]:
    """The findings about prepared branches if there is no ledger."""
    return [
        Finding(
            name,
            CHECK,
            Severity.PROBLEM,
            f"{plural(count, 'branch is', 'branches are')} prepared for ledger {' and '.join(ledgers)}",
            "they hold their locks until that ledger is available again. If it is lost, adopt them",
            f"undoubt recover --adopt {ledgers[0]}",
        )
        for name, count, ledgers in left.by_participant()
    ]


def _needs_operator(found: SurveyedBranch) -> bool:
    return found.standing.action == "decide" or (found.branch.owner_gone and found.standing.ours)


def _none(name: str, young: int, older_than_s: float) -> Finding:
    what = f"nothing has been prepared for {show_duration(older_than_s)} or longer"
    return Finding(name, CHECK, Severity.OK, f"{what}; {young} for a shorter time" if young else what)


def _finding(found: SurveyedBranch, weighs: Burden) -> Finding:
    branch, stands = found.branch, found.standing
    what = f"{branch.gid} has been prepared for {show_duration(branch.age_s)} by role {branch.owner}"
    return Finding(
        found.participant,
        CHECK,
        Severity.WARNING if stands is BranchStanding.ACTIVE else Severity.PROBLEM,
        f"{what}: {found.why}",
        f"{_cost(weighs)}. {_to_do(found)}",
        found.fix or _FIX.get(stands) or _explain(found),
    )


def _explain(found: SurveyedBranch) -> str:
    gid = found.branch.gid
    if found.standing is BranchStanding.LOST_LEDGER and isinstance(gid, Gid):
        return f"undoubt recover --adopt {gid.ledger}"
    return f"undoubt indoubt explain {shlex.quote(str(gid))}"


def _to_do(found: SurveyedBranch) -> str:
    gone = found.branch.owner_gone and found.standing.ours
    return mending(found) if gone or found.fix is not None else _TO_DO[found.standing]


def _cost(weighs: Burden) -> str:
    if weighs.blocks_unknown is not None:
        waiting = f"it is not known which sessions wait for it ({weighs.blocks_unknown})"
    elif weighs.blocks:
        waiting = "waiting for it: " + ", ".join(f"{one.waiter} (backend {one.pid})" for one in weighs.blocks)
    else:
        waiting = "no session waits for it now"
    held = weighs.held_back_xids
    xids = "" if held is None else f" and {plural(held, 'transaction')}"
    return f"{waiting}; vacuum held back for {show_duration(weighs.held_back_s)}{xids}"


_TO_DO = {
    BranchStanding.COMMITTED: "Recovery finishes it: check that it runs, and read its log",
    BranchStanding.ABORTED: "Recovery finishes it: check that it runs, and read its log",
    BranchStanding.ASK_PROTOCOL: "Recovery finishes it: check that it runs, and read its log",
    BranchStanding.ACTIVE: "Check what its application does; indoubt rollback ends it, if necessary",
    BranchStanding.FORGOTTEN: "An operator must decide: explain reports what is known",
    BranchStanding.IMPOSTOR: "Find out what prepared it: it is not ours. indoubt rollback can end it",
    BranchStanding.LOST_LEDGER: "If that ledger is lost, an operator decides: recover --adopt reports what is"
    " known. If it is another installation's, name it in the participant's other_ledgers",
    BranchStanding.OTHER_LEDGER: "Only recovery with that ledger's configuration may finish it",
    BranchStanding.NOT_KNOWN: "Look again once the ledger and all participants answer",
    BranchStanding.FOREIGN: "The program that prepared it must finish it; undoubt never does",
}
_FIX = {
    BranchStanding.COMMITTED: "undoubt recover --once",
    BranchStanding.ABORTED: "undoubt recover --once",
    BranchStanding.ASK_PROTOCOL: "undoubt recover --once",
}
