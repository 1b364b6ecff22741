"""``connection.transaction()`` inside a branch: a savepoint, since the branch itself ends by its transaction.

asyncpg's own refuses to work inside a transaction that was begun by a plain BEGIN.
"""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import TYPE_CHECKING

from undoubt.participants.errors import UsageError

if TYPE_CHECKING:
    from undoubt.participants.postgres.asyncpg_connection import BranchConnection

_numbers = itertools.count(1)


class Savepoint:
    """Like asyncpg's ``Transaction``: ``async with``, or ``start`` and ``commit`` or ``rollback``."""

    def __init__(self, connection: BranchConnection) -> None:
        self._connection = connection
        self._name = f"undoubt_{next(_numbers)}"
        self._open = False
        self._used = False

    async def start(self) -> None:
        """SAVEPOINT."""
        if self._used:
            raise UsageError("this savepoint was used already; call connection.transaction() again")
        self._used = True
        await self._connection.execute(f"savepoint {self._name}")
        self._open = True

    async def commit(self) -> None:
        """RELEASE SAVEPOINT: what was done since belongs to what is around it."""
        self._end("commit")
        await self._connection.execute(f"release savepoint {self._name}")

    async def rollback(self) -> None:
        """ROLLBACK TO SAVEPOINT: what was done since is undone, also after an SQL error."""
        self._end("rollback")
        await self._connection.execute(f"rollback to savepoint {self._name}; release savepoint {self._name}")

    def _end(self, what: str) -> None:
        if not self._open:
            raise UsageError(f"{what}() of a savepoint that is not open")
        self._open = False

    async def __aenter__(self) -> Savepoint:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if not self._open or (
            connection.undoubt_has_ended and (error is not None or not connection.undoubt_why)
        ):
            return  # the whole branch has ended, this part with it; the first error is the one to tell
        if error is None:
            await self.commit()
        else:
            await self.rollback()
