"""Reads the parts of the page, each as a document: what the command line says, in the shapes of its JSON.

Ages are left out, since each would change a document with every reading: the page computes them from the
moments beside them. ``prepared_at`` is by the clock of a database, which may be wrong: the page computes the
age of a branch from ``since``, the same moment by the clock of this process (:class:`Since`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from undoubt.config import Settings
from undoubt.coordinator.ledger.cluster.status import survey as cluster_survey
from undoubt.coordinator.ledger.cluster.url import RAFT
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.doctor import examine
from undoubt.participants.contract import Claim, Participant, Waiting, WaitNode
from undoubt.participants.errors import ParticipantError
from undoubt.participants.findings import Severity
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.redact import redact
from undoubt.participants.registry import Registry
from undoubt.recovery.operator.holding_cost import waits_of
from undoubt.recovery.operator.survey import Survey, SurveyedBranch, survey
from undoubt.recovery.report import WorkerStatus
from undoubt.report import shapes
from undoubt.report.explain import session_document

ACTS = 500
LOCKS_MAX = 10_000
SINCE_S = 1.0
"""Clocks do not run alike, and a database rounds."""
OLDER_THAN_S = 300.0
"""Younger branches are left to recovery: the default of ``undoubt doctor``."""

Document = dict[str, Any]


async def ledger_part(ledger: Ledger) -> Document:
    info: Document = msgspec.to_builtins(await ledger.info())
    del info["ledger_time_s"]
    return info | {"leads": ledger.leads}


async def sessions_part(ledger: Ledger) -> Document:
    return {"sessions": [session_document(one) for one in await ledger.sessions()]}


async def heuristics_part(ledger: Ledger) -> Document:
    known = await ledger.heuristics(include_forgotten=True)
    return {"heuristics": without_ages([shapes.heuristic(one) for one in known])}


async def audit_part(ledger: Ledger) -> Document:
    return {"acts": [shapes.act(one) for one in await ledger.acts(limit=ACTS)]}


async def locks_part(ledger: Ledger) -> Document:
    """The ledger's locks, in the order of their names: of each its holders, then its waiters in the order in
    which they get it. ``more``: there are more than are shown."""
    shown: list[Document] = []
    after = ""
    while (page := await ledger.locks(after=after)) and len(shown) < LOCKS_MAX:
        for lock in page:
            entries = [(entry, 0) for entry in lock.holders]
            entries += [(entry, place) for place, entry in enumerate(lock.waiters, 1)]
            shown += [
                {
                    "name": lock.name,
                    "session": entry.request.session,
                    "number": entry.request.number,
                    "shared": entry.request.shared,
                    "txid": None if entry.request.txid is None else str(entry.request.txid),
                    "token": entry.token or None,
                    "fence": entry.fence or None,
                    "place": place,
                    "at": entry.request.at,
                }
                for entry, place in entries
            ]
        after = page[-1].name
    return {"locks": shown[:LOCKS_MAX], "more": len(shown) > LOCKS_MAX}


async def survey_of(ledger: Ledger, participants: Registry, participant: Participant) -> Survey:
    """What one participant lists, as a survey of all would have it. Where it lists a branch of another
    participant, both may be one database, in which the branch is no impostor: that one is asked too."""
    seen = await survey(ledger, _registry(participant))
    names = {one.branch.gid.participant for one in seen.found if isinstance(one.branch.gid, Gid)}
    others = {each.name: each for each in map(participants.find, names - participant.names) if each}
    if not others:
        return seen
    both = await survey(ledger, _registry(participant, *others.values()))
    found = tuple(one for one in both.found if one.participant == participant.name)
    silent = {name: error for name, error in both.unreachable.items() if name == participant.name}
    return replace(both, found=found, unreachable=silent)


def _registry(*participants: Participant) -> Registry:
    some = Registry()
    for each in participants:
        some.add(each)
    return some


class Since:
    """When the branches of one participant were prepared, by the clock of this process: its database says how
    old each is. At which moment of a reading it says so is not known. So a moment stays as it is while later
    readings allow it, give or take :data:`SINCE_S`."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int | None], float] = {}

    def of(self, found: Iterable[SurveyedBranch], began: float, ended: float) -> list[float]:
        """The moments of all branches that a reading between these moments has found."""
        now: dict[tuple[str, int | None], float] = {}
        moments = []
        for one in found:
            name, at = (str(one.branch.gid), one.branch.xid), round(began - one.branch.age_s, 3)
            known = self._since.get(name, at)
            now[name] = known if -SINCE_S < known - at < ended - began + SINCE_S else at
            moments.append(now[name])
        self._since = now
        return moments


