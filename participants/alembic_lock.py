"""Making tables: Alembic, one migration at a time, and the engine that it works with.

Alembic keeps the migration that is running in globals of its own modules
(``alembic.util.langhelpers.ModuleClsProxy``), so that two threads would destroy each other's.
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
"""To be held around every command of Alembic's."""


def engine_over(
    connect: Callable[[str], psycopg.Connection[Any]],
    look: Callable[[psycopg.Connection[Any]], None] = lambda _: None,
) -> Engine:
    """An engine for what is done by hand: no transaction of it, the first questions of SQLAlchemy among
    them, runs under what the database's owner has set (:mod:`undoubt.participants.foreign_ground`).

    ``connect`` is given options for the message that opens the session; ``look`` is given each connection,
    in autocommit, and may raise.
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
            # A timeout that the database's owner has set may have ended it before it set that.
            try:
                return set_up(connect(startup_timeouts(version)))
            except Error:
                raise error from None

    def set_up(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
        try:
            connection.autocommit = True
            look(connection)
            connection.autocommit = False
            # SQLAlchemy asks this and that before it begins, in a transaction that begins here.
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
        """For each transaction by itself: behind a pooler a session belongs to others as well."""
        driver = connection.connection.driver_connection
        if driver is not None and driver.info.transaction_status == TransactionStatus.IDLE:
            try:
                driver.execute(transaction_settings(driver.info.server_version))
            except Error as error:  # as SQLAlchemy raises everything else
                raise DBAPIError("begin", None, error) from error

    return engine
