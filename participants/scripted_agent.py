"""The rows of last-agent commit in memory, for a scripted participant; their answers are always correct."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.participants.last_agent import AgentEntry, AgentPlace, AgentRow, CommittedRow, Holder


class MemoryAgent:
    """:class:`undoubt.participants.last_agent.LastAgent` in a dictionary. ``reach`` is awaited before each
    call takes effect, and may raise; ``down`` is the error that every call raises while it is set. Change
    ``history`` to simulate a failover."""

    def __init__(self, reach: Callable[[str], Awaitable[None]]) -> None:
        self.history = "the first history"
        self.down: BaseException | None = None
        self.rows: dict[bytes, AgentRow] = {}
        self.txids: dict[bytes, TxId] = {}
        self._reach = reach

    async def _call(self, call: str) -> None:
        await self._reach(call)
        if self.down is not None:
            raise self.down

    async def place(self) -> AgentPlace:
        await self._call("place")
        return AgentPlace(7_000_000_000_000_000_001, self.history)

    def commit(self, entry: AgentEntry, branches: bytes) -> bool:
        """Write the row of a COMMIT. False if the tombstone is there."""
        if entry.key in self.rows:
            return False
        self.rows[entry.key] = AgentRow(Decision.COMMIT, branches)
        self.txids[entry.key] = entry.txid
        return True

    async def conclude(self, entry: AgentEntry) -> AgentRow | None:
        await self._call("conclude")
        if entry.place.history != self.history:
            return self.rows.get(entry.key)
        return self.rows.setdefault(entry.key, AgentRow(Decision.ABORT, b""))

    async def terminate(self, _: Holder) -> bool:
        await self._call("terminate")
        return False

    async def committed(self, _: str, *, after: bytes = b"", limit: int) -> Sequence[CommittedRow]:
        await self._call("committed")
        keys = sorted(
            key for key, row in self.rows.items() if row.decision is Decision.COMMIT and key > after
        )
        return [CommittedRow(key, str(self.txids[key]), self.rows[key].branches) for key in keys[:limit]]

    async def forget(self, keys: Sequence[bytes]) -> None:
        await self._call("forget_rows")
        for key in keys:
            if key in self.rows and self.rows[key].decision is Decision.COMMIT:
                del self.rows[key]
