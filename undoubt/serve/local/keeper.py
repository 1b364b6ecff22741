"""Restarts processes that have ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol

from undoubt.participants.backoff import limit_s
from undoubt.participants.errors import UndoubtError

AGAIN_S = 0.1
"""The first pause before the next attempt; each further pause is twice as long."""
AGAIN_MAX_S = 5.0
UNREPORTED_FAILURES_MAX = 3
"""The number of consecutive failed attempts that are not reported: a server refuses to start while processes
of the server that has ended are still ending."""


class Kept(Protocol):
    """A process that is kept running: a child process, or a database server."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int: ...

    async def start(self) -> None:
        """Start the process, and wait until it serves. Raises ``UndoubtError``."""

    async def ended(self) -> int:
        """Wait for the end of the process; return the exit status, or minus the number of the signal that
        ended it."""


async def keep(kept: Kept, say: Callable[[str], None], started: Callable[[], None]) -> None:
    """Restart a running process each time it ends. ``say`` is called with a line for each end and each start,
    ``started`` after each start. Returns only by cancellation."""
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
                if failed > UNREPORTED_FAILURES_MAX:
                    say(f"{kept.name}: {error}")
                await asyncio.sleep(limit_s(AGAIN_S, AGAIN_MAX_S, max(0, failed - UNREPORTED_FAILURES_MAX)))
        started()
        say(f"{kept.name} serves again (process {kept.pid})")


def in_words(status: int) -> str:
    """The exit status as text: -9 is ``was ended by SIGKILL``."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
