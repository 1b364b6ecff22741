"""SQLModel: its sessions with one commit over all engines.

::

    from undoubt.integrations.sqlmodel import Session     # in place of: from sqlmodel import Session

    with Session(coordinator=coordinator, participants={orders: "orders", payments: "payments"}, binds=…) as
    session:
        session.add(Order(item="a lamp"))
        session.commit()

``exec``, models and everything else are SQLModel's; the arguments are those of
:mod:`undoubt.integrations.sqlalchemy`.
"""

from __future__ import annotations

from undoubt.integrations import sqlalchemy
from undoubt.integrations.extras import needs

with needs("sqlmodel"):
    import sqlmodel
    from sqlmodel.ext.asyncio import session as sqlmodel_asyncio

__all__ = ["AsyncSession", "Session"]


class Session(sqlalchemy.Session, sqlmodel.Session):
    """``sqlmodel.Session`` over :class:`undoubt.integrations.sqlalchemy.Session`."""


class AsyncSession(sqlalchemy.AsyncSession, sqlmodel_asyncio.AsyncSession):
    """``sqlmodel.ext.asyncio.session.AsyncSession`` over
    :class:`undoubt.integrations.sqlalchemy.AsyncSession`."""

    sync_session_class = Session
