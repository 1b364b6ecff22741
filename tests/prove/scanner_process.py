"""A process that recovers all the time, whoever owns the ledger, until a line has come on its stdin and it
has seen enough.

Arguments: settings as JSON; how many scans, and how many branches of live transactions seen, are enough.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.prove.trap import tell
from undoubt import wiring
from undoubt.config import load
from undoubt.recovery.service import RecoveryService

PAUSE_S = 0.05


async def main(settings: str, scans: int, seen_active: int) -> None:
    loaded = load(json.loads(settings))
    last_scan: dict[str, float] = {}
    intervals: list[float] = []

    def scanned(step: object, subject: str) -> None:
        if str(step) == "after_scan":
            now = asyncio.get_running_loop().time()
            if subject in last_scan:
                intervals.append(now - last_scan[subject])
            last_scan[subject] = now

    async with wiring.opened(loaded) as (ledger, participants):
        service = RecoveryService(ledger, participants, loaded.recovery, observe=scanned, always=True)
        async with service:
            tell(started=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            while (counters := service.status().counters).scans < scans or counters.seen_active < seen_active:
                await asyncio.sleep(PAUSE_S)
            tell(
                scans=counters.scans,
                seen_active=counters.seen_active,
                rolled_back=counters.rolled_back,
                interval_ms_median=round(sorted(intervals)[len(intervals) // 2] * 1000),
            )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
