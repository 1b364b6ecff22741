"""Reads ``postgresql+psycopg://…`` URLs: SQLAlchemy's form, with libpq's parameters in the query.

https://docs.sqlalchemy.org/en/21/dialects/postgresql.html#module-sqlalchemy.dialects.postgresql.psycopg.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import psycopg
import sqlalchemy
from psycopg.conninfo import make_conninfo

from undoubt.coordinator.errors import LedgerMisconfigured
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.libpq import PORT_MAX, is_connection_string, is_port
from undoubt.participants.redact import redact

CONNECT_TIMEOUT_S_MIN = 2
"""The lowest connect_timeout of libpq."""
_DIGITS = re.compile("[0-9]{1,9}")
SCHEME = "postgresql+psycopg://"


def read(url: str) -> sqlalchemy.URL:
    """The parsed ``url``. If it names several hosts, only a primary is connected to, whatever
    ``target_session_attrs`` the URL has. Raises ``LedgerMisconfigured``, without the password in the message,
    for an invalid URL."""
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


def parameters(settings: LedgerSettings) -> dict[str, Any]:
    """The connection parameters for psycopg. Raises ``LedgerMisconfigured``."""
    url = read(settings.url)
    _, given = url.get_dialect()().create_connect_args(url)
    if is_connection_string(str(given.get("dbname", ""))):
        # The name is not shown: it may contain a password.
        raise LedgerMisconfigured(
            "the name of the database in the ledger URL is a connection string itself; write"
            f" {SCHEME}user@host:5432/database"
        )
    try:
        make_conninfo("", **given)
    except psycopg.Error as error:
        words = redact(str(error).strip().splitlines()[0])
        raise LedgerMisconfigured(f"ledger URL {redact(settings.url)!r} cannot be used: {words}") from None
    for port in str(given.get("port", "")).split(","):
        if port and not (_DIGITS.fullmatch(port) and is_port(int(port))):
            raise LedgerMisconfigured(
                f"ledger URL {redact(settings.url)!r} has a port that is not between 1 and {PORT_MAX}"
            )
    timeout_s = max(CONNECT_TIMEOUT_S_MIN, round(settings.request_timeout_s))
    return {**given, "connect_timeout": timeout_s}


def with_options(parameters: Mapping[str, Any], options: str) -> dict[str, Any]:
    """``parameters`` with ``options`` appended to the server options that they, or PGOPTIONS, contain
    already."""
    if not options:
        return dict(parameters)
    given = parameters.get("options", os.environ.get("PGOPTIONS", ""))
    return {**parameters, "options": f"{given} {options}".strip()}
