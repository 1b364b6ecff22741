"""``undoubt dev``: a whole system on this machine, kept running until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from undoubt.serve.local.keeper import keep
from undoubt.serve.local.system import System, system


async def run(stop: asyncio.Event, ready: Callable[[System], None], say: Callable[[str], None]) -> None:
    """``ready`` is told of the system once all of it serves; ``say`` of each death and each new start, in one
    line. Returns once ``stop`` is set, also while it is still being built, and everything is removed. Raises
    ``ServerFailed``, ``BinariesMissing``, ``NodeFailed``, ``ChildFailed``."""
    running = asyncio.create_task(_run(ready, say))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


async def _run(ready: Callable[[System], None], say: Callable[[str], None]) -> None:
    async with system() as built:
        ready(built)
        async with asyncio.TaskGroup() as tasks:
            for each, _ in built.kept:
                tasks.create_task(keep(each, say, built.tell_sweeper))
            tasks.create_task(keep(built.sweeper, say, built.tell_sweeper))
