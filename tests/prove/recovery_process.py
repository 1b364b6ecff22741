"""A process that recovers until nothing is left to do, or dies of its trap.

Arguments: settings as JSON, trap, the number of passes at most, and the same after the trap.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.prove.trap import Trap, Trapped, tell
from undoubt import wiring
from undoubt.config import load
from undoubt.recovery.service import RecoveryService

PAUSE_S = 0.05


async def main(settings: str, trap: str, passes_max: int, after_max: int) -> None:
    loaded = load(json.loads(settings))
    trapped = Trapped(Trap.decode(trap))
    async with wiring.opened(loaded) as (ledger, participants):
        service = RecoveryService(ledger, participants, loaded.recovery, observe=trapped)
        for _ in range(passes_max):
            report = await service.run_once()
            prepared = [line.gid for line in report.lines if line.result != "done"]
            after_max -= trapped.sprung
            # What was ended in this pass is finished in the next.
            if not (report.lines or report.unfinished or report.errors) or after_max <= 0:
                break
            await asyncio.sleep(PAUSE_S)
        heuristics = [
            f"{heuristic.gid}: {heuristic.kind} ({await ledger.transaction(heuristic.gid.txid)})"
            for heuristic in await ledger.heuristics()
        ]
        tell(
            left=[*prepared, *(record.txid for record in report.unfinished)],
            errors=report.errors,
            heuristics=heuristics,
        )
    await service.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
