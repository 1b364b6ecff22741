"""SQLAlchemy's unit of work over several engines, and one commit: on your own engines and pools.

::

    coordinator = undoubt.sync.connect("undoubt.toml")
    Session = sessionmaker(
        class_=undoubt.integrations.sqlalchemy.Session,
        coordinator=coordinator,
        participants={orders_engine: "orders", payments_engine: "payments"},
        binds={Order: orders_engine, Payment: payments_engine},
    )

``Session`` wants psycopg engines and the coordinator of ``undoubt.sync``, ``AsyncSession`` (for
``async_sessionmaker``) asyncpg or psycopg engines and the coordinator of ``undoubt.connect``. Everything else
is as it was: ``flush``, ``begin_nested``, events, ``with Session.begin()``.

The session never rolls back after the decision. It reports the commit only when the connections are back in
their pools, clean, or closed.

In the order in which a commit passes them:

===========================  =================================================================================
:mod:`.session`              ``Session`` and ``AsyncSession``: make a connection a branch at the first
                             statement on its engine.
:mod:`.unit_of_work`         holds the connections of one transaction, and hands them to the coordinator at
                             commit.
:mod:`.sync_bridge`          calls the coordinator's event loop, through SQLAlchemy's greenlet or the portal.
:mod:`.enlisted_connection`  replaces SQLAlchemy's own transaction on one connection by a branch.
:mod:`.taken`                lends one connection of the user's pool to the coordinator until the branch has
                             ended.
:mod:`.adopted`              declares what is required of a driver's connection.
:mod:`.asyncpg_driver`       implements that for asyncpg, inside SQLAlchemy's adapter.
:mod:`.psycopg_driver`       implements that for psycopg, of either kind.
===========================  =================================================================================
"""

from __future__ import annotations

from undoubt.integrations.sqlalchemy.session import AsyncSession, Session

__all__ = ["AsyncSession", "Session"]
