"""``undoubt indoubt explain`` as JSON: the keys that scripts may rely on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from undoubt.coordinator.ledger.contract import Heuristic, RecordedDecision, SessionInfo
from undoubt.recovery.operator.explain import Explanation
from undoubt.recovery.operator.explain_heuristic import HeuristicExplanation
from undoubt.report import shapes
from undoubt.report.times import age, iso


def document(explanation: Explanation, siblings: Sequence[Heuristic] = ()) -> dict[str, Any]:
    """One object; moments are ISO 8601 in UTC, lengths of time in seconds."""
    found = explanation.found
    return {
        "branch": shapes.prepared(found, siblings),
        "decision": _decision(explanation),
        "session": None if explanation.session is None else session_document(explanation.session),
        "votes": [dataclasses.asdict(vote) for vote in explanation.votes],
        "blocks": shapes.blocks(explanation.burden),
        "vacuum": shapes.vacuum(explanation.burden) | {"xid": found.branch.xid},
        "safe_action": {"action": found.standing.action, "command": explanation.command},
        "proof": list(explanation.proof),
        "heuristic": None,
    }


def heuristic_document(explanation: HeuristicExplanation) -> dict[str, Any]:
    """For a branch that is no longer prepared and ended otherwise than was decided."""
    gid = explanation.heuristic.gid
    return {
        "branch": {
            "gid": str(gid),
            "txid": str(gid.txid),
            "participant": gid.participant,
            "protocol": shapes.protocol_name(gid.protocol),
        },
        "heuristic": shapes.heuristic(explanation.heuristic),
        "transaction": None if explanation.info is None else shapes.transaction(explanation.info, gid.ledger),
        "repair": list(explanation.repair),
        "command": None if explanation.heuristic.forgotten else f"undoubt indoubt forget {gid}",
    }


def _decision(explanation: Explanation) -> dict[str, Any]:
    info, standing = explanation.info, explanation.found.standing
    recorded = None if info is None or info.record is RecordedDecision.NOT_RECORDED else str(info.record)
    return {
        "standing": str(standing),
        "recorded": recorded,
        "why": explanation.found.why,
        "decided_at": iso(info.decided_at) if info else None,
        "age_s": age(info.decided_at) if info else None,
        "coordinator": info.coordinator if info else None,
    }


def session_document(session: SessionInfo) -> dict[str, Any]:
    """One session of the ledger, without its nonce."""
    return {
        "id": session.id,
        "name": session.name,
        "state": str(session.state),
        "floor": session.floor,
        "ttl_s": session.ttl_s,
    }
