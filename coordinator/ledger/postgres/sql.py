"""Loads the statements of this room's ``queries.sql``, by name.

Parameters are psycopg's ``%(name)s``; ``{here}``, ``{held}``, ``{aborted}``, ``{durable}`` and ``{ended}``
are replaced by the parts with those names.
"""

from __future__ import annotations

from undoubt.participants.sql import Queries

QUERIES = Queries(
    "undoubt.coordinator.ledger.postgres", parts=("here", "held", "aborted", "durable", "ended")
)
query = QUERIES.text
