"""Something happens at one named step: the process dies there, waits to be told to go on, or only tells."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from undoubt.participants.ids import Gid

KILL, PAUSE, TELL, NEVER = "kill", "pause", "tell", "never"


@dataclass(frozen=True, slots=True)
class Trap:
    """``how`` at the ``nth`` time that ``step`` is reached, by branch number ``branch`` if that is not 0, for
    ``txid`` if that is not empty."""

    how: str
    step: str
    branch: int
    nth: int
    txid: str = ""

    def encode(self) -> str:
        return f"{self.how}:{self.step}:{self.branch}:{self.nth}:{self.txid}"

    @classmethod
    def decode(cls, text: str) -> Trap:
        how, step, branch, nth, txid = text.split(":")
        return cls(how, step, int(branch), int(nth), txid)


NO_TRAP = Trap(NEVER, "-", 0, 0)


def tell(**message: object) -> None:
    """One line of JSON on stdout, at once: what was told before a SIGKILL stays told."""
    os.write(1, json.dumps(message).encode() + b"\n")


class Trapped:
    """An observer of protocol, recovery or node steps that springs ``trap`` once, and says so by ``tell``."""

    def __init__(self, trap: Trap, tell: Callable[..., None] = tell) -> None:
        self._trap = trap
        self._left = trap.nth
        self._tell = tell

    @property
    def step(self) -> str:
        return self._trap.step

    @property
    def sprung(self) -> bool:
        return self._trap.how != NEVER and self._left <= 0

    def __call__(self, step: enum.StrEnum, subject: str) -> Awaitable[None] | None:
        if self._trap.how == NEVER or str(step) != self._trap.step or not self._is_meant(subject):
            return None
        self._left -= 1
        if self._left != 0:
            return None
        self._tell(at=str(step), subject=subject)
        if self._trap.how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return _told_to_go_on() if self._trap.how == PAUSE else None

    def _is_meant(self, subject: str) -> bool:
        if self._trap.txid and subject != self._trap.txid:
            return False
        if self._trap.branch == 0:
            return True
        gid = Gid.parse(subject)
        return isinstance(gid, Gid) and gid.branch == self._trap.branch


async def _told_to_go_on() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
