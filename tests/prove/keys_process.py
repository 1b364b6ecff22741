"""A process that makes orders, each with a key, as it is told on stdin; it dies where it is told to.

Arguments: settings as JSON. A line of stdin is ``{"key": …, "die": …}``; ``die`` is the step of the commit at
which the process kills itself, empty if it does not. An order is a row in each database, without a constraint
that would keep it from being made twice.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import sys
from typing import Any

import undoubt
from tests.prove.bank import NAMES
from tests.prove.trap import tell

TIMEOUT_S = 60.0


class Deadly:
    """An observer that kills this process at ``step``."""

    step = ""

    def __call__(self, step: enum.StrEnum, subject: str) -> None:
        if self.step and str(step) == self.step:
            tell(died=str(step))
            os.kill(os.getpid(), signal.SIGKILL)


async def order(tx: Any, key: str) -> dict[str, str]:
    for name in NAMES:
        branch = await tx.branch(name)
        await branch.execute("insert into made (key, run) values ($1, $2)", key, str(tx.id))
    tell(began=key)
    return {"run": str(tx.id)}


async def main(settings: str) -> None:
    deadly = Deadly()
    loop = asyncio.get_running_loop()
    async with undoubt.connect(json.loads(settings), observe=deadly) as coordinator:
        tell(ready=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            key, deadly.step = asked["key"], asked["die"]
            try:
                result = await coordinator.run(order, key, key=key, timeout=TIMEOUT_S)
            except undoubt.UndoubtError as error:
                tell(key=key, failed=f"{type(error).__name__}: {error}")
            else:
                tell(key=key, result=result)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
