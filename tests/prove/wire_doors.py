"""The ways in which an application moves money through undoubt, each with its driver, for ``wire``."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import undoubt
import undoubt.sync
from tests.prove.wire_proxy import Wire
from undoubt.coordinator.protocols.steps import Observer
from undoubt.integrations import sqlalchemy as undoubt_sqlalchemy

T = TypeVar("T")

ORDERS, PAYMENTS, RATES = NAMES = ("orders", "payments", "rates")
"""Money goes from the first to the second; from the third a transfer reads."""
ACCOUNTS = 64
BALANCE = 1_000_000

SCHEMAS = {
    **dict.fromkeys(
        (ORDERS, PAYMENTS),
        f"""
        create table account (id int primary key, balance bigint not null);
        create table transfer (id text primary key);
        insert into account select generate_series(0, {ACCOUNTS - 1}), {BALANCE};
        """,
    ),
    RATES: "create table rate (id text primary key, price int not null); insert into rate values ('x', 1);",
}


@dataclass(slots=True)
class Transfer:
    """One transfer. ``name`` is left as a row in every database that it wrote in."""

    name: str
    account: int
    writers: tuple[str, ...]
    """Two participants, or one, which commits in one phase."""
    timeout_s: float
    reads: bool = True
    all_said: bool = False
    """Its last statement has been answered: what follows is the commit."""

    def statements(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Participant, text with ``{}`` for a parameter, parameters. No text comes twice, so that what a
        driver remembers of earlier ones changes nothing of what it sends."""
        moves = list(zip(self.writers, (-10, 10), strict=False))
        if len(moves) == 1:
            moves.append((self.writers[0], 10))
        said: list[tuple[str, str, tuple[str, ...]]] = []
        for number, (name, amount) in enumerate(moves):
            account = (self.account + number) % ACCOUNTS
            said.append((name, f"update account set balance = balance + {amount} where id = {account}", ()))
        said += [
            (name, f"insert into transfer (id) values ({{}}) /* {self.name} */", (self.name,))
            for name in self.writers
        ]
        if self.reads:
            said.append((RATES, f"select price from rate where id = {{}} /* {self.name} */", ("x",)))
        return said


class Door(abc.ABC):
    """One coordinator, and an application's way of working with it. ``open`` comes first."""

    def __init__(self, settings: Mapping[str, Any], wires: Mapping[str, Wire], observe: Observer) -> None:
        self._settings = dict(settings)
        self._wires = wires
        self._observe = observe
        self._stack = AsyncExitStack()

    @property
    @abc.abstractmethod
    def engine(self) -> undoubt.Coordinator: ...

    @abc.abstractmethod
    async def open(self) -> None: ...

    async def close(self) -> None:
        await self._stack.aclose()

    @abc.abstractmethod
    async def transfer(self, transfer: Transfer) -> None:
        """Returns if it is told that it has committed; raises what the application is told else."""

    @abc.abstractmethod
    async def in_loop(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """``await function(*arguments)`` in the coordinator's event loop."""


class AsyncDoor(Door):
    """``undoubt.connect``."""

    async def open(self) -> None:
        opened = undoubt.connect(self._settings, recover=False, observe=self._observe)
        self._coordinator = await self._stack.enter_async_context(opened)

    @property
    def engine(self) -> undoubt.Coordinator:
        return self._coordinator

    async def transfer(self, transfer: Transfer) -> None:
        async with self._coordinator.transaction(timeout=transfer.timeout_s) as tx:
            for name, sql, values in transfer.statements():
                branch: Any = await tx.branch(name)
                if isinstance(branch, psycopg.AsyncConnection):
                    await branch.execute(sql.format("%s"), values or None)
                else:
                    await branch.execute(sql.format("$1"), *values)
            transfer.all_said = True

    async def in_loop(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        return await function(*arguments)


class SyncDoor(Door):
    """``undoubt.sync.connect``, in a thread."""

    async def open(self) -> None:
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="wire")
        self._coordinator = await self._in_thread(
            lambda: undoubt.sync.connect(self._settings, recover=False, observe=self._observe)
        )

    async def close(self) -> None:
        await self._in_thread(self._coordinator.close)
        self._threads.shutdown(wait=False)

    @property
    def engine(self) -> undoubt.Coordinator:
        return self._coordinator.engine

    async def transfer(self, transfer: Transfer) -> None:
        await self._in_thread(self._transfer, transfer)

    def _transfer(self, transfer: Transfer) -> None:
        with self._coordinator.transaction(timeout=transfer.timeout_s) as tx:
            for name, sql, values in transfer.statements():
                tx.branch(name).execute(sql.format("%s").encode(), values or None)
            transfer.all_said = True

    async def in_loop(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        return await self._in_thread(self._coordinator.portal.call, function, *arguments)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


class SessionDoor(SyncDoor):
    """``undoubt.integrations.sqlalchemy.Session`` on engines of the application's own."""

    async def open(self) -> None:
        await super().open()
        self._engines = {
            name: sa.create_engine(url(wire, "psycopg"), connect_args={"connect_timeout": 2}, pool_timeout=10)
            for name, wire in self._wires.items()
        }

    async def close(self) -> None:
        for engine in self._engines.values():
            await self._in_thread(engine.dispose)
        await super().close()

    def _transfer(self, transfer: Transfer) -> None:
        with undoubt_sqlalchemy.Session(
            coordinator=self._coordinator,
            participants={engine: name for name, engine in self._engines.items()},
            timeout=transfer.timeout_s,
        ) as session:
            for name, sql, values in transfer.statements():
                session.execute(*_statement(sql, values), bind_arguments={"bind": self._engines[name]})
            transfer.all_said = True
            session.commit()


class AsyncSessionDoor(AsyncDoor):
    """``undoubt.integrations.sqlalchemy.AsyncSession``, with engines of ``driver``."""

    driver = "asyncpg"
    timeout = "timeout"
    """What that driver calls its limit on connecting."""

    async def open(self) -> None:
        await super().open()
        self._engines = {
            name: create_async_engine(url(wire, self.driver), connect_args={self.timeout: 2}, pool_timeout=10)
            for name, wire in self._wires.items()
        }

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.dispose()
        await super().close()

    async def transfer(self, transfer: Transfer) -> None:
        async with undoubt_sqlalchemy.AsyncSession(
            coordinator=self._coordinator,
            participants={engine: name for name, engine in self._engines.items()},
            timeout=transfer.timeout_s,
        ) as session:
            for name, sql, values in transfer.statements():
                bind = self._engines[name].sync_engine
                await session.execute(*_statement(sql, values), bind_arguments={"bind": bind})
            transfer.all_said = True
            await session.commit()


class PsycopgSessionDoor(AsyncSessionDoor):
    driver = "psycopg"
    timeout = "connect_timeout"


def _statement(sql: str, values: tuple[str, ...]) -> tuple[sa.TextClause, dict[str, str]]:
    return sa.text(sql.format(":value")), {"value": values[0]} if values else {}


def url(wire: Wire, driver: str) -> sa.URL:
    """SQLAlchemy's, of the way through that wire."""
    to = wire.parameters
    return sa.URL.create(
        f"postgresql+{driver}",
        username=to.get("user"),
        password=to.get("password"),
        host=to["host"],
        port=int(to["port"]),
        database=to.get("dbname"),
    )