async def participant_part(
    ledger: Ledger, participants: Registry, participant: Participant, since: Since
) -> Document:
    """What is prepared in one of the ``participants``, and who waits for whom there. A participant that does
    not answer has ``error``. ``waits`` is null where it is not known who waits; ``waits_error`` says why."""
    began = time.time()
    seen = await survey_of(ledger, participants, participant)
    if error := seen.unreachable.get(participant.name):
        known: Document = {"branches": [], "waits": None, "waits_error": ""}
        return known | {"participant": participant.name, "error": redact(str(error))}
    waits = await waits_documents(ledger, participant)
    return {
        "participant": participant.name,
        "error": None,
        "branches": prepared_documents(seen, since.of(seen.found, began, time.time())),
        "waits": None if isinstance(waits, ParticipantError) else waits,
        "waits_error": redact(str(waits)) if isinstance(waits, ParticipantError) else "",
    }


def prepared_documents(seen: Survey, since: Iterable[float]) -> list[Document]:
    """The prepared branches as ``indoubt list`` has them, whether each is in doubt, and since when it has
    been prepared, by the clock of this process."""
    return [
        without_ages(shapes.prepared(one, seen.siblings(one)))
        | {"in_doubt": one.standing.in_doubt, "since": at}
        for one, at in zip(seen.found, since, strict=True)
    ]


async def waits_documents(ledger: Ledger, participant: Participant) -> list[Document] | ParticipantError:
    """The edges of its wait graph, or why they are not known. An end without a proved transaction has only a
    name."""
    waits = await waits_of(participant)
    if isinstance(waits, ParticipantError):
        return waits
    claims = [end for wait in waits for end in (wait.waiter, wait.holder) if isinstance(end, Claim)]
    proved = dict(zip(claims, await ledger.backends(claims), strict=True)) if claims else {}
    return [_wait(wait, proved) for wait in waits]


def _wait(wait: Waiting, proved: Mapping[Claim, TxId | None]) -> Document:
    return {
        "waiter": _named(wait.waiter, proved),
        "pid": wait.pid,
        "holder": _named(wait.holder, proved),
        "holder_pid": wait.holder_pid,
    }


def _named(end: WaitNode, proved: Mapping[Claim, TxId | None]) -> str:
    if isinstance(end, Claim):
        return str(proved.get(end) or f"a session that calls itself {end}")
    return str(end.txid) if isinstance(end, Gid) else end


async def cluster_part(settings: Settings) -> Document:
    """The nodes of a replicated ledger, as ``cluster status`` has them; for another ledger, none."""
    if not settings.ledger.url.startswith(RAFT):
        return {"cluster": None, "leader": None, "version": None, "version_held_up_by": [], "nodes": []}
    found = shapes.cluster(await cluster_survey(settings.ledger))
    for node in found["nodes"]:
        node.pop("state_hashes", None)
        node["error"] = redact(node["error"])
    return found


async def doctor_part(settings: Settings) -> Document:
    """What ``undoubt doctor`` says, worst first."""
    order = [Severity.PROBLEM, Severity.UNREACHABLE, Severity.WARNING, Severity.OK]
    findings = await examine(settings, older_than_s=OLDER_THAN_S)
    findings.sort(key=lambda one: order.index(one.severity))
    return {"findings": [shapes.finding(one) for one in findings]}


def workers_part(workers: Iterable[WorkerStatus]) -> Document:
    """Recovery's workers in this process. Without ``retry_in_s``, which would change with every reading."""
    return {
        "workers": [
            {
                "participant": one.participant,
                "failures": one.failures,
                "last_error": one.last_error and redact(one.last_error),
                "prepared": one.prepared,
            }
            for one in workers
        ]
    }


def transaction_of(gid: str) -> TxId | None:
    """The transaction of a branch; None if that is no name of one."""
    parsed = Gid.parse(gid)
    return parsed.txid if isinstance(parsed, Gid) else None


def without_ages(document: Any) -> Any:
    """The same without ``age_s``, at any depth."""
    if isinstance(document, dict):
        return {key: without_ages(value) for key, value in document.items() if key != "age_s"}
    if isinstance(document, list):
        return [without_ages(each) for each in document]
    return document
