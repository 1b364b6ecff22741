"""Why this project exists: SQLAlchemy's own ``twophase=True`` commits one database and not the other.

``Session.prepare()`` sends PREPARE TRANSACTION and never looks at the answer. Where an SQL error was
swallowed, PostgreSQL answers ``ROLLBACK`` and prepares nothing
(https://www.postgresql.org/docs/current/sql-prepare-transaction.html, Notes); the other database commits. It
depends on the order in which a set of connections is walked, so it happens in some runs only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from undoubt.embedded import EmbeddedServer

RUNS = 40


class OrdersBase(DeclarativeBase):
    pass


class PaymentsBase(DeclarativeBase):
    pass


class Order(OrdersBase):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)


class Payment(PaymentsBase):
    __tablename__ = "entry"
    id: Mapped[int] = mapped_column(primary_key=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=RUNS)


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with AsyncExitStack() as stack:
        dsns = []
        for _ in range(2):
            server = await stack.enter_async_context(EmbeddedServer())
            dsns.append(await server.create_database("shop"))
        await asyncio.to_thread(half_commits, dsns, options.runs)
        counted = [await _ids(dsn) for dsn in dsns]
    half = counted[0] ^ counted[1]
    return {"runs": options.runs, "twophase_half_committed": len(half)}, len(half) >= 1


def half_commits(dsns: list[str], runs: int) -> None:
    """The program of a user who trusts ``twophase=True``, so many times."""
    for number in range(runs):
        # New engines each time, as new processes have them: a set of objects is ordered by address.
        engines = [sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:")) for dsn in dsns]
        binds = {OrdersBase: engines[0], PaymentsBase: engines[1]}
        for base, engine in binds.items():
            base.metadata.create_all(engine)
        with contextlib.suppress(sa.exc.DBAPIError), Session(twophase=True, binds=binds) as session:
            session.add_all([Order(id=number), Payment(id=number)])
            session.flush()
            with contextlib.suppress(sa.exc.DBAPIError):  # the application swallows an error
                session.execute(sa.text("select 1/0"), bind_arguments={"mapper": Payment.__mapper__})
            session.commit()
        for engine in engines:
            engine.dispose()


async def _ids(dsn: str) -> set[int]:
    connection = await asyncpg.connect(dsn)
    try:
        return {row["id"] for row in await connection.fetch("select id from entry")}
    finally:
        await connection.close()
