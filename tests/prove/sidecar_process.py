"""The real sidecar in a process that dies, or waits, at the trap's step; SIGTERM ends it in order.

Arguments: settings as JSON, trap.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from tests.prove.trap import Trap, Trapped, tell
from undoubt.config import load
from undoubt.serve.local.parent import die_with_parent
from undoubt.serve.sidecar.server import run


async def main(settings: str, trap: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run(
        lambda: load(json.loads(settings)),
        stop,
        asyncio.Event(),
        lambda line: tell(serves=line),
        observe=Trapped(Trap.decode(trap)),
    )
    tell(ended=True)


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(main(*sys.argv[1:3]))
