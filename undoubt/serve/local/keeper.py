"""Starts again what has ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol

from undoubt.participants.errors import UndoubtError

AGAIN_S = 0.1
"""The first pause before another attempt; each further one is twice as long."""
AGAIN_MAX_S = 5.0
TELL_AFTER = 3
"""So many failed attempts in a row are not told: a server refuses to start while sessions of its former self
end."""


class Kept(Protocol):
    """What is kept running: a child process, or a database server."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int: ...

    async def start(self) -> None:
        """Raises ``UndoubtError``."""

    async def ended(self) -> int:
        """Wait for its end; the exit status, minus the signal if one ended it."""


async def keep(kept: Kept, say: Callable[[str], None], started: Callable[[], None]) -> None:
    """Start it again whenever it ends; it runs already. ``say`` is told of it in a line, ``started`` is
    called after each start. Returns only by cancellation."""
    while True:
        status = await kept.ended()
        say(f"{kept.name} (process {kept.pid}) {in_words(status)}: starting it again")
        failed = 0
        while True:
            try:
                await kept.start()
                break
            except UndoubtError as error:
                failed += 1
                if failed > TELL_AFTER:
                    say(f"{kept.name}: {error}")
                await asyncio.sleep(min(AGAIN_S * 2 ** max(0, failed - TELL_AFTER), AGAIN_MAX_S))
        started()
        say(f"{kept.name} serves again (process {kept.pid})")


def in_words(status: int) -> str:
    """``was ended by SIGKILL`` of -9."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
