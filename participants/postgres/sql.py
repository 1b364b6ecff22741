"""The statements of this room's ``queries.sql``, by name.

Parameters are ``$1 … $n``. Names in braces (``{marker}``) are replaced by literals, for statements that must
be sent as a simple query: ``PREPARE TRANSACTION`` and ``SET`` take no parameters, and several statements can
share one round trip only without parameters (https://www.postgresql.org/docs/current/protocol-flow.html,
"Simple Query")."""

from __future__ import annotations

from undoubt.participants.sql import Queries

QUERIES = Queries("undoubt.participants.postgres", parts=("who_prepared",))
query = QUERIES.text
fill = QUERIES.fill
