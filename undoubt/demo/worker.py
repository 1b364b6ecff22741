"""A process of an application that uses undoubt, and that kills itself at a step of the protocol.

``python -m undoubt.demo.worker CONFIG SECONDS STEP TAG`` transfers money for that number of seconds. Then it
ends; or, if STEP is one of :class:`~undoubt.coordinator.protocols.steps.TwoPhaseStep`, it sends itself
SIGKILL at that step. It reports each event as a line on stdout, so that its parent has all results that the
worker received before it died."""

from __future__ import annotations

import asyncio
import enum
import math
import os
import signal
import sys
import time

import asyncpg

import undoubt
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.demo.bank import ACCOUNTS, AMOUNT, BALANCE, transfer
from undoubt.serve.local.parent import die_with_parent

NEVER = "never"
TASKS = 8
OVERDRAWN_EVERY = 25
"""One in so many transfers asks for more money than the account has, and must leave no trace."""
TIMEOUT_S = 5.0
PAUSE_AFTER_ERROR_S = 0.05
DATABASE_DIED = (
    undoubt.UndoubtError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg's error for a statement that is sent while the server dies
    OSError,
)


def report(what: str, name: str) -> None:
    """Print an event in one write, shorter than a pipe's atomic size: a line is complete, whenever the
    process dies."""
    os.write(sys.stdout.fileno(), f"{what} {name}\n".encode())


class CrashPoint:
    """An observer of the protocol that kills the process at ``step``, but not before ``seconds`` have
    passed."""

    def __init__(self, step: str, seconds: float) -> None:
        self.step = None if step == NEVER else TwoPhaseStep(step)
        self._seconds = seconds
        self._armed_at = math.inf

    def begin(self) -> None:
        """Start to count the seconds."""
        self._armed_at = time.monotonic() + self._seconds

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._armed_at

    def __call__(self, step: enum.StrEnum, _subject: str) -> None:
        if step is self.step and self.due:
            report("at", step)
            os.kill(os.getpid(), signal.SIGKILL)


async def work(coordinator: undoubt.Coordinator, crash: CrashPoint, tag: str, task: int) -> None:
    """Transfer between accounts that no other task uses, so that a worker that dies does not block others."""
    number = 0
    while crash.step is not None or not crash.due:
        number += 1
        name = f"{tag}-{task}-{number}"
        amount = AMOUNT if number % OVERDRAWN_EVERY else (BALANCE + 1) * ACCOUNTS
        report("begun", name)
        try:
            async with coordinator.transaction(timeout=TIMEOUT_S) as tx:
                await transfer(tx, name, _account(tag, task), amount)
        except asyncpg.CheckViolationError:
            report("aborted", name)
        except undoubt.TransactionAborted:
            report("aborted", name)
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)  # a database is down: pause before the next attempt
        except DATABASE_DIED:
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)
        else:
            report("acknowledged", name)


def _account(tag: str, task: int) -> int:
    """The account of a task. The demo's tags are numbers, so that its workers share no account."""
    worker = int(tag) if tag.isdigit() else 0
    return (worker * TASKS + task) % ACCOUNTS


async def main(config: str, seconds: float, step: str, tag: str) -> None:
    """Transfer money until the time is over, or until the process is killed."""
    crash = CrashPoint(step, seconds)
    async with undoubt.connect(config, observe=crash, recover=False) as coordinator:
        crash.begin()
        report("ready", tag)
        await asyncio.gather(*(work(coordinator, crash, tag, task) for task in range(TASKS)))


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]))
