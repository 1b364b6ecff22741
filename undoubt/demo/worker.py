"""A process of an application that uses undoubt, with a fatal weakness at one step of the protocol.

``python -m undoubt.demo.worker CONFIG SECONDS STEP TAG``: moves money for so many seconds; then it ends, or,
if STEP is one of :class:`~undoubt.coordinator.protocols.steps.TwoPhaseStep`, sends itself SIGKILL when it
comes to it. Tells what it does on stdout, a line each, so that its parent knows all that it was told before
it died."""

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
"""Every so manieth transfer asks for more money than there is, and must leave no trace."""
TIMEOUT_S = 5.0
PAUSE_AFTER_ERROR_S = 0.05
DATABASE_DIED = (
    undoubt.UndoubtError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg's answer to a statement that is sent as its server dies
    OSError,
)


def tell(what: str, name: str) -> None:
    """One write, shorter than a pipe's atomic size: no line is ever torn, whenever the process dies."""
    os.write(sys.stdout.fileno(), f"{what} {name}\n".encode())


class CrashPoint:
    """An observer of the protocol that dies at ``step``, but not before ``seconds`` are over."""

    def __init__(self, step: str, seconds: float) -> None:
        self.step = None if step == NEVER else TwoPhaseStep(step)
        self._seconds = seconds
        self._armed_at = math.inf

    def begin(self) -> None:
        """The time starts now."""
        self._armed_at = time.monotonic() + self._seconds

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._armed_at

    def __call__(self, step: enum.StrEnum, _subject: str) -> None:
        if step is self.step and self.due:
            tell("at", step)
            os.kill(os.getpid(), signal.SIGKILL)


async def work(coordinator: undoubt.Coordinator, fate: CrashPoint, tag: str, task: int) -> None:
    """Transfers between accounts that no other task uses, so that whoever dies blocks nobody else."""
    number = 0
    while fate.step is not None or not fate.due:
        number += 1
        name = f"{tag}-{task}-{number}"
        amount = AMOUNT if number % OVERDRAWN_EVERY else (BALANCE + 1) * ACCOUNTS
        tell("begun", name)
        try:
            async with coordinator.transaction(timeout=TIMEOUT_S) as tx:
                await transfer(tx, name, _account(tag, task), amount)
        except asyncpg.CheckViolationError:
            tell("aborted", name)
        except undoubt.TransactionAborted:
            tell("aborted", name)
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)  # a database is down: try again, but do not spin
        except DATABASE_DIED:
            await asyncio.sleep(PAUSE_AFTER_ERROR_S)
        else:
            tell("acknowledged", name)


def _account(tag: str, task: int) -> int:
    """Tags are numbers where the demo gives them: its workers then share no account."""
    worker = int(tag) if tag.isdigit() else 0
    return (worker * TASKS + task) % ACCOUNTS


async def main(config: str, seconds: float, step: str, tag: str) -> None:
    """Until the time is over, or until death."""
    fate = CrashPoint(step, seconds)
    async with undoubt.connect(config, observe=fate, recover=False) as coordinator:
        fate.begin()
        tell("ready", tag)
        await asyncio.gather(*(work(coordinator, fate, tag, task) for task in range(TASKS)))


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]))
