"""What is known of one branch, in sentences: decision, votes, what it blocks, the safe action, the proof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undoubt.participants.plural import plural
from undoubt.report.times import show_duration


def sections(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The page in parts: ``title``, ``lines`` of text, and the ``command`` beneath them, or null. The first
    part has no title."""
    return _of_heuristic(document) if document["heuristic"] is not None else _of_branch(document)


def _of_branch(document: dict[str, Any]) -> list[dict[str, Any]]:
    branch, decision, safe = document["branch"], document["decision"], document["safe_action"]
    about = (
        f"prepared in {branch['participant']} (database {branch['database']}, owner {branch['owner']})"
        f" for {show_duration(branch['age_s'])}, since {branch['prepared_at']}"
        + (f"; protocol {branch['protocol']}" if branch["protocol"] else "")
    )
    votes = [_vote_line(vote) for vote in document["votes"]]
    return [
        _section("", [about]),
        _section("Decision", [_decision_line(decision)]),
        _section("Votes", votes or ["not known here"]),
        _section("Blocks", _blocks_lines(document["blocks"])),
        _section("Vacuum", [_vacuum_line(document["vacuum"])]),
        _section("Safe action", [_action_line(safe["action"], branch)], safe["command"]),
        _section("Proof", document["proof"]),
    ]


def _of_heuristic(document: dict[str, Any]) -> list[dict[str, Any]]:
    found, branch = document["heuristic"], document["branch"]
    forgotten = "; forgotten since" if found["forgotten"] else ""
    outcome = f"{found['kind'].replace('_', ' ')}, found {found['found_at']}{forgotten}"
    return [
        _section("", [f"no longer prepared in {branch['participant']}; protocol {branch['protocol']}"]),
        _section("Outcome", [outcome, *([found["note"]] if found["note"] else [])]),
        _section("What to do", document["repair"], document["command"]),
    ]


def _section(title: str, lines: Sequence[str], command: str | None = None) -> dict[str, Any]:
    return {"title": title, "lines": list(lines), "command": command}


def _decision_line(decision: dict[str, Any]) -> str:
    line = f"{decision['standing'].replace('_', ' ')}: {decision['why']}"
    if decision["decided_at"]:
        who = f" by {decision['coordinator']}" if decision["coordinator"] else ""
        line += f"; decided {decision['decided_at']}, {show_duration(decision['age_s'])} ago{who}"
    return line


def _vote_line(vote: dict[str, Any]) -> str:
    now = {
        "prepared": "still prepared there",
        "not_prepared": "no longer prepared there",
        "no_answer": "the database does not answer",
    }[vote["now"]]
    voted = "voted prepared" if vote["vote"] == "prepared" else "its vote is not recorded"
    return f"{vote['number']} {vote['participant']}: {voted}, {now}"


def _blocks_lines(blocks: dict[str, Any]) -> list[str]:
    if blocks["unknown"]:
        return [f"not known: {blocks['unknown']}"]
    if not blocks["sessions"]:
        return ["no session waits for it now; it still holds its row locks"]
    return [f"{one['waiter']} waits for it (backend {one['pid']})" for one in blocks["sessions"]]


def _vacuum_line(vacuum: dict[str, Any]) -> str:
    held = show_duration(vacuum["held_back_s"])
    xid, xids = vacuum["xid"], vacuum["held_back_xids"]
    count = "" if xids is None else f" and {plural(xids, 'transaction')}"
    since = "" if xid is None else f" dead since transaction id {xid} began"
    return f"held back for {held}{count} at least: no row version{since} can be removed in this database"


def _action_line(action: str, branch: dict[str, Any]) -> str:
    """The line before the command, if there is one."""
    match action:
        case "commit" | "rollback" as name if branch["owner_gone"]:
            return (
                f"{name}; its role is gone; only a superuser can finish it, in database {branch['database']}:"
            )
        case "commit" | "rollback" as name:
            return f"{name}; recovery does this (undoubt recover --once), or:"
        case "wait":
            return "leave it alone:"
        case "decide":
            return "none is proved; see below"
        case _:
            return "none by undoubt"
