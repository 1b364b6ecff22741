"""What a session of a simulated server does with the table of last-agent commit's rows.

A row, or a tombstone, is seen once its transaction has committed; until then whoever writes the same key
waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

TOMBSTONE_WAITS_S = 1.0
SLOWEST_COMMIT_S = 6.0
LOOK_S = 0.05


class TableRow(NamedTuple):
    decision: str
    branches: bytes
    ledger: str
    txid: str
    written_at: float


class AgentTable:
    """Everything durable. ``judge`` is told of each change."""

    def __init__(self) -> None:
        self.rows: dict[bytes, TableRow] = {}
        self.unseen: set[bytes] = set()
        """Keys of rows that are durable, and that nobody sees: their COMMIT waits for a standby."""

    def write(self, judge: Any, key: bytes, decision: str, ledger: str, txid: str, branches: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self.rows[key] = TableRow(decision, branches, ledger, txid, now)
        judge.agent_wrote(txid, decision)

    def find(self, keys: Sequence[bytes]) -> list[tuple[bytes, str, bytes]]:
        seen = [key for key in keys if key in self.rows and key not in self.unseen]
        return [(key, self.rows[key].decision, self.rows[key].branches) for key in seen]

    def page(self, ledger: str, after: bytes, limit: int) -> list[tuple[bytes, str, str, float]]:
        now = asyncio.get_running_loop().time()
        seen = {key: row for key, row in self.rows.items() if key not in self.unseen}
        keys = sorted(key for key, row in seen.items() if row.ledger == ledger and key > after)
        rows = [(key, self.rows[key]) for key in keys[:limit]]
        return [(key, row.decision, row.txid, max(now - row.written_at, 0.0)) for key, row in rows]

    def delete(self, judge: Any, keys: Sequence[bytes], decision: str) -> None:
        for key in keys:
            if key in self.rows and key not in self.unseen and self.rows[key].decision == decision:
                row = self.rows.pop(key)
                if decision == "commit":
                    judge.agent_deleted(row.txid)
