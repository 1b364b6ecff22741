"""SQL's quoting, for what cannot be a parameter."""

from __future__ import annotations

from collections.abc import Iterable

from undoubt.participants.invariant import invariant


def literal(text: str) -> str:
    """``text`` as a string constant, whatever ``standard_conforming_strings`` says."""
    invariant("\0" not in text, "PostgreSQL takes no zero byte in a string")
    quoted = text.replace("'", "''")
    if "\\" in quoted:
        return " E'" + quoted.replace("\\", "\\\\") + "'"
    return f"'{quoted}'"


def identifier(text: str) -> str:
    """``text`` as a quoted identifier."""
    invariant("\0" not in text, "PostgreSQL takes no zero byte in a name")
    return '"' + text.replace('"', '""') + '"'


def names(texts: Iterable[str]) -> str:
    """An array of names (``name[]``)."""
    return f"array[{', '.join(map(literal, texts))}]::pg_catalog.name[]"
