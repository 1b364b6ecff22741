"""The statements of this room's ``queries.sql``, by name.

Parameters are ``$1 … $n``; names in braces (``{marker}``) are filled with literals, for statements that have
to go as a simple query: ``PREPARE TRANSACTION`` and ``SET`` take no parameters, and several statements share
one round trip only without them (https://www.postgresql.org/docs/current/protocol-flow.html, "Simple Query").
"""

from __future__ import annotations

from undoubt.participants.sql import Queries

QUERIES = Queries("undoubt.participants.postgres")
query = QUERIES.text
fill = QUERIES.fill
