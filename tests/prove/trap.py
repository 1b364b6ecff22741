"""Something happens at one named step: the process dies there, or waits to be told to go on."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import signal
import sys
from collections.abc import Awaitable
from dataclasses import dataclass

from participants.ids import Gid

KILL, PAUSE, NEVER = "kill", "pause", "never"


@dataclass(frozen=True, slots=True)
class Trap:
    """``how`` at the ``nth`` time that ``step`` is reached, by branch number ``branch`` if that is not 0."""

    how: str
    step: str
    branch: int
    nth: int

    def encode(self) -> str:
        return f"{self.how}:{self.step}:{self.branch}:{self.nth}"

    @classmethod
    def decode(cls, text: str) -> Trap:
        how, step, branch, nth = text.split(":")
        return cls(how, step, int(branch), int(nth))


def tell(**message: object) -> None:
    """One line of JSON on stdout, at once: what was told before a SIGKILL stays told."""
    os.write(1, json.dumps(message).encode() + b"\n")


class Trapped:
    """An observer of protocol or recovery steps that springs ``trap`` once."""

    def __init__(self, trap: Trap) -> None:
        self._trap = trap
        self._left = trap.nth

    def __call__(self, step: enum.StrEnum, subject: str) -> Awaitable[None] | None:
        if self._trap.how == NEVER or str(step) != self._trap.step or not self._is_branch(subject):
            return None
        self._left -= 1
        if self._left != 0:
            return None
        tell(at=str(step), subject=subject)
        if self._trap.how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return _told_to_go_on()

    def _is_branch(self, subject: str) -> bool:
        if self._trap.branch == 0:
            return True
        gid = Gid.parse(subject)
        return isinstance(gid, Gid) and gid.branch == self._trap.branch


async def _told_to_go_on() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
