"""Why this project exists: SQLAlchemy's own ``twophase=True`` commits one database and not the other, and the
same program over undoubt commits neither.

``Session.prepare()`` sends PREPARE TRANSACTION and never looks at the answer. Where an SQL error was
swallowed, PostgreSQL answers ``ROLLBACK`` and prepares nothing
(https://www.postgresql.org/docs/current/sql-prepare-transaction.html, Notes); the other database commits. It
depends on the order in which a set of connections is walked, so it happens in some runs only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import undoubt
import undoubt.sync
from undoubt.embedded import EmbeddedServer
from undoubt.integrations import sqlalchemy as undoubt_sqlalchemy

RUNS = 40
NAMES = ("orders", "payments")


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
        await asyncio.to_thread(theirs, dsns, options.runs)
        half = len(await _half(dsns))
        for dsn in dsns:
            await _empty(dsn)
        ledger = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/ledger.db"
        config = {
            "ledger": {"url": ledger},
            "participants": {name: {"dsn": dsn} for name, dsn in zip(NAMES, dsns, strict=True)},
        }
        told = [await asyncio.to_thread(ours, dsns, config, options.runs)]
        told += [await ours_async(dsns, config, options.runs, driver) for driver in ("psycopg", "asyncpg")]
        left = len(await _half(dsns))
        committed = sum([len(await _ids(dsn)) for dsn in dsns])
    result = {
        "runs": options.runs,
        "twophase_half_committed": half,
        "undoubt_half_committed": left,
        "undoubt_committed": committed,
        "undoubt_aborted": told,
    }
    return result, half >= 1 and left == committed == 0 and told == [options.runs] * 3


def theirs(dsns: list[str], runs: int) -> None:
    """The program of a user who trusts ``twophase=True``, so many times."""
    for number in range(runs):
        # New engines each time, as new processes have them: a set of objects is ordered by address.
        engines = [sa.create_engine(_url(dsn, "psycopg")) for dsn in dsns]
        binds: dict[Any, Any] = {OrdersBase: engines[0], PaymentsBase: engines[1]}
        for base, engine in binds.items():
            base.metadata.create_all(engine)
        with contextlib.suppress(sa.exc.DBAPIError), Session(twophase=True, binds=binds) as session:
            program(session, number)
        for engine in engines:
            engine.dispose()


def program(session: Session, number: int) -> None:
    session.add_all([Order(id=number), Payment(id=number)])
    session.flush()
    with contextlib.suppress(sa.exc.DBAPIError):  # the application swallows an error
        session.execute(sa.text("select 1/0"), bind_arguments={"mapper": Payment.__mapper__})
    session.commit()


def ours(dsns: list[str], config: dict[str, Any], runs: int) -> int:
    """The same program with undoubt's session; how many of the runs were told that they aborted."""
    aborted = 0
    with undoubt.sync.connect(config) as coordinator:
        for number in range(runs):
            engines = [sa.create_engine(_url(dsn, "psycopg")) for dsn in dsns]
            binds = {OrdersBase: engines[0], PaymentsBase: engines[1]}
            participants = dict(zip(engines, NAMES, strict=True))
            with undoubt_sqlalchemy.Session(
                coordinator=coordinator, participants=participants, binds=binds
            ) as session:
                try:
                    program(session, number)
                except undoubt.TransactionAborted:
                    aborted += 1
            for engine in engines:
                engine.dispose()
    return aborted


async def ours_async(dsns: list[str], config: dict[str, Any], runs: int, driver: str) -> int:
    aborted = 0
    async with undoubt.connect(config) as coordinator:
        for number in range(runs):
            engines = [create_async_engine(_url(dsn, driver)) for dsn in dsns]
            binds: dict[Any, Any] = {OrdersBase: engines[0], PaymentsBase: engines[1]}
            participants = dict(zip(engines, NAMES, strict=True))
            async with undoubt_sqlalchemy.AsyncSession(
                coordinator=coordinator, participants=participants, binds=binds
            ) as session:
                try:
                    await session.run_sync(program, number)
                except undoubt.TransactionAborted:
                    aborted += 1
            for engine in engines:
                await engine.dispose()
    return aborted


def _url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql:", f"postgresql+{driver}:")


async def _half(dsns: list[str]) -> set[int]:
    """What is in one database alone."""
    one, other = [await _ids(dsn) for dsn in dsns]
    return one ^ other


async def _empty(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("truncate entry")
    await connection.close()


async def _ids(dsn: str) -> set[int]:
    connection = await asyncpg.connect(dsn)
    try:
        return {row["id"] for row in await connection.fetch("select id from entry")}
    finally:
        await connection.close()
