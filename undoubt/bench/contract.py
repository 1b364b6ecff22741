"""The interface of a contender, and its parameters."""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

ROWS = 256
"""Rows of a contender in each database, one for each worker: the limit of workers."""
DATABASES = ("orders", "payments")


class Places(msgspec.Struct, frozen=True):
    """The parameters of a contender. ``dsns``: both databases, in the order of :data:`DATABASES`.
    ``first_row``: the first of the :data:`ROWS` rows that only this contender uses. ``folder``: for its
    files. ``workers``: the greatest number of concurrent workers. ``cluster``: the URL of the nodes' ledger,
    empty unless the contender needs the nodes."""

    contender: str
    dsns: tuple[str, str]
    first_row: int
    folder: str
    workers: int
    cluster: str = ""


class Turn(msgspec.Struct, frozen=True):
    """The result of a contender's turn. ``latencies_us``: one for each transfer that began in the turn.
    ``elapsed_s``: until the last of these transfers had ended. ``cpu_s``: user and system time of the
    contender's process."""

    transfers: int
    elapsed_s: float
    cpu_s: float
    latencies_us: tuple[int, ...]


class Style(enum.StrEnum):
    """How a contender's workers run concurrently."""

    TASKS = "tasks"
    """``transfer`` is a coroutine function; all workers run in one event loop."""
    THREADS = "threads"
    """``transfer`` is a synchronous function; each worker is a thread."""


class AsyncContender(Protocol):
    """A contender with tasks. ``contender(places)`` is an asynchronous context manager that returns it,
    connected."""

    async def transfer(self, worker: int) -> None:
        """Add one to row ``worker`` of this contender in both databases, atomically if it can. No error is
        expected, so all errors are raised."""
        ...


class SyncContender(Protocol):
    """A contender with threads. ``contender(places)`` is a context manager that returns it."""

    def transfer(self, worker: int) -> None: ...


UPDATE = "update account set balance = balance + 1 where id = $1"
