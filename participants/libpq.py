"""Checks which ports and database names libpq accepts, for sessions that connect with or without libpq."""

from __future__ import annotations

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

PORT_MAX = 65535


def is_port(port: int) -> bool:
    return 1 <= port <= PORT_MAX


def is_connection_string(database: str) -> bool:
    """Whether psql would read ``database`` as a connection string (``expand_dbname``:
    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PQCONNECTDBPARAMS), not as the name of a
    database. A text that has a ``=`` but that libpq cannot parse is a name."""
    if database.startswith(("postgresql://", "postgres://")):
        return True
    try:
        return "=" in database and bool(conninfo_to_dict(database))
    except ProgrammingError:
        return False
