"""An asyncpg connection of the user's, inside SQLAlchemy's adapter, taken over for a transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from undoubt.integrations.sqlalchemy.adopted import AUTOCOMMIT, begin_statement
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.asyncpg.session import AsyncpgSession
from undoubt.participants.postgres.connection_proxy import ApplicationSide, after_branch


class AsyncpgAdopted(ApplicationSide):
    """Over ``adapter``, SQLAlchemy's ``AsyncAdapt_asyncpg_connection``."""

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
        # The adapter begins a transaction of its own where it has none.
        adapter._transaction = _Held(self)
        level = adapter.isolation_level
        return begin_statement(
            level, read_only=adapter.readonly or None, deferrable=adapter.deferrable or None
        )

    def undoubt_end(self) -> bool:
        self.ended = True
        if self._gid is not None and not self.session.broken:
            self._adapter._connection = _Ended(self._gid, lambda: self.undoubt_why)
        return False  # asyncpg itself refuses a statement beside another

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
    """Stands for the transaction that is the coordinator's to end. The session ends it through the unit of
    work, and finds nothing to do on the connection afterwards."""

    def __init__(self, adopted: AsyncpgAdopted) -> None:
        self._adopted = adopted

    async def commit(self) -> None:
        if not self._adopted.ended:
            raise UsageError("the session commits, not its connection: the other database would not")

    async def rollback(self) -> None:
        """Before the end: the connection was closed by the application, and goes back to its pool."""
        if not self._adopted.ended:
            await self._adopted.driver.execute("rollback")


class _Ended:
    """Stands for a connection that is the engine's."""

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
