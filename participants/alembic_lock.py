"""Runs one Alembic migration at a time, and makes the SQLAlchemy engine that it uses.

Alembic keeps the running migration in globals of its modules (``alembic.util.langhelpers.ModuleClsProxy``),
so that migrations in two threads would destroy each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from undoubt.participants.hardened_session import startup_timeouts, transaction_settings

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

ALONE = threading.Lock()
"""The lock that must be held around every Alembic command."""


_IDLE = (
    "select reset_val from pg_catalog.pg_settings where name operator(pg_catalog.=) 'idle_session_timeout'"
)


def engine_over(
    connect: Callable[[str], psycopg.Connection[Any]],
    look: Callable[[psycopg.Connection[Any]], None] = lambda _: None,
) -> Engine:
    """An engine for migrations and for commands of an operator: none of its transactions, and none of
    SQLAlchemy's first queries, runs under settings of the database's owner
    (:mod:`undoubt.participants.hardened_session`).

    ``connect`` is called with options for the startup message of the session. ``look`` is called with each
    connection, in autocommit mode, and may raise.
    """
    from psycopg import Error  # noqa: PLC0415
    from psycopg.pq import TransactionStatus  # noqa: PLC0415
    from sqlalchemy import NullPool, create_engine, event  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    def connected() -> psycopg.Connection[Any]:
        """A connection that has been set up. If a timeout that the database's owner has set has ended it
        before it was set up, or can end it between two transactions, which set their own, the next one has no
        timeouts from its startup on; a pooler refuses that one."""
        connection = connect("")
        version = connection.info.server_version
        try:
            if not _ends_when_idle(_set_up(connection, look)):
                return connection
        except Error as error:
            try:
                return _set_up(connect(startup_timeouts(version)), look)
            except Error:
                raise error from None
        try:
            insisting = _set_up(connect(startup_timeouts(version)), look)
        except Error:
            return connection
        connection.close()
        return insisting

    engine = create_engine(
        "postgresql+psycopg://", creator=connected, poolclass=NullPool, use_native_hstore=False
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Set each transaction up separately: behind a pooler other clients use the session as well."""
        driver = connection.connection.driver_connection
        if driver is not None and driver.info.transaction_status == TransactionStatus.IDLE:
            try:
                driver.execute(transaction_settings(driver.info.server_version))
            except Error as error:  # the class that SQLAlchemy raises for other errors
                raise DBAPIError("begin", None, error) from error

    return engine


def _set_up(
    connection: psycopg.Connection[Any], look: Callable[[psycopg.Connection[Any]], None]
) -> psycopg.Connection[Any]:
    try:
        connection.autocommit = True
        look(connection)
        connection.autocommit = False
        # SQLAlchemy sends queries before its "begin" event; their transaction begins here.
        connection.execute(transaction_settings(connection.info.server_version))
    except BaseException:
        connection.close()
        raise
    return connection


def _ends_when_idle(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server ends this session if it is idle between two transactions."""
    try:
        found = connection.execute(_IDLE).fetchone()
    except BaseException:
        connection.close()
        raise
    return found is not None and found[0] != "0"
