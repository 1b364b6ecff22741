"""One transaction: what ``tx show``, ``explain`` and ``tx resolve`` say about it, and the moments of its
picture in time."""

from __future__ import annotations

from typing import Any

from undoubt.coordinator.ledger.contract import Ledger
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.redact import redact
from undoubt.participants.registry import Registry
from undoubt.recovery.errors import NotAllSeen, NotPrepared
from undoubt.recovery.operator.explain import explain
from undoubt.recovery.operator.explain_heuristic import explain_heuristic
from undoubt.recovery.operator.whole_transaction import Whole, impostor_line, look
from undoubt.report import shapes
from undoubt.report.explain import document, heuristic_document
from undoubt.report.sections import sections
from undoubt.report.transactions import known as known_transaction
from undoubt.report.transactions import not_seen, state
from undoubt.serve.console import acts
from undoubt.serve.console.readings import survey_of
from undoubt.serve.console.traces import Traces


async def picture(ledger: Ledger, participants: Registry, traces: Traces, txid: TxId) -> dict[str, Any]:
    """Everything about one transaction. ``whole`` is null if neither the ledger nor a database knows it; then
    ``unknown`` says so. ``explained`` has one entry for each prepared branch and each heuristic outcome.
    Raises ``LedgerError``."""
    info = await known_transaction(ledger, txid)
    shown: dict[str, Any] = {
        "id": str(txid),
        "transaction": None if info is None else shapes.transaction(info, ledger.ledger_id),
        "state": None if info is None else state(info),
        "cause": "" if info is None else redact(info.cause),
        "moments": traces.of(str(txid)),
        "participants": traces.participants_of(str(txid)),
        "whole": None,
        "unknown": "",
        "explained": [],
        "not_seen": [],
        "impostors": [],
        "choices": [],
        "shown": "",
    }
    try:
        whole = await look(ledger, participants, txid)
    except (NotPrepared, NotAllSeen) as error:
        shown["unknown"] = redact(str(error))
        return shown
    return shown | {
        "whole": _without_passwords(shapes.whole(whole)),
        "explained": await _explained(ledger, participants, whole),
        "not_seen": [redact(line) for line in not_seen(whole)],
        "impostors": [impostor_line(one) for one in whole.impostors],
        "choices": acts.choices(whole),
        "shown": acts.digest(whole),
    }


async def _explained(ledger: Ledger, participants: Registry, whole: Whole) -> list[dict[str, Any]]:
    found = []
    for one in whole.seen.of(whole.txid):
        told = await explain(ledger, participants, one, whole.seen)
        found.append(_entry(document(told, whole.seen.siblings(one)), str(one.branch.gid)))
    prepared = {entry["gid"] for entry in found}
    for branch in whole.branches:
        if branch.heuristic is None or str(branch.heuristic.gid) in prepared:
            continue
        ended = await explain_heuristic(ledger, branch.heuristic.gid)
        if ended is not None:
            found.append(_entry(heuristic_document(ended), str(branch.heuristic.gid)))
    return found


def _without_passwords(whole: dict[str, Any]) -> dict[str, Any]:
    """The same, with the passwords in the texts of databases' errors hidden."""
    branches = [branch | {"why": redact(branch["why"])} for branch in whole["branches"]]
    return whole | {"why": redact(whole["why"]), "branches": branches}


def _entry(told: dict[str, Any], gid: str) -> dict[str, Any]:
    return {"gid": gid, "document": told, "sections": sections(told)}


async def branch_of(ledger: Ledger, participants: Registry, participant: str, gid: str) -> dict[str, Any]:
    """A prepared transaction that is no branch of ours, as ``explain`` tells it. Raises ``NotPrepared`` and
    the like."""
    seen = await survey_of(ledger, participants, participants.get(participant))
    one = seen.one(Gid.parse(gid))
    told = await explain(ledger, participants, one, seen)
    return _entry(document(told, seen.siblings(one)), gid)
