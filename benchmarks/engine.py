"""The coordinator's own CPU time: two branches over databases and a ledger that answer at once.

What is left out is what every two-phase commit pays (the driver, the network, the disk), so that a change of
the coordinator's own work of a few microseconds shows. Another version of it is measured by
``PYTHONPATH=OTHER_TREE python -P benchmarks/engine.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.contract import (
    Decision,
    Evidence,
    PreparedBranch,
    PrepareResult,
    Settled,
    Vote,
    Work,
)
from undoubt.participants.ids import NO_KEY, Gid, SessionKey
from undoubt.participants.registry import Registry

NAMES = ("orders", "payments")
EVIDENCE = Evidence(1, 1, "00000001")


class Ready:
    """A branch that does nothing, after one turn of the event loop, as an answer from a socket comes."""

    connection = None
    surely_writes = True

    def __init__(self, gid: Gid) -> None:
        self.gid = gid

    async def poll(self) -> Work:
        return Work.WRITES

    async def prepare(self) -> PrepareResult:
        await asyncio.sleep(0)
        return PrepareResult(Vote.PREPARED, EVIDENCE)

    async def commit(self) -> Settled:
        await asyncio.sleep(0)
        return Settled.APPLIED

    async def rollback(self) -> Settled:
        return Settled.APPLIED

    async def forget(self) -> None:
        pass

    async def release(self) -> None:
        pass


class Instant:
    """A participant whose branches are :class:`Ready`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.names = frozenset({name})
        self.other_ledgers: frozenset[str] = frozenset()

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Ready:
        await asyncio.sleep(0)
        return Ready(gid)

    async def in_doubt(self) -> list[PreparedBranch]:
        return []

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        return Settled.APPLIED


async def measure(transactions: int, rounds: int) -> list[float]:
    """Microseconds of CPU per transaction, of each round."""
    registry = Registry()
    for name in NAMES:
        registry.add(Instant(name))  # type: ignore[arg-type]
    async with Coordinator(MemoryLedger(), registry) as coordinator:

        async def use(tx: Transaction, name: str) -> None:
            await tx.branch(name)

        found = []
        for _ in range(rounds):
            began_s = time.process_time()
            for _ in range(transactions):
                async with coordinator.transaction() as tx:
                    await asyncio.gather(*(use(tx, name) for name in NAMES))
            found.append((time.process_time() - began_s) * 1e6 / transactions)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transactions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    found = asyncio.run(measure(options.transactions, options.rounds))
    print(f"{min(found):.0f} µs at best, {statistics.median(found):.0f} µs in the median, per transaction")


if __name__ == "__main__":
    main()
