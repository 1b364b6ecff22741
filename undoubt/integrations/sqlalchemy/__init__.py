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

What happens, in order: the first statement on an engine makes its connection a branch (:mod:`~.member`, which
the engine has as :mod:`~.taken`, with :mod:`~.psycopg_driver` or :mod:`~.asyncpg_driver`); ``commit`` flushes
and hands all of them to the coordinator (:mod:`~.unit`); when it has finished, connections go back to their
pools as clean as they came, or are thrown away; only then does the session hear that it has committed. It
never rolls back after the decision.
"""

from __future__ import annotations

from undoubt.integrations.sqlalchemy.session import AsyncSession, Session

__all__ = ["AsyncSession", "Session"]
