"""``undoubt dev``: runs a whole system on this machine until it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from undoubt.serve.local.keeper import keep
from undoubt.serve.local.system import System, system


async def run(stop: asyncio.Event, ready: Callable[[System], None], say: Callable[[str], None]) -> None:
    """Run the system, and restart its processes if they end. ``ready`` is called with the system once every
    process serves; ``say`` is called with one line for each process that ends or is restarted. Returns once
    ``stop`` is set, also during the start, and everything is removed. Raises ``ServerFailed``,
    ``BinariesMissing``, ``NodeFailed``, ``ChildFailed``."""
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
                tasks.create_task(keep(each, say, built.update_sweeper))
            tasks.create_task(keep(built.sweeper, say, built.update_sweeper))
