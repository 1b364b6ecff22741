"""Two databases, an application with its own engines and pools, and a coordinator over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import undoubt
import undoubt.sync
from undoubt.coordinator.coordinator import Coordinator
from undoubt.integrations.sqlalchemy import AsyncSession, Session

KINDS = ("sync psycopg", "async psycopg", "async asyncpg")
NAMES = ("orders", "payments")


class OrdersBase(DeclarativeBase):
    pass


class Order(OrdersBase):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class PaymentsBase(DeclarativeBase):
    pass


class Payment(PaymentsBase):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


_TABLES = {
    "orders": "create table orders (id int primary key, item text not null)",
    "payments": "create table payments (id int primary key, amount int not null check (amount >= 0))",
}


@dataclass
class World:
    """``admin``: a connection to each database, for looking from outside."""

    kind: str
    dsns: dict[str, str]
    config: dict[str, Any]
    admin: dict[str, asyncpg.Connection[asyncpg.Record]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    """Steps of the protocol."""
    at_step: Callable[[str, str], Any] | None = None
    """Awaited at every step, with its subject, in the engine's loop."""

    async def ids(self) -> tuple[set[int], set[int]]:
        """Of the rows in both, as everybody else sees them."""
        found = [await self.admin[name].fetch(f"select id from {name}") for name in NAMES]
        return {row["id"] for row in found[0]}, {row["id"] for row in found[1]}

    async def prepared(self) -> list[str]:
        sql = "select gid from pg_prepared_xacts where database = current_database()"
        return [row["gid"] for name in NAMES for row in await self.admin[name].fetch(sql)]

    async def observe(self, step: Any, subject: str) -> None:
        self.seen.append(str(step))
        if self.at_step is not None:
            await self.at_step(str(step), subject)


@dataclass
class App:
    """The application: its engines, its sessions, and what it runs."""

    world: World
    engines: dict[str, Any]
    coordinator: Any
    made: Any

    @property
    def engine(self) -> Coordinator:
        """The coordinator at work, whichever door it is behind."""
        return getattr(self.coordinator, "engine", self.coordinator)  # type: ignore[no-any-return]

    def sync_engine(self, name: str) -> sa.Engine:
        engine = self.engines[name]
        return getattr(engine, "sync_engine", engine)  # type: ignore[no-any-return]

    async def outcome(self, txid: Any) -> Any:
        """What the coordinator answers, whichever door it is behind."""
        if self.world.kind.startswith("sync"):
            return await asyncio.to_thread(self.coordinator.outcome, txid)
        return await self.coordinator.outcome(txid)

    async def run(self, program: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """``program(session, …)`` in a session of its own: in a thread, or from a coroutine."""
        if self.world.kind.startswith("sync"):
            return await asyncio.to_thread(self._run_here, program, arguments, options)
        async with self.made(**options) as session:
            return await session.run_sync(program, *arguments)

    def _run_here(self, program: Callable[..., Any], arguments: Any, options: Any) -> Any:
        with self.made(**options) as session:
            return program(session, *arguments)


@pytest_asyncio.fixture(params=KINDS)
async def world(
    databases: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    config = {
        "ledger": {"url": f"sqlite:///{tmp_path / 'ledger.db'}"},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    world = World(request.param, databases, config)
    for name, dsn in databases.items():
        world.admin[name] = await asyncpg.connect(dsn)
        await world.admin[name].execute(_TABLES[name])
    yield world
    for connection in world.admin.values():
        await connection.close()


@asynccontextmanager
async def application(world: World, **engine_options: Any) -> AsyncIterator[App]:
    sort, driver = world.kind.split()
    make = sa.create_engine if sort == "sync" else create_async_engine
    options = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 30, **engine_options}
    engines: dict[str, Any] = {
        name: make(dsn.replace("postgresql:", f"postgresql+{driver}:"), **options)
        for name, dsn in world.dsns.items()
    }
    arguments: dict[str, Any] = {
        "participants": {engine: name for name, engine in engines.items()},
        "binds": {Order: engines["orders"], Payment: engines["payments"]},
    }
    coordinator: undoubt.Coordinator | undoubt.sync.Coordinator
    async with AsyncExitStack() as stack:
        if sort == "sync":
            coordinator = opened = await asyncio.to_thread(
                undoubt.sync.connect, world.config, observe=world.observe
            )
            stack.push_async_callback(asyncio.to_thread, opened.close)
            made: Any = sessionmaker(class_=Session, coordinator=coordinator, **arguments)
        else:
            connected = undoubt.connect(world.config, observe=world.observe)
            coordinator = await stack.enter_async_context(connected)
            made = async_sessionmaker(class_=AsyncSession, coordinator=coordinator, **arguments)
        yield App(world, engines, coordinator, made)
    for engine in engines.values():
        if sort == "sync":
            engine.dispose()
        else:
            await engine.dispose()


@pytest_asyncio.fixture
async def app(world: World) -> AsyncIterator[App]:
    async with application(world) as app:
        yield app
