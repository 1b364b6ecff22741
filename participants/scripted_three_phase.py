"""The rows of three-phase commit in memory, for a scripted participant; their answers are always correct."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from undoubt.participants.ids import Gid
from undoubt.participants.three_phase import BranchState, Charter, Event, StateRow, sources

Reached = Callable[[str, Gid], Awaitable[None]]


class MemoryStates:
    """:class:`undoubt.participants.three_phase.States` in a dictionary.

    ``committed`` returns whether a branch has committed; ``reach`` is awaited before each call takes effect,
    and may raise. Each call takes effect atomically, as a transaction on one row does.
    """

    def __init__(self, committed: Callable[[Gid], bool], reach: Reached) -> None:
        self.rows: dict[Gid, StateRow] = {}
        self._changed_at: dict[Gid, float] = {}
        self._committed = committed
        self._reach = reach

    async def enlist(self, gid: Gid, charter: Charter, note: bytes = b"") -> bool:
        await self._reach("enlist", gid)
        if gid in self.rows:
            return False
        self._change(gid, StateRow(BranchState.WAIT, 1, 0, charter))
        return True

    async def read(self, gid: Gid) -> StateRow | None:
        await self._reach("read_state", gid)
        return self._seen(gid)

    async def elect(self, gid: Gid, election: int, charter: Charter) -> StateRow | None:
        await self._reach("elect", gid)
        row = self.rows.get(gid) or StateRow(BranchState.INITIAL, 0, 0, charter)
        if row.last_elected >= election:
            return None
        self._change(gid, replace(row, last_elected=election))
        return self._seen(gid)

    async def attempt(self, gid: Gid, election: int, event: Event) -> bool:
        await self._reach("attempt", gid)
        row = self.rows.get(gid)
        if row is None or row.last_elected != election or row.state not in sources(event):
            return False
        after = BranchState.PRECOMMIT if event is Event.TRY_COMMIT else BranchState.WAIT
        self._change(gid, replace(row, state=after, last_attempt=election))
        return True

    async def bury(self, gid: Gid, charter: Charter) -> bool:
        await self._reach("bury", gid)
        if self._committed(gid):
            return False
        row = self.rows.get(gid) or StateRow(BranchState.INITIAL, 0, 0, charter)
        self._change(gid, replace(row, state=BranchState.ABORT))
        return True

    async def unfinished(self) -> Sequence[tuple[Gid, StateRow]]:
        return [
            (gid, row)
            for gid, row in self.rows.items()
            if row.state is not BranchState.ABORT and not self._committed(gid)
        ]

    async def stale(self, older_than_s: float, buried_s: float) -> Sequence[Gid]:
        now = time.time()
        return [
            gid
            for gid, row in self.rows.items()
            if now - self._changed_at.get(gid, 0.0)
            >= (buried_s if row.state is BranchState.ABORT else older_than_s)
        ]

    async def forget(self, gids: Sequence[Gid]) -> None:
        for gid in gids:
            self.rows.pop(gid, None)
            self._changed_at.pop(gid, None)

    def _change(self, gid: Gid, row: StateRow) -> None:
        self.rows[gid] = row
        self._changed_at[gid] = time.time()

    def _seen(self, gid: Gid) -> StateRow | None:
        row = self.rows.get(gid)
        if row is not None and self._committed(gid):
            return replace(row, state=BranchState.COMMIT)
        return row
