"""A process that moves a ledger, and dies at a step if it is told to.

Arguments: settings of the ledger as JSON, the URL to move it to, the step before which it dies (``-``: none).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import msgspec

from tests.prove.trap import tell
from undoubt.coordinator.ledger.moving import move as moving
from undoubt.coordinator.settings import LedgerSettings
from undoubt.errors import UndoubtError

STEPS = ("seal", "write", "verify", "leave", "enter", "done")


async def main(settings: str, to: str, dies_at: str) -> None:
    def observe(step: str) -> None:
        tell(step=step)
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        moved = await moving.move(
            msgspec.convert(json.loads(settings), LedgerSettings), to, wait_s=30.0, observe=observe
        )
    except UndoubtError as error:
        tell(refused=f"{type(error).__name__}: {error}")
        return
    observe("done")
    tell(moved=msgspec.to_builtins(moved))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3]))
