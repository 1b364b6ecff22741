"""What the cases of the proof ``blocks`` are played on, and what is noted about each."""

from __future__ import annotations

import asyncio
import enum
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import undoubt
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.transaction import Transaction
from undoubt.embedded import EmbeddedServer
from undoubt.participants.ids import Gid

NAMES = ("orders", "payments")
TIMEOUT_S = 0.7
CASE_S = 60.0
"""A case that has not ended by then hangs."""
ROW_S = 20.0
"""Its row must be free by then once a transaction is over."""
ROWS = 5_000


class AppError(Exception):
    """The application's own."""


class Victim(Exception):
    """Why a transaction is aborted from outside."""


class Ended(enum.Enum):
    """How a program was told that its transaction has ended."""

    COMMITTED = "without an error"
    ROLLED_BACK = "rolled back by itself, without an error"
    ABORTED = "TransactionAborted"
    CANCELLED = "CancelledError"
    APPLICATION = "the application's own error"
    OTHER = "another error"


class Work(Protocol):
    """The application's side of a transaction."""

    @property
    def tx(self) -> Transaction: ...
    async def execute(self, name: str, sql: str) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...


class Stage:
    """Two servers, one coordinator for each driver, and engines of SQLAlchemy."""

    def __init__(self) -> None:
        self.dsns: dict[str, str] = {}
        self.coordinators: dict[str, undoubt.Coordinator] = {}
        self.engines: dict[str, dict[str, AsyncEngine]] = {}
        self.at_prepare: dict[str, Callable[[], None]] = {}
        """Called once a branch of the transaction is prepared."""
        self._looking: asyncpg.Pool[asyncpg.Record]

    async def build(self, opened: AsyncExitStack) -> None:
        for name in NAMES:
            server = await opened.enter_async_context(EmbeddedServer(durable=False))
            self.dsns[name] = await server.create_database("blocks")
            await self._fill(name)
        self._looking = await opened.enter_async_context(
            asyncpg.create_pool(self.dsns["orders"], min_size=1, max_size=8)
        )
        for driver in ("asyncpg", "psycopg"):
            self.coordinators[driver] = await opened.enter_async_context(
                undoubt.connect(self.configuration(driver, opened), observe=self._observe)
            )
            self.engines[driver] = {}
            for name, dsn in self.dsns.items():
                engine = create_async_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
                opened.push_async_callback(engine.dispose)
                self.engines[driver][name] = engine

    def configuration(self, driver: str, opened: AsyncExitStack) -> dict[str, Any]:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-blocks-"))
        return {
            "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
            "participants": {name: {"dsn": dsn, "driver": driver} for name, dsn in self.dsns.items()},
        }

    async def _fill(self, name: str) -> None:
        connection = await asyncpg.connect(self.dsns[name])
        await connection.execute(
            "create table entry (what text); create table held (id int primary key, n int);"
            f" insert into held select g, 0 from generate_series(0, {ROWS}) g"
        )
        await connection.close()

    def _observe(self, step: enum.StrEnum, subject: str) -> None:
        gid = Gid.parse(subject)
        if step is TwoPhaseStep.AFTER_PREPARE and isinstance(gid, Gid):
            call = self.at_prepare.pop(str(gid.txid), None)
            if call is not None:
                call()

    async def is_free(self, row: int) -> bool:
        """Whether nobody holds the lock of that row."""
        try:
            await self._looking.fetchval(f"select n from held where id = {row} for update nowait")
        except asyncpg.LockNotAvailableError:
            return False
        return True

    async def written(self) -> dict[str, set[str]]:
        """What is in the databases, by what it is: the names of those that have it."""
        found: dict[str, set[str]] = {}
        for name, dsn in self.dsns.items():
            connection = await asyncpg.connect(dsn)
            for row in await connection.fetch("select what from entry"):
                found.setdefault(row["what"], set()).add(name)
            await connection.close()
        return found

    async def prepared(self) -> list[str]:
        left: list[str] = []
        for dsn in self.dsns.values():
            connection = await asyncpg.connect(dsn)
            left += [row["gid"] for row in await connection.fetch("select gid from pg_prepared_xacts")]
            await connection.close()
        return left


@dataclass
class Play:
    """One case while it is played."""

    stage: Stage
    driver: str
    row: int
    timeout_s: float
    may_be_interrupted: bool
    task: asyncio.Task[Any] = field(init=False)
    rolled_back: bool = False
    committed_by_hand: bool = False
    cancels: int = 0
    """Requests to cancel its task that somebody else than undoubt has made, and nobody took back."""
    wrong: list[str] = field(default_factory=list)
    """Who was cancelled, and should not have been."""
    hung: list[str] = field(default_factory=list)
    mistold: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        return f"case {self.row}"

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.mistold.append(otherwise)

    def interrupted(self) -> None:
        """``CancelledError`` in the body, and no program has cancelled it."""
        if not self.may_be_interrupted:
            self.wrong.append("a task that is not in the block was cancelled")

    def doom(self, work: Work) -> None:
        coordinator = self.stage.coordinators[self.driver]
        self.expect(coordinator.cancel(work.tx.id, Victim("as told")), "it could not be aborted")

    def cancel_now(self) -> None:
        self.cancels += 1
        self.task.cancel()

    def cancel_soon(self) -> None:
        asyncio.get_running_loop().call_later(0.05, self.cancel_now)

    async def row_is_free(self) -> None:
        """Once the transaction is over."""
        end = asyncio.get_running_loop().time() + ROW_S
        while not await self.stage.is_free(self.row):
            if asyncio.get_running_loop().time() > end:
                self.hung.append("the row is locked, long after the end of its transaction")
                return
            await asyncio.sleep(0.02)
