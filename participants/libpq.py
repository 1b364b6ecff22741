"""What libpq understands by a port and by a database's name, for whoever connects through it or beside it."""

from __future__ import annotations

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

PORT_MAX = 65535


def is_port(port: int) -> bool:
    return 1 <= port <= PORT_MAX


def is_connection_string(database: str) -> bool:
    """Whether psql would connect by it (``expand_dbname``:
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PQCONNECTDBPARAMS) rather than to a
    database of that name. One with a ``=`` in it that libpq cannot read is a name."""
    if database.startswith(("postgresql://", "postgres://")):
        return True
    try:
        return "=" in database and bool(conninfo_to_dict(database))
    except ProgrammingError:
        return False
