"""Runs one Alembic migration at a time, and makes the SQLAlchemy engine that it uses.

Alembic keeps the running migration in globals of its modules (``alembic.util.langhelpers.ModuleClsProxy``),
so that migrations in two threads would destroy each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from undoubt.participants.foreign_ground import startup_timeouts, transaction_settings

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, Engine

ALONE = threading.Lock()
"""The lock that must be held around every Alembic command."""


def engine_over(
    connect: Callable[[str], psycopg.Connection[Any]],
    look: Callable[[psycopg.Connection[Any]], None] = lambda _: None,
) -> Engine:
    """An engine for migrations and for commands of an operator: none of its transactions, and none of
    SQLAlchemy's first queries, runs under settings of the database's owner
    (:mod:`undoubt.participants.foreign_ground`).

    ``connect`` is called with options for the startup message of the session. ``look`` is called with each
    connection, in autocommit mode, and may raise.
    """
    from psycopg import Error  # noqa: PLC0415
    from psycopg.pq import TransactionStatus  # noqa: PLC0415
    from sqlalchemy import NullPool, create_engine, event  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    def connected() -> psycopg.Connection[Any]:
        connection = connect("")
        version = connection.info.server_version
        try:
            return set_up(connection)
        except Error as error:
            # A timeout that the database's owner has set may have ended the session before our settings did.
            try:
                return set_up(connect(startup_timeouts(version)))
            except Error:
                raise error from None

    def set_up(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
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
