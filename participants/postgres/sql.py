"""The SQL of this room, by name, and the quoting of what cannot be a parameter.

``queries.sql`` holds the statements for a DBA to read; nothing in it depends on a driver. Parameters are
``$1 … $n``; names in braces (``{marker}``) are filled by :func:`fill` with literals, for statements that
have to go as a simple query: ``PREPARE TRANSACTION`` and ``SET`` take no parameters, and several statements
share one round trip only without them
(https://www.postgresql.org/docs/current/protocol-flow.html, "Simple Query").
"""

from __future__ import annotations

import re
from importlib import resources

from undoubt.participants.invariant import invariant
from undoubt.participants.quoting import identifier, literal

__all__ = ["fill", "identifier", "literal", "query"]

_HEAD = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load() -> dict[str, str]:
    text = resources.files("undoubt.participants.postgres").joinpath("queries.sql").read_text("utf-8")
    parts = _HEAD.split(text)
    named = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("--")]
        named[name] = "\n".join(lines).removesuffix(";")
    return named


_QUERIES = _load()


def query(name: str) -> str:
    """The statement called ``name``."""
    return _QUERIES[name]


def fill(name: str, **literals: str) -> str:
    """The statement called ``name`` with its ``{names}`` replaced by quoted ``literals``."""
    text = _QUERIES[name]
    for key, value in literals.items():
        place = f"{{{key}}}"
        invariant(place in text, f"query {name} has no place for {key}")
        text = text.replace(place, literal(value))
    return text
