"""The shapes of results in JSON: every key that scripts may rely on, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from undoubt.coordinator.ledger.contract import Act, BranchRecord, Heuristic, TransactionInfo
from undoubt.coordinator.ledger.locks import LockEntry, LockInfo
from undoubt.coordinator.settings import PROTOCOL_NAMES
from undoubt.participants.findings import Finding
from undoubt.participants.ids import Gid, Protocol
from undoubt.recovery.operator.holding_cost import Burden
from undoubt.recovery.operator.survey import Survey, SurveyedBranch
from undoubt.recovery.operator.whole_transaction import Whole
from undoubt.report.times import age, iso

if TYPE_CHECKING:
    from undoubt.coordinator.ledger.cluster.messages import NodeStatus
    from undoubt.coordinator.ledger.cluster.status import ClusterStatus


def lock(info: LockInfo, owners: Mapping[int, str]) -> dict[str, Any]:
    """One lock as ``locks list`` and ``locks show`` print it; ``owner`` is the name of the session."""
    return {
        "name": info.name,
        "holders": [_request(entry, owners) for entry in info.holders],
        "waiting": len(info.waiters),
        "waiters": [_request(entry, owners) for entry in info.waiters],
    }


def _request(entry: LockEntry, owners: Mapping[int, str]) -> dict[str, Any]:
    request = entry.request
    return {
        "token": entry.token or None,
        "mode": "shared" if request.shared else "exclusive",
        "session": request.session,
        "owner": owners.get(request.session),
        "since": iso(request.at),
        "age_s": age(request.at),
        "txid": None if request.txid is None else str(request.txid),
    }


def protocol_name(protocol: Protocol | None) -> str | None:
    """As the configuration spells it."""
    return None if protocol is None else PROTOCOL_NAMES[protocol]


def transaction(info: TransactionInfo, ledger_id: str) -> dict[str, Any]:
    """One transaction as ``tx list`` and ``tx show`` print it; ``protocol`` is null where it is no longer
    known, ``key`` where there is none."""
    branches = []
    if info.protocol is not None:
        branches = [branch(one, one.gid(ledger_id, info.protocol, info.txid)) for one in info.branches]
    return {
        "txid": str(info.txid),
        "decision": str(info.record),
        "verdict": str(info.verdict),
        "finished": info.finished,
        "protocol": protocol_name(info.protocol),
        "coordinator": info.coordinator,
        "key": info.key or None,
        "decided_at": iso(info.decided_at),
        "age_s": age(info.decided_at),
        "branches": branches,
        "heuristics": [heuristic(found) for found in info.heuristics],
    }


def branch(record: BranchRecord, gid: Gid) -> dict[str, Any]:
    """One branch as recorded with a decision; ``evidence`` is null where none was recorded."""
    evidence = (
        None
        if record.xid is None
        else {
            "xid": record.xid,
            "system": None if record.system is None else str(record.system),
            "timeline": record.timeline,
        }
    )
    return {
        "number": record.number,
        "participant": record.participant,
        "gid": str(gid),
        "evidence": evidence,
    }


def heuristic(found: Heuristic) -> dict[str, Any]:
    """A branch that its database has ended otherwise than was decided."""
    return {
        "gid": str(found.gid),
        "kind": str(found.kind),
        "decision": None if found.decision is None else str(found.decision),
        "found_at": iso(found.found_at),
        "age_s": age(found.found_at),
        "note": found.note,
        "forgotten": found.forgotten,
    }


def prepared(one: SurveyedBranch, siblings: Sequence[Heuristic] | None = ()) -> dict[str, Any]:
    """One prepared branch as ``indoubt list`` prints it. ``txid`` and ``protocol`` are null for a foreign
    one. ``fix`` makes an impostor whose only fault is its owner a branch of ours, or is the statement for a
    superuser where ``owner_gone``; else it is null."""
    gid = one.branch.gid
    return {
        "gid": str(gid),
        "txid": str(gid.txid) if isinstance(gid, Gid) else None,
        "participant": one.participant,
        "protocol": protocol_name(gid.protocol) if isinstance(gid, Gid) else None,
        "standing": str(one.standing),
        "why": one.why,
        "fix": one.fix,
        "action": one.standing.action,
        "siblings": None
        if siblings is None
        else [{"gid": str(each.gid), "kind": str(each.kind)} for each in siblings],
        "database": one.branch.database,
        "owner": one.branch.owner,
        "owner_gone": one.branch.owner_gone,
        "xid": one.branch.xid,
        "prepared_at": iso(one.branch.prepared_at),
        "age_s": round(one.branch.age_s, 3),
    }


def whole(found: Whole) -> dict[str, Any]:
    """A whole transaction as ``tx resolve`` and ``explain TXID`` print it; ``direction`` is the safe one,
    null where none is proved to be. ``hidden``: participants that do not answer and may have a branch of it;
    ``not_known``: numbers of unknown branches, as [first, last]."""
    return {
        "txid": str(found.txid),
        "transaction": None if found.info is None else transaction(found.info, found.ledger_id),
        "direction": None if found.direction is None else str(found.direction),
        "why": found.why,
        "hidden": list(found.hidden),
        "not_known": [list(gap) for gap in found.gaps],
        "branches": [
            {
                "number": one.number,
                "participant": one.participant,
                "gid": None if one.gid is None else str(one.gid),
                "now": one.now,
                "standing": None if one.standing is None else str(one.standing),
                "why": one.why,
                "fix": one.fix,
                "proved": str(one.proved),
                "heuristic": None if one.heuristic is None else heuristic(one.heuristic),
            }
            for one in found.branches
        ],
        "impostors": [prepared(one) for one in found.impostors],
    }


def act(one: Act) -> dict[str, Any]:
    """One act of an operator; ``result`` is null if it was never recorded."""
    return {
        "at": iso(one.at),
        "who": one.who or None,
        "certificate": one.certificate or None,
        "verb": one.verb,
        "subject": one.subject,
        "note": one.note,
        "result": one.result or None,
    }


def blocks(found: Burden) -> dict[str, Any]:
    """The sessions that wait for a prepared branch; ``unknown`` says why they are not known, else null."""
    waiters = [{"waiter": str(wait.waiter), "pid": wait.pid} for wait in found.blocks]
    return {"sessions": waiters, "unknown": found.blocks_unknown}


def vacuum(found: Burden) -> dict[str, Any]:
    """The time for which a prepared branch has at least held back vacuum."""
    return {"held_back_s": round(found.held_back_s, 3), "held_back_xids": found.held_back_xids}


def finding(one: Finding) -> dict[str, Any]:
    """One thing that ``doctor`` looked at; ``participant`` and ``fix`` may be null."""
    return {
        "participant": one.participant,
        "check": one.check,
        "severity": str(one.severity),
        "what": one.what,
        "why": one.why,
        "fix": one.fix,
    }


def survey(seen: Survey) -> dict[str, Any]:
    """All prepared branches and heuristic outcomes, and the participants that did not answer. If the ledger
    did not answer, ``heuristics`` and ``siblings`` are null."""
    known = not seen.ledger_error
    return {
        "branches": [prepared(one, seen.siblings(one) if known else None) for one in seen.found],
        "heuristics": [heuristic(one) for one in seen.heuristics] if known else None,
        "ledger_error": seen.ledger_error or None,
        "unreachable": [
            {"participant": name, "error": str(error)} for name, error in seen.unreachable.items()
        ],
    }


def cluster(found: ClusterStatus) -> dict[str, Any]:
    """``cluster status`` as JSON: the keys that scripts may rely on."""
    return {
        "cluster": found.cluster,
        "leader": found.leader or None,
        "version": None if (leading := found.leading) is None else leading.agreed_version,
        "version_held_up_by": list(found.held_up_by),
        "nodes": [
            {"address": seen.address, "error": seen.error}
            | (_node(seen.status, found.leading) if seen.status is not None else {})
            for seen in found.nodes
        ],
    }


def _node(node: NodeStatus, leading: NodeStatus | None) -> dict[str, Any]:
    """``member``: null if no node leads."""
    member = None if leading is None else node.node in leading.nodes
    return {**msgspec.to_builtins(node, str_keys=True), "member": member}
