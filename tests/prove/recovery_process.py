"""A process that recovers until nothing is left to do, or dies of its trap.

Arguments: settings as JSON, trap, the number of passes at most, the same after the trap, and whether the
COMMIT rows of last-agent commit are to be waited for ("rows"): they are left as they are until the session of
their coordinator has ended.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.prove.trap import Trap, Trapped, tell
from undoubt import wiring
from undoubt.config import load
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.participants.contract import Decision
from undoubt.participants.errors import ParticipantError
from undoubt.participants.last_agent import agent_of
from undoubt.participants.registry import Registry
from undoubt.recovery.service import RecoveryService

PAUSE_S = 0.05
ROWS_MAX = 500


async def rows_wait(ledger: Ledger, participants: Registry) -> bool:
    """Whether an agent that answers has the row of a COMMIT that recovery has not deleted yet."""
    for participant in participants:
        if (agent := agent_of(participant)) is not None:
            try:
                rows = await agent.stored(ledger.ledger_id, limit=ROWS_MAX)
            except ParticipantError:
                continue
            if any(row.decision is Decision.COMMIT for row in rows):
                return True
    return False


async def main(settings: str, trap: str, passes_max: int, after_max: int, waits: str) -> None:
    loaded = load(json.loads(settings))
    trapped = Trapped(Trap.decode(trap))
    async with wiring.opened(loaded) as (ledger, participants):
        service = RecoveryService(ledger, participants, loaded.recovery, observe=trapped)
        for _ in range(passes_max):
            report = await service.run_once()
            prepared = [line.gid for line in report.lines if line.result != "done"]
            after_max -= trapped.sprung
            # What was ended in this pass is finished in the next.
            left = bool(report.lines or report.unfinished or report.errors)
            left = left or (waits == "rows" and await rows_wait(ledger, participants))
            if not left or after_max <= 0:
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
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
