"""An asyncpg connection of the application, inside SQLAlchemy's adapter, that a branch uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from undoubt.integrations.sqlalchemy.adopted import AUTOCOMMIT, begin_statement
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.asyncpg.session import AsyncpgSession
from undoubt.participants.postgres.connection_proxy import ApplicationSide, after_branch


class AsyncpgAdopted(ApplicationSide):
    """The connection in ``adapter``, SQLAlchemy's ``AsyncAdapt_asyncpg_connection``."""

    undoubt_used = True

    def __init__(self, adapter: Any) -> None:
        if adapter.isolation_level == "autocommit":
            raise UsageError(AUTOCOMMIT)
        self._adapter = adapter
        self.driver = adapter._connection
        self.session = AsyncpgSession(self.driver)
        self._gid: Gid | None = None
        self.stolen = False
        self.undoubt_why: Callable[[], Exception] | None = None
        self.ended = False

    def begin(self, gid: Gid) -> str:
        self._gid = gid
        adapter = self._adapter
        if self.driver.is_in_transaction():
            return ""
        # If the adapter has no transaction, it begins one itself.
        adapter._transaction = _Held(self)
        level = adapter.isolation_level
        return begin_statement(
            level, read_only=adapter.readonly or None, deferrable=adapter.deferrable or None
        )

    def undoubt_end(self) -> bool:
        self.ended = True
        if self._gid is not None and not self.session.broken:
            self._adapter._connection = _Ended(self._gid, lambda: self.undoubt_why)
        return False  # asyncpg itself refuses concurrent statements on one connection

    @property
    def closed(self) -> bool:
        return bool(self.driver.is_closed())

    def restore(self) -> None:
        self.session.abandon()
        self._adapter._transaction = None
        self._adapter._connection = self.driver

    def steal(self) -> None:
        self.stolen = True
        if self._gid is not None:
            self._adapter._transaction = None
            self._adapter._connection = _Ended(self._gid, lambda: self.undoubt_why)


class _Held:
    """Replaces the adapter's transaction, since only the coordinator may end it. The session ends it through
    the unit of work; the calls on the connection that follow have no effect."""

    def __init__(self, adopted: AsyncpgAdopted) -> None:
        self._adopted = adopted

    async def commit(self) -> None:
        if not self._adopted.ended:
            raise UsageError("commit the session: its connection is only one of the databases")

    async def rollback(self) -> None:
        """Roll back on the server if the application has closed the connection before the end, so that the
        connection goes back to its pool."""
        if not self._adopted.ended:
            await self._adopted.driver.execute("rollback")


class _Ended:
    """Replaces the application's connection while undoubt's engine uses it: every use raises."""

    def __init__(self, gid: Gid, why: Callable[[], Callable[[], Exception] | None]) -> None:
        self._gid = gid
        self._why = why

    def is_closed(self) -> bool:
        return True

    def terminate(self) -> None: ...

    async def close(self, *, timeout: float | None = None) -> None: ...

    def __getattr__(self, name: str) -> NoReturn:
        if (why := self._why()) is not None:
            raise why()
        raise after_branch(f"connection.{name} was used", self._gid)
