"""SQLAlchemy's ``twophase=True``, as its manual shows, over psycopg with a pool that is large enough.

https://docs.sqlalchemy.org/en/20/orm/session_transaction.html#enabling-two-phase-commit
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from undoubt.bench.contract import Places, SyncContender


class OrdersBase(DeclarativeBase):
    """The tables of one database."""


class PaymentsBase(DeclarativeBase):
    """The tables of the other database."""


class OrdersAccount(OrdersBase):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class PaymentsAccount(PaymentsBase):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class TwoPhase:
    """One ``Session`` for each transfer, with one UPDATE by primary key in each database."""

    def __init__(self, sessions: sessionmaker[Session], first_row: int) -> None:
        self._sessions = sessions
        self._first_row = first_row

    def transfer(self, worker: int) -> None:
        with self._sessions.begin() as session:
            for account in (OrdersAccount, PaymentsAccount):
                session.execute(
                    sa.update(account)
                    .where(account.id == self._first_row + worker)
                    .values(balance=account.balance + 1)
                    .execution_options(synchronize_session=False)
                )


@contextlib.contextmanager
def twophase(places: Places) -> Iterator[SyncContender]:
    engines = [
        sa.create_engine(
            dsn.replace("postgresql:", "postgresql+psycopg:"), pool_size=places.workers, max_overflow=0
        )
        for dsn in places.dsns
    ]
    binds = dict(zip((OrdersBase, PaymentsBase), engines, strict=True))
    yield TwoPhase(sessionmaker(binds=binds, twophase=True), places.first_row)
    for engine in engines:
        engine.dispose()
