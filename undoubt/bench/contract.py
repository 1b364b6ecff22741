"""What a contender is, and what it is given."""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

ROWS = 256
"""Rows of a contender in each database: at most so many workers."""
DATABASES = ("orders", "payments")


class Places(msgspec.Struct, frozen=True):
    """``dsns`` of both databases, in the order of :data:`DATABASES`. ``first_row`` and the :data:`ROWS` - 1
    after it are the contender's own. ``folder`` is there for its files; ``workers`` is how many at once;
    ``cluster`` is the URL of the nodes' ledger, empty unless the contender said that it needs one."""

    contender: str
    dsns: tuple[str, str]
    first_row: int
    folder: str
    workers: int
    cluster: str = ""


class Turn(msgspec.Struct, frozen=True):
    """What a contender did in one turn. ``latencies_us`` of every transfer that began in it; ``elapsed_s``
    until the last of them had ended; ``cpu_s`` is user and system time of the contender's process."""

    transfers: int
    elapsed_s: float
    cpu_s: float
    latencies_us: tuple[int, ...]


class Style(enum.StrEnum):
    """How a contender's workers run at once."""

    TASKS = "tasks"
    """``transfer`` is a coroutine function; all workers on one event loop."""
    THREADS = "threads"
    """``transfer`` is a plain function; a thread for each worker."""


class AsyncContender(Protocol):
    """Made by ``contender(places)`` as an asynchronous context manager, connected and warm."""

    async def transfer(self, worker: int) -> None:
        """Add one to row ``worker`` of this contender in both databases, atomically if it can. Raises
        whatever goes wrong: nothing should."""
        ...


class SyncContender(Protocol):
    """The same for threads; made by ``contender(places)`` as a context manager."""

    def transfer(self, worker: int) -> None: ...


UPDATE = "update account set balance = balance + 1 where id = $1"
