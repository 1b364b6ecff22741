"""``postgresql+psycopg://…`` URLs: SQLAlchemy's, with libpq's parameters in the query.

https://docs.sqlalchemy.org/en/21/dialects/postgresql.html#module-sqlalchemy.dialects.postgresql.psycopg.
"""

from __future__ import annotations

import sqlalchemy

from coordinator.errors import LedgerMisconfigured
from participants.redact import redact

SCHEME = "postgresql+psycopg://"


def read(url: str) -> sqlalchemy.URL:
    """Raises ``LedgerMisconfigured``, without the password, if ``url`` is none. Of several hosts the primary
    is meant, whatever the URL says or does not say about that."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise LedgerMisconfigured(
            f"ledger URL {redact(url)!r} cannot be read; it looks like {SCHEME}user@host:5432/database, and"
            " characters like '@', ':', '/' and '#' in a part of it must be percent-encoded"
        ) from None
    if not parsed.database:
        raise LedgerMisconfigured(
            f"ledger URL {redact(url)!r} names no database: {SCHEME}user@host:5432/database"
        )
    hosts = parsed.query.get("host", "")
    if not isinstance(hosts, str) or "," in hosts:
        parsed = parsed.update_query_dict({"target_session_attrs": "read-write"})
    return parsed
