"""The program of a child process: a node or a sidecar that ends with its parent.

``python -m undoubt.serve.local.child node|sidecar CONFIG [stay]`` does the same as ``undoubt node`` or
``undoubt sidecar``. With ``stay`` the process outlives its parent; without ``stay`` its stdin must be a pipe
from the parent. A node recovers the participants that its configuration names."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from undoubt import logs
from undoubt.config import load
from undoubt.serve import node
from undoubt.serve.local.parent import die_with_parent, die_with_stdin
from undoubt.serve.loop import fastest_loop

NODE, SIDECAR = "node", "sidecar"
STAY = "stay"


def ready(line: str) -> None:
    """Print the first line on stdout, which reports to the parent that the process serves."""
    print(line, flush=True)


async def main(kind: str, config: str) -> None:
    """Run the node or the sidecar until SIGTERM or SIGINT. SIGHUP reloads a sidecar's configuration."""
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    if kind == NODE:
        await node.run(load(config, env={}), stop, ready)
        return
    from undoubt.serve.sidecar import server  # noqa: PLC0415 - a node does not need the extra

    logs.to_stderr(json_lines=True, level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    await server.run(lambda: load(config, env={}), stop, reload, ready)


if __name__ == "__main__":
    if STAY not in sys.argv[3:]:
        die_with_parent()
        die_with_stdin()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(main(sys.argv[1], sys.argv[2]))
