"""Commits SQLAlchemy's unit of work over several engines atomically, on the application's engines and pools.

::

    coordinator = undoubt.sync.connect("undoubt.toml")
    Session = sessionmaker(
        class_=undoubt.integrations.sqlalchemy.Session,
        coordinator=coordinator,
        participants={orders_engine: "orders", payments_engine: "payments"},
        binds={Order: orders_engine, Payment: payments_engine},
    )

``Session`` requires psycopg engines and the coordinator of ``undoubt.sync``. ``AsyncSession`` (for
``async_sessionmaker``) requires asyncpg or psycopg engines and the coordinator of ``undoubt.connect``.
SQLAlchemy's other functions are unchanged: ``flush``, ``begin_nested``, events, ``with Session.begin()``.

The session never rolls back after the decision. It reports the commit only after the connections are back in
their pools, clean, or closed.

In the order in which a commit passes through them:

===========================  =================================================================================
:mod:`.session`              ``Session`` and ``AsyncSession``: make a connection a branch at the first
                             statement on its engine.
:mod:`.noticed_engines`      refuses SQLAlchemy's own two-phase commit on the engines of participants.
:mod:`.unit_of_work`         holds the connections of one transaction, and passes them to the coordinator at
                             commit.
:mod:`.sync_bridge`          calls the coordinator's event loop, through SQLAlchemy's greenlet or the portal.
:mod:`.enlisted_connection`  replaces SQLAlchemy's transaction on one connection by a branch.
:mod:`.lent_connection`      lends one connection of the application's pool to the coordinator until the
                             branch has ended.
:mod:`.adopted`              declares the interface of a driver's connection.
:mod:`.asyncpg_driver`       implements it for asyncpg, inside SQLAlchemy's adapter.
:mod:`.psycopg_driver`       implements it for psycopg, synchronous and asynchronous.
===========================  =================================================================================
"""

from __future__ import annotations

from undoubt.integrations.sqlalchemy.session import AsyncSession, Session, ShardedSession

__all__ = ["AsyncSession", "Session", "ShardedSession"]
