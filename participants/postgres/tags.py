"""Judges by statements and their command tags whether an application has left something in its session.

Setting ``reset = "tags"`` skips the reset of a session if nothing was left as far as this shows. It does not
show what a function does (``set_config(…, false)``, session-level advisory locks, temporary tables), nor the
values of ``currval`` and ``lastval``."""

from __future__ import annotations

import re

_BLANK = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_COMMAND = re.compile(
    rf"{_BLANK}(?:select|with|values|table|insert|update|delete|merge|copy|lock|savepoint|release|rollback)\b",
    re.IGNORECASE | re.DOTALL,
)
_TAGS = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "LOCK", "SAVEPOINT", "RELEASE", "ROLLBACK"}
)
_NAMES = re.compile(
    r"\b(?:temp|temporary|pg_temp|set_config|pg_(?:try_)?advisory_lock(?:_shared)?)\b", re.IGNORECASE
)
"""Matches the names by which even a plain SELECT leaves something: SELECT INTO a temporary table, and the
functions that PostgreSQL has for it."""


def leaves_nothing(statement: object, tag: str | None) -> bool:
    """Whether ``statement`` is a single command that leaves nothing in its session by itself. ``tag`` is its
    command tag, None if the driver does not tell.

    Of several commands in one text a driver reports the last tag only, so that a text with a semicolon,
    except at its end, counts as leaving something."""
    if isinstance(statement, bytes):
        statement = statement.decode("utf-8", "replace")
    return (
        isinstance(statement, str)
        and _COMMAND.match(statement) is not None
        and ";" not in statement.rstrip().removesuffix(";")
        and _NAMES.search(statement) is None
        and (tag is None or tag.partition(" ")[0] in _TAGS)
    )
