"""The rows of last-agent commit in memory, for a scripted participant; their answers are always correct."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.participants.last_agent import (
    AgentBusy,
    AgentEntry,
    AgentPlace,
    AgentRow,
    Holder,
    StoredRow,
)


class MemoryAgent:
    """:class:`undoubt.participants.last_agent.LastAgent` in a dictionary. ``reach`` is awaited before each
    call takes effect, and may raise; ``down`` is the error that every call raises while it is set. Change
    ``history`` to simulate a failover."""

    def __init__(
        self, reach: Callable[[str], Awaitable[None]], prepares: Callable[[], bool] = lambda: True
    ) -> None:
        self.history = "the first history"
        self.down: BaseException | None = None
        self.rows: dict[bytes, AgentRow] = {}
        self.txids: dict[bytes, TxId | str] = {}
        self.age_s = 0.0
        """The age of every row."""
        self.holder: Holder | None = None
        """The session that executes a COMMIT; ``terminate`` ends it."""
        self._reach = reach
        self._prepares = prepares

    async def _call(self, call: str) -> None:
        await self._reach(call)
        if self.down is not None:
            raise self.down

    async def place(self) -> AgentPlace:
        await self._call("place")
        return AgentPlace(7_000_000_000_000_000_001, self.history)

    async def prepares(self) -> bool:
        await self._call("prepares")
        return self._prepares()

    def commit(self, entry: AgentEntry, branches: bytes) -> bool:
        """Write the row of a COMMIT. False if the tombstone is there."""
        if entry.key in self.rows:
            return False
        self.rows[entry.key] = AgentRow(Decision.COMMIT, branches)
        self.txids[entry.key] = entry.txid
        return True

    async def conclude(self, entry: AgentEntry) -> AgentRow | None:
        await self._call("conclude")
        if self.holder is not None:
            raise AgentBusy("scripted", self.holder)
        if entry.place.history != self.history:
            return self.rows.get(entry.key)
        self.txids.setdefault(entry.key, entry.txid)
        return self.rows.setdefault(entry.key, AgentRow(Decision.ABORT, b""))

    async def terminate(self, holder: Holder) -> bool:
        await self._call("terminate")
        ended, self.holder = self.holder == holder, None
        return ended

    async def find(self, keys: Sequence[bytes]) -> Mapping[bytes, AgentRow]:
        await self._call("find")
        return {key: self.rows[key] for key in keys if key in self.rows}

    async def stored(self, _: str, *, after: bytes = b"", limit: int) -> Sequence[StoredRow]:
        await self._call("stored")
        keys = sorted(key for key in self.rows if key > after)[:limit]
        return [
            StoredRow(key, self.rows[key].decision, str(self.txids.get(key, "")), self.age_s) for key in keys
        ]

    async def forget(self, keys: Sequence[bytes]) -> None:
        await self._delete("forget_rows", keys, Decision.COMMIT)

    async def drop(self, keys: Sequence[bytes]) -> None:
        await self._delete("drop_tombstones", keys, Decision.ABORT)

    async def _delete(self, call: str, keys: Sequence[bytes], decision: Decision) -> None:
        await self._call(call)
        for key in keys:
            if key in self.rows and self.rows[key].decision is decision:
                del self.rows[key]
