"""Finds the statements of SQL that would end their branch, before they are sent.

A COMMIT in a branch would commit one part of the transaction, whatever becomes of the rest; PREPARE
TRANSACTION would leave a prepared one under a name of the client's. The sidecar sends one statement at a
time, so that its first words tell: inside functions and DO blocks the server itself refuses these in a
transaction block.

PostgreSQL manual, "Lexical Structure" (white space, comments, key words) and the pages of COMMIT, ROLLBACK
and PREPARE TRANSACTION; an empty statement may come before (``;commit``).
"""

from __future__ import annotations

import re

from undoubt.participants.errors import UsageError

_SKIPPED = re.compile(r"(?:[\s;]+|--[^\n\r]*)*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_COMMENT = re.compile(r"/\*|\*/")
_ENDS = frozenset({"COMMIT", "END", "ABORT", "ROLLBACK"})


def check_keeps_branch(sql: str) -> None:
    """Raises ``UsageError`` for a statement that would end the branch, or leave it prepared."""
    words = first_words(sql, 3)
    if not words:
        return
    if words[0] in {"COMMIT", "ROLLBACK"} and words[1:2] == ["PREPARED"]:
        raise UsageError(f"{words[0]} PREPARED would end another prepared transaction: no branch runs it")
    if words[0] in _ENDS and not (words[0] == "ROLLBACK" and "TO" in words[1:]):
        raise UsageError(
            f"{words[0]} would end the branch alone: commit or roll back the transaction (savepoints may be"
            " used)"
        )
    if words[:2] == ["PREPARE", "TRANSACTION"]:
        raise UsageError("PREPARE TRANSACTION would end the branch: the sidecar prepares it at the commit")


def first_words(sql: str, most: int) -> list[str]:
    """In upper case, without what stands between them; fewer where something else than a word comes."""
    found: list[str] = []
    place = _after_gap(sql, 0)
    while len(found) < most and (match := _WORD.match(sql, place)) is not None:
        found.append(match[0].upper())
        place = _after_gap(sql, match.end())
    return found


def _after_gap(sql: str, place: int) -> int:
    """Behind white space, semicolons and comments, which nest."""
    while True:
        skipped = _SKIPPED.match(sql, place)
        place = place if skipped is None else skipped.end()
        if not sql.startswith("/*", place):
            return place
        depth = 0
        while True:
            match = _COMMENT.search(sql, place)
            if match is None:
                return len(sql)  # the server refuses it
            place = match.end()
            depth += 1 if match[0] == "/*" else -1
            if not depth:
                break
