"""Closing sessions in the background: whoever throws one away is often being cancelled, and cannot wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

CLOSE_TIMEOUT_S = 2.0
"""How long a session that is thrown away may take to cancel what runs in it and to say goodbye."""

_closing: set[asyncio.Task[None]] = set()


def close_in_background(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run ``coroutine``, which closes a session and does not raise, in a task of the running loop."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def drain_discarded() -> None:
    """Wait until sessions that were thrown away in this event loop are closed."""
    loop = asyncio.get_running_loop()
    tasks = [task for task in list(_closing) if task.get_loop() is loop]
    if tasks:
        await asyncio.wait(tasks)
