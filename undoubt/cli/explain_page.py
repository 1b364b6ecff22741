"""The page of ``undoubt indoubt explain``: decision, votes, what it blocks, the safe action, the proof."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from undoubt.cli.durations import show_duration
from undoubt.cli.output import Output

WIDTH = 96


def explain_page(out: Output, document: dict[str, Any]) -> None:
    """Print ``document`` as a page."""
    if document["heuristic"] is not None:
        _heuristic_page(out, document)
        return
    branch, decision = document["branch"], document["decision"]
    out.heading(branch["gid"])
    _paragraph(
        out,
        f"prepared in {branch['participant']} (database {branch['database']}, owner {branch['owner']})"
        f" for {show_duration(branch['age_s'])}, since {branch['prepared_at']}"
        + (f"; protocol {branch['protocol']}" if branch["protocol"] else ""),
    )
    _section(out, "Decision", [_decision_line(decision)])
    votes = [_vote_line(vote) for vote in document["votes"]]
    _section(out, "Votes", votes or ["not known here"])
    _section(out, "Blocks", _blocks_lines(document["blocks"]))
    _section(out, "Vacuum", [_vacuum_line(document["vacuum"])])
    _section(out, "Safe action", [_action_line(document["safe_action"]["action"], branch)])
    if command := document["safe_action"]["command"]:
        out.line(f"  {command}")
    _section(out, "Proof", document["proof"])


def _heuristic_page(out: Output, document: dict[str, Any]) -> None:
    found = document["heuristic"]
    out.heading(document["branch"]["gid"])
    branch = document["branch"]
    _paragraph(out, f"no longer prepared in {branch['participant']}; protocol {branch['protocol']}")
    forgotten = "; forgotten since" if found["forgotten"] else ""
    outcome = f"{found['kind'].replace('_', ' ')}, found {found['found_at']}{forgotten}"
    _section(out, "Outcome", [outcome, *([found["note"]] if found["note"] else [])])
    _section(out, "What to do", document["repair"])
    if document["command"]:
        out.line(f"  {document['command']}")


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
    count = "" if xids is None else f" and {xids:,} transactions"
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


def _section(out: Output, title: str, lines: Sequence[str]) -> None:
    out.line()
    out.heading(title)
    for line in lines:
        _paragraph(out, line)


def _paragraph(out: Output, text: str) -> None:
    # A gid is never broken: it must survive being copied.
    for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False):
        out.line(f"  {line}")
