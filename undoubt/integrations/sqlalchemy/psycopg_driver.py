"""A psycopg connection of the application, synchronous or asynchronous, that a branch uses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, PGconn, PipelineStatus, TransactionStatus

from undoubt.integrations.sqlalchemy.adopted import AUTOCOMMIT, begin_statement
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.connection_proxy import ApplicationSide
from undoubt.participants.postgres.psycopg.gate import AsyncGate, SyncGate
from undoubt.participants.postgres.psycopg.session import PsycopgSession


class PsycopgAdopted(ApplicationSide):
    """The connection ``driver``, whose lock is replaced by a gate while the branch uses it."""

    undoubt_used = True

    def __init__(self, driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        if driver.autocommit:
            raise UsageError(AUTOCOMMIT)
        self._driver = driver
        self._why: Callable[[], Exception] | None = None
        self.stolen = False
        self.session = PsycopgSession(driver.pgconn)

    def begin(self, gid: Gid) -> str:
        driver: Any = self._driver
        gate: Any = AsyncGate(gid) if isinstance(driver, psycopg.AsyncConnection) else SyncGate(gid)
        self.session.gate = gate
        driver.lock = gate
        # A connection that is invalidated while the engine may be inside libpq must not be freed then.
        driver.close = self._close_later if isinstance(driver, psycopg.Connection) else self._aclose_later
        if self.session.pgconn.transaction_status != TransactionStatus.IDLE:
            return ""
        level = driver.isolation_level
        return begin_statement(
            None if level is None else level.name, read_only=driver.read_only, deferrable=driver.deferrable
        )

    @property
    def undoubt_why(self) -> Callable[[], Exception] | None:
        return self._why

    @undoubt_why.setter
    def undoubt_why(self, why: Callable[[], Exception] | None) -> None:
        self._why = why
        if self.session.gate is not None:
            self.session.gate.why = why

    def undoubt_end(self) -> bool:
        gate = self.session.gate
        if gate is None or self.session.broken:
            return False
        return (
            gate.shut()
            or self.session.pgconn.pipeline_status != PipelineStatus.OFF
            or self.session.pgconn.transaction_status == TransactionStatus.ACTIVE
        )

    @property
    def closed(self) -> bool:
        return self.session.pgconn.status != ConnStatus.OK

    def restore(self) -> None:
        self.session.abandon()
        self._unlock()

    def steal(self) -> None:
        self.stolen = True
        self._driver.pgconn = _closed()
        self._unlock()

    def _close_later(self) -> None:
        self.steal()

    async def _aclose_later(self) -> None:
        self.steal()

    def _unlock(self) -> None:
        driver: Any = self._driver
        vars(driver).pop("close", None)
        driver.lock = asyncio.Lock() if isinstance(driver, psycopg.AsyncConnection) else threading.Lock()


def _closed() -> Any:
    """A closed libpq connection: libpq refuses the option, and connects to no server."""
    pgconn = PGconn.connect_start(b"undoubt=closed")
    pgconn.finish()
    return pgconn
