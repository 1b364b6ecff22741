"""The statements of this room, by name. ``queries.sql`` holds them for a DBA to read.

Parameters are psycopg's ``%(name)s``; ``{here}``, ``{held}`` and ``{durable}`` stand for what has
those names.
"""

from __future__ import annotations

import re
from importlib import resources

_HEAD = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def _load() -> dict[str, str]:
    text = resources.files("undoubt.coordinator.ledger.postgres").joinpath("queries.sql").read_text("utf-8")
    parts = _HEAD.split(text)
    named: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line for line in body.splitlines() if line.strip() and not line.startswith("--")]
        statement = "\n".join(lines)
        for part in ("here", "held", "durable"):
            statement = statement.replace(f"{{{part}}}", named.get(part, ""))
        named[name] = statement
    return named


_QUERIES = _load()


def query(name: str) -> str:
    """The statement called ``name``."""
    return _QUERIES[name]
