"""A node of the demo's cluster: what ``undoubt node`` runs, in a process that ends with the demo.

``python -m undoubt.demo.node CONFIG [stay]``: with ``stay`` it outlives the process that started it. The
demo's own configuration names no participants, so it leaves what is in doubt to the demo, which wants to show
it.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from undoubt.config import load
from undoubt.demo.worker import die_with_parent
from undoubt.serve.loop import fastest_loop
from undoubt.serve.node import run

STAY = "stay"


def ready(line: str) -> None:
    """The first line on stdout says that it can be spoken with."""
    print(line, flush=True)


async def main(config: str) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(load(config, env={}), stop, ready)


if __name__ == "__main__":
    if STAY not in sys.argv[2:]:
        die_with_parent()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(main(sys.argv[1]))
